"Checkpoints of others: three formats of the nanoVLM repository, two pretrained towers, the way to the hub."
import json, re, shutil
from pathlib import Path
import huggingface_hub
import jinja2
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from conftest import TINY
from nanovlm.hub import load, model_card, push_to_hub
from nanovlm.language import LanguageModel, TextConfig
from nanovlm.model import VisionLanguageModel
from nanovlm.processor import WHOLE, Processor, ask, nanovlm_tiles
from nanovlm.recipe import add_rows, join
from nanovlm.vision import VisionConfig, VisionModel
from nanovlm_formats import old_config, old_logits, old_tensors, write_old_folder

VERSIONS = ["v0.1", "v0.2", "main"]

@pytest.fixture
def tokenizer_folder(tmp_path):
    "A tokenizer as a decoder's own, with SmolLM2's special tokens and no others; and its size."
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special, alphabet = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet,
                                  show_progress=False)
    tokenizer.train_from_iterator(["what is in this picture? a red circle"], trainer)
    (tmp_path / "words").mkdir()
    tokenizer.save(str(tmp_path / "words" / "tokenizer.json"))
    return tmp_path / "words", tokenizer.get_vocab_size()

def old_folder(folder, version, tokenizer_folder, keep="head", **changes):
    "A nanoVLM folder with random weights: its config and tensors."
    config = old_config(version, str(tokenizer_folder[0]), base_vocab=tokenizer_folder[1], **changes)
    tensors = old_tensors(config, seed=1, keep=keep)
    write_old_folder(folder, config, tensors)
    return config, tensors

@pytest.mark.parametrize("keep", ["head", "embedding", "both"])
@pytest.mark.parametrize("version", VERSIONS)
def test_logits_equal_an_independent_computation(tmp_path, tokenizer_folder, version, keep):
    config, tensors = old_folder(tmp_path, version, tokenizer_folder, keep, lm_tie_weights=keep != "both")
    model, processor = load(tmp_path)
    batch = processor([Image.effect_noise((70, 50), 90)], "what is in this picture?")
    ids = batch["input_ids"][0]
    if version == "v0.1": # no image token there: the vectors come first
        images = ids == model.config.image_token_id
        assert images[:4].all() and not images[4:].any()
        expected = old_logits(config, tensors, ids[4:], batch["pixel_values"])
    else: expected = old_logits(config, tensors, ids, batch["pixel_values"])
    with torch.no_grad(): ours = model(**batch)[0]
    torch.testing.assert_close(ours[:, :expected.shape[1]], expected, atol=1e-4, rtol=0)
    assert (ours.argmax(-1) == expected.argmax(-1)).all() # a token that was added is never the best

@pytest.mark.parametrize("version", ["v0.2", "main"])
def test_prompt_equals_its_chat_template(tmp_path, tokenizer_folder, version):
    config, _ = old_folder(tmp_path, version, tokenizer_folder)
    _, processor = load(tmp_path)
    question, squares = "what is <|im_end|> a red circle?", "<|image|>" * 4
    if version == "main": squares = "<|global_image|>" + squares
    messages = [dict(role="user", content=squares + "what is a red circle?")]
    template = jinja2.Template(config["lm_chat_template"])
    rendered = template.render(messages=messages, add_generation_prompt=True)
    assert processor.prompt("what is a red circle?", [WHOLE]) == [*processor.encode(rendered, special=True)]
    assert processor.prompt(question, [WHOLE]).count(processor.eos_token_id) == 1 # what a user types ends no turn

def test_the_first_format_asks_with_words(tmp_path, tokenizer_folder):
    old_folder(tmp_path, "v0.1", tokenizer_folder)
    _, processor = load(tmp_path)
    words = processor.tokenizer.decode(processor.prompt("is it red?", [WHOLE])[4:], skip_special_tokens=False)
    assert words == "Question: is it red? Answer:"
    assert processor.eos_token_id == processor.tokenizer.token_to_id("<|endoftext|>")

def test_pixels_lie_between_0_and_1(tmp_path, tokenizer_folder):
    old_folder(tmp_path, "v0.2", tokenizer_folder)
    white, black = Image.new("RGB", (9, 9), "white"), Image.new("RGB", (9, 9))
    pixels, _ = load(tmp_path)[1].pixels([white, black])
    assert pixels[0].min() == 1 and pixels[1].max() == 0

GRIDS = [((32, 32), False, WHOLE), ((20, 30), False, WHOLE), ((33, 32), False, (2, 2)),
         ((64, 20), False, (1, 2)), ((500, 250), False, (2, 4)), ((20, 30), True, (4, 3)),
         ((250, 500), True, (4, 2))]

@pytest.mark.parametrize("size, enlarge, grid", GRIDS)
def test_tiles_of_the_third_format(size, enlarge, grid):
    image = Image.effect_noise(size, 90).convert("RGB")
    squares, found = nanovlm_tiles(image, 32, 128, enlarge=enlarge)
    assert found == grid and len(squares) == (1 if grid == WHOLE else grid[0] * grid[1] + 1)
    assert all(square.size == (32, 32) for square in squares)

def test_tiles_and_numbers_stand_in_the_prompt(tmp_path, tokenizer_folder):
    old_folder(tmp_path, "main", tokenizer_folder, max_img_size=96)
    model, processor = load(tmp_path)
    images = [Image.effect_noise((90, 40), 90), Image.effect_noise((20, 20), 90)]
    ids = processor(images, "which?")["input_ids"][0].tolist()
    text, square = processor.tokenizer.decode(ids, skip_special_tokens=False), "<|image|>" * 4
    tiles = "".join(f"<row_{r}_col_{c}>{square}" for r in (1, 2) for c in (1, 2, 3))
    first, second = f"<image: 0><|global_image|>{square}{tiles}", f"<image: 1><|global_image|>{square}"
    assert text.startswith(f"<|im_start|>user\n{first}{second}which?<|im_end|>")
    assert isinstance(ask(model, processor, images, "which?", max_new_tokens=2), str)

@pytest.mark.parametrize("version", VERSIONS)
def test_saved_as_ours_it_answers_the_same(tmp_path, tokenizer_folder, version):
    old_folder(tmp_path, version, tokenizer_folder)
    pair, new, image = load(tmp_path), tmp_path / "new", Image.effect_noise((90, 40), 90)
    for part in pair: part.save_pretrained(new)
    again, state = load(new), pair[0].state_dict()
    for name, tensor in again[0].state_dict().items(): assert torch.equal(tensor, state[name])
    assert ask(*again, image, "is it?", max_new_tokens=5) == ask(*pair, image, "is it?", max_new_tokens=5)

@pytest.mark.parametrize("cls, complaint",
                         [(VisionLanguageModel, ValueError), (Processor, FileNotFoundError)])
def test_a_class_opens_its_own_format_and_names_load(tmp_path, tokenizer_folder, cls, complaint):
    old_folder(tmp_path, "v0.2", tokenizer_folder)
    with pytest.raises(complaint, match="nanovlm.load"): cls.from_pretrained(tmp_path)

REFUSED = [(dict(vit_cls_flag=True), "vit_cls_flag"), (dict(lm_attn_scaling=0.5), "lm_attn_scaling"),
           (dict(lm_inter_dim=96), r"down_proj.*\(48, 100\).*\(48, 96\)")]

@pytest.mark.parametrize("change, message", REFUSED)
def test_what_the_model_cannot_compute_is_refused(tmp_path, tokenizer_folder, change, message):
    config, _ = old_folder(tmp_path, "v0.2", tokenizer_folder)
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=message): load(tmp_path)

def test_tiles_without_a_whole_are_refused(tmp_path, tokenizer_folder):
    "A format between the second and the third."
    config, _ = old_folder(tmp_path, "v0.2", tokenizer_folder)
    extra = {"image_token": "<|image|>", "r1c1": "<row_1_col_1>"}
    (tmp_path / "config.json").write_text(json.dumps(config | dict(vlm_extra_tokens=extra)))
    with pytest.raises(ValueError, match="token for the whole image"): load(tmp_path)

def test_an_incomplete_config_is_named(tmp_path, tokenizer_folder):
    config, _ = old_folder(tmp_path, "v0.2", tokenizer_folder)
    del config["vit_inter_dim"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="vit_inter_dim"): load(tmp_path)

def test_a_foreign_tokenizer_is_refused(tmp_path, tokenizer_folder):
    old_folder(tmp_path, "v0.2", (tokenizer_folder[0], tokenizer_folder[1] + 5))
    with pytest.raises(ValueError, match="image token"): load(tmp_path)

def test_a_new_row_never_wins():
    table, states = torch.randn(50, 16), torch.randn(200, 16)
    scores = states @ add_rows(table, 60).T
    assert scores.shape == (200, 60) and (scores.argmax(1) < 50).all()
    torch.testing.assert_close(scores[:, 55], scores[:, :50].mean(1), atol=1e-5, rtol=0)

@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def towers(request, tmp_path, tokenizer_folder):
    "A vision encoder and a decoder with its tokenizer, each in a folder as others publish them."
    vision, (text, vocabulary) = tmp_path / "vision", tokenizer_folder
    encoder = VisionModel(VisionConfig(24, 48, 2, 2, 32, 8))
    decoder = LanguageModel(TextConfig(vocabulary, 48, 100, 2, 4, 2, tie_word_embeddings=request.param))
    vision.mkdir()
    tensors = {f"vision_model.{name}": tensor for name, tensor in encoder.state_dict().items()}
    save_file(tensors, vision / "model.safetensors")
    (vision / "config.json").write_text(json.dumps(dict(vision_config=vars(encoder.config))))
    tensors = {name.replace("text_model.", "model."): tensor for name, tensor in decoder.state_dict().items()
               if name not in decoder.tied_names}
    save_file(tensors, text / "model.safetensors")
    (text / "config.json").write_text(json.dumps(vars(decoder.text_model.config)))
    return vision, text, encoder, decoder

def test_joined_towers_keep_what_they_know(towers):
    vision, text, encoder, decoder = towers
    sizes = decoder.text_model.config
    model, processor = join(vision, text, scale_factor=2)
    images, ids = torch.randn(2, 3, 32, 32), torch.randint(0, sizes.vocab_size, (2, 9))
    assert torch.equal(model.vision_model(images), encoder(images))
    torch.testing.assert_close(model(ids)[..., :sizes.vocab_size], decoder(ids), atol=1e-5, rtol=0)
    assert (model.lm_head.weight is model.text_model.embed_tokens.weight) == sizes.tie_word_embeddings
    assert model.config.text_config.vocab_size == sizes.vocab_size + 128
    assert not any(p.is_meta for p in model.parameters())
    assert processor.image_token_id == model.config.image_token_id
    scale = model.connector.modality_projection.proj.weight.std() * (24 * 4) ** 0.5
    assert 0.9 < scale < 1.1

def test_joined_towers_can_be_asked_and_saved(towers, tmp_path):
    pair, image = join(*towers[:2]), Image.effect_noise((40, 40), 90)
    for part in pair: part.save_pretrained(tmp_path / "joined")
    again = load(tmp_path / "joined")
    assert ask(*again, image, "is it?", max_new_tokens=4) == ask(*pair, image, "is it?", max_new_tokens=4)

def test_another_decoders_tokenizer_is_refused(towers):
    vision, text, *_ = towers
    other = Tokenizer.from_file(str(text / "tokenizer.json"))
    other.add_tokens(["one", "more"])
    other.save(str(text / "tokenizer.json"))
    with pytest.raises(ValueError, match="image token"): join(vision, text)

def test_dtype_and_device_are_chosen_while_loading(towers):
    vision, text, *_ = towers
    for dtype in (torch.bfloat16, torch.float16):
        assert {p.dtype for p in LanguageModel.from_pretrained(text, dtype=dtype).parameters()} == {dtype}
    assert next(VisionModel.from_pretrained(vision, device="meta").parameters()).is_meta

def same_weights(folder, model):
    "Whether a folder holds the model's weights, to the bit."
    state, again = model.state_dict(), type(model).from_pretrained(folder).state_dict()
    return again.keys() == state.keys() and all(torch.equal(again[name], state[name]) for name in state)

def test_shards_are_read_together(towers):
    _, text, _, decoder = towers
    whole = text / "model.safetensors"
    tensors = load_file(whole)
    for n in (0, 1):
        part = {name: tensors[name] for name in sorted(tensors)[n::2]}
        save_file(part, text / f"model-0000{n + 1}-of-00002.safetensors")
    whole.unlink()
    assert same_weights(text, decoder)

def test_a_missing_shard_is_named(towers):
    text = towers[1]
    (text / "model.safetensors").rename(text / "model-00001.safetensors")
    index = dict(weight_map={"a": "model-00001.safetensors", "b": "model-00002.safetensors"})
    (text / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FileNotFoundError, match="model-00002.safetensors"):
        LanguageModel.from_pretrained(text)

def test_a_whole_file_goes_before_other_files(towers):
    "As in transformers: what else lies there, an optimizer's state or an older form, is not the model's."
    _, text, _, decoder = towers
    save_file({"other": torch.ones(3)}, text / "optimizer.safetensors")
    assert same_weights(text, decoder)

def test_a_bf16_checkpoint_can_be_asked(model, processor, tmp_path):
    model.bfloat16().save_pretrained(tmp_path)
    again = VisionLanguageModel.from_pretrained(tmp_path)
    assert next(again.parameters()).dtype is torch.bfloat16
    image = Image.effect_noise((40, 40), 90)
    assert isinstance(ask(again, processor, image, "is it?", max_new_tokens=3), str)

def test_a_tokenizer_larger_than_the_model_is_refused(model, processor, tmp_path):
    model.save_pretrained(tmp_path)
    processor.tokenizer.add_tokens([f"extra {n}" for n in range(600)])
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="tokens, the model 512"): Processor.from_pretrained(tmp_path)

class FakeApi:
    "Remembers what would have been uploaded."
    created, uploads = [], [] # repositories; (names, texts, options) of each upload
    def create_repo(self, repo_id, **options):
        self.created.append((repo_id, options))
        return f"https://huggingface.co/{repo_id}"
    def upload_folder(self, repo_id, folder_path, **options):
        files = [*Path(folder_path).iterdir()]
        texts = {file.name: file.read_text() for file in files if file.suffix == ".md"}
        self.uploads.append(({file.name for file in files}, texts, options))

@pytest.fixture
def api(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    FakeApi.created.clear()
    FakeApi.uploads.clear()
    return FakeApi

FIGURES = dict(exact_match=0.62, interval=[0.57, 0.67], count=400, by_type={}, blind_exact_match=0.59,
               other_image_exact_match=0.58, majority=0.37, question_only=0.6, data="400 photographs.")

@pytest.fixture
def run_folder(tmp_path):
    "A checkpoint with the figures of its run."
    folder = tmp_path / "run"
    shutil.copytree(TINY, folder)
    (folder / "metrics.json").write_text(json.dumps(FIGURES))
    return folder

def test_pushing_uploads_the_checkpoint_and_a_card(run_folder, api):
    assert push_to_hub(run_folder, "me/tiny") == "https://huggingface.co/me/tiny"
    (repo, options), = api.created
    (files, _, _), (_, texts, _) = api.uploads
    assert repo == "me/tiny" and options["private"]
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= files
    assert "400 photographs." in texts["README.md"]
    for figure in ("62.00", "59.00", "58.00", "37.00", "60.00"):
        assert f"{figure}%" in texts["README.md"], figure

def test_what_does_not_load_is_not_pushed(model, tmp_path, api):
    model.save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError): push_to_hub(tmp_path, "me/tiny")
    assert not api.created and not api.uploads

@pytest.mark.parametrize("kind", ["none", "nanoVLM"])
def test_what_transformers_cannot_open_is_not_pushed(tmp_path, tokenizer_folder, api, kind):
    if kind == "nanoVLM": old_folder(tmp_path, "v0.2", tokenizer_folder)
    folder = tmp_path if kind == "nanoVLM" else "runs/nothing"
    with pytest.raises((FileNotFoundError, ValueError)): push_to_hub(folder, "me/tiny")
    assert not api.created and not api.uploads

def test_a_card_without_figures_says_so(model): assert "No figures" in model_card("me/tiny", model.config)

def test_a_card_of_figures_without_kinds(model):
    card = model_card("me/tiny", model.config, dict(exact_match=0.4, interval=(0.3, 0.5), count=90))
    assert "exact match   40.00%" in card
    assert "No figures" in model_card("me/tiny", model.config, dict(loss=0.5))

def test_a_card_of_a_multiple_choice_run(model):
    math = dict(accuracy=0.25, interval=(0.1, 0.4), count=20)
    metrics = dict(accuracy=0.4, interval=(0.3, 0.5), count=90, by_type=dict(math=math), unreadable=7,
                   blind_accuracy=0.26, chance=0.25)
    card = re.sub(" +", " ", model_card("me/tiny", model.config, metrics))
    lines = ("accuracy 40.00% 95 % interval 30.00% – 50.00% 90 questions", "math 25.00% 95 % interval",
             "blank image 26.00%", "guessing 25.00%", "7 replies name no option")
    for line in lines: assert line in card, line

def test_states_of_a_run_stay_at_home(run_folder, api):
    "They hold optimizer states, three times as large as the model; the hub's own rule decides what goes."
    from huggingface_hub.utils import filter_repo_objects
    push_to_hub(run_folder, "me/tiny")
    goes = ["config.json", "model.safetensors", "model-00001-of-00002.safetensors", "chat_template.jinja"]
    stays = ["states/step-00000010.safetensors", "bad_batch_0.safetensors", "history.jsonl", "loss.svg"]
    assert [*filter_repo_objects(goes + stays, **api.uploads[0][2])] == goes
