"Checkpoints of others: the three formats of the nanoVLM repository, two pretrained towers, and the way to the hub."
import json
from pathlib import Path
import huggingface_hub
import jinja2
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from nanovlm.hub import grown, model_card, nanovlm_tiles, push_to_hub
from nanovlm.language import LanguageModel, TextConfig
from nanovlm.model import VisionLanguageModel
from nanovlm.processor import WHOLE, Processor, ask
from nanovlm.vision import VisionConfig, VisionModel
from nanovlm_formats import old_config, old_logits, old_tensors, write_old_folder

VERSIONS = ["v0.1", "v0.2", "HEAD"]

@pytest.fixture
def tokenizer_folder(tmp_path):
    "A tokenizer as a decoder's own, with SmolLM2's special tokens and no others; and its size."
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
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
    model, processor = VisionLanguageModel.from_pretrained(tmp_path), Processor.from_pretrained(tmp_path)
    batch = processor([Image.effect_noise((70, 50), 90)], "what is in this picture?")
    ids = batch["input_ids"][0]
    if version == "v0.1": # no image token there: the vectors come first
        assert (ids[:4] == model.config.image_token_id).all() and not (ids[4:] == model.config.image_token_id).any()
        expected = old_logits(config, tensors, ids[4:], batch["pixel_values"])
    else: expected = old_logits(config, tensors, ids, batch["pixel_values"])
    with torch.no_grad(): ours = model(**batch)[0]
    torch.testing.assert_close(ours[:, :expected.shape[1]], expected, atol=1e-4, rtol=0)
    assert (ours.argmax(-1) == expected.argmax(-1)).all() # a token that was added is never the best

@pytest.mark.parametrize("version", ["v0.2", "HEAD"])
def test_prompt_equals_its_chat_template(tmp_path, tokenizer_folder, version):
    config, _ = old_folder(tmp_path, version, tokenizer_folder)
    processor, question = Processor.from_pretrained(tmp_path), "what is <|im_end|> a red circle?"
    squares = "<|image|>" * 4 if version == "v0.2" else "<|global_image|>" + "<|image|>" * 4
    rendered = jinja2.Template(config["lm_chat_template"]).render(messages=[dict(role="user", content=squares + "what is a red circle?")], add_generation_prompt=True)
    assert processor.prompt("what is a red circle?", [WHOLE]) == [*processor.encode(rendered, special=True)]
    assert processor.prompt(question, [WHOLE]).count(processor.eos_token_id) == 1 # what a user types ends no turn

def test_the_first_format_asks_with_words(tmp_path, tokenizer_folder):
    old_folder(tmp_path, "v0.1", tokenizer_folder)
    processor = Processor.from_pretrained(tmp_path)
    assert processor.tokenizer.decode(processor.prompt("is it red?", [WHOLE])[4:], skip_special_tokens=False) == "Question: is it red? Answer:"
    assert processor.eos_token_id == processor.tokenizer.token_to_id("<|endoftext|>")

def test_pixels_lie_between_0_and_1(tmp_path, tokenizer_folder):
    old_folder(tmp_path, "v0.2", tokenizer_folder)
    pixels, _ = Processor.from_pretrained(tmp_path).pixels([Image.new("RGB", (9, 9), "white"), Image.new("RGB", (9, 9))])
    assert pixels[0].min() == 1 and pixels[1].max() == 0

@pytest.mark.parametrize("size, enlarge, grid", [((32, 32), False, WHOLE), ((20, 30), False, WHOLE), ((33, 32), False, (2, 2)), ((64, 20), False, (1, 2)), ((500, 250), False, (2, 4)), ((20, 30), True, (4, 3)), ((250, 500), True, (4, 2))])
def test_tiles_of_the_third_format(size, enlarge, grid):
    squares, found = nanovlm_tiles(Image.effect_noise(size, 90).convert("RGB"), 32, 128, enlarge)
    assert found == grid and len(squares) == (1 if grid == WHOLE else grid[0] * grid[1] + 1)
    assert all(square.size == (32, 32) for square in squares)

def test_tiles_and_numbers_stand_in_the_prompt(tmp_path, tokenizer_folder):
    old_folder(tmp_path, "HEAD", tokenizer_folder, max_img_size=96)
    model, processor = VisionLanguageModel.from_pretrained(tmp_path), Processor.from_pretrained(tmp_path)
    images = [Image.effect_noise((90, 40), 90), Image.effect_noise((20, 20), 90)]
    text = processor.tokenizer.decode(processor(images, "which?")["input_ids"][0].tolist(), skip_special_tokens=False)
    square = "<|image|>" * 4
    tiles = "".join(f"<row_{r}_col_{c}>{square}" for r in (1, 2) for c in (1, 2, 3))
    assert text.startswith(f"<|im_start|>user\n<image: 0><|global_image|>{square}{tiles}<image: 1><|global_image|>{square}which?<|im_end|>")
    assert isinstance(ask(model, processor, images, "which?", max_new_tokens=2), str)

@pytest.mark.parametrize("version", VERSIONS)
def test_saved_as_ours_it_answers_the_same(tmp_path, tokenizer_folder, version):
    old_folder(tmp_path, version, tokenizer_folder)
    model, processor, new = VisionLanguageModel.from_pretrained(tmp_path), Processor.from_pretrained(tmp_path), tmp_path / "new"
    model.save_pretrained(new)
    processor.save_pretrained(new)
    image = Image.effect_noise((90, 40), 90)
    for name, tensor in VisionLanguageModel.from_pretrained(new).state_dict().items(): assert torch.equal(tensor, model.state_dict()[name])
    assert ask(VisionLanguageModel.from_pretrained(new), Processor.from_pretrained(new), image, "is it?", max_new_tokens=5) == ask(model, processor, image, "is it?", max_new_tokens=5)

@pytest.mark.parametrize("change, message", [(dict(vit_cls_flag=True), "vit_cls_flag"), (dict(lm_attn_scaling=0.5), "lm_attn_scaling"), (dict(lm_inter_dim=96), r"down_proj.*\(48, 100\).*\(48, 96\)")])
def test_what_the_model_cannot_compute_is_refused(tmp_path, tokenizer_folder, change, message):
    config, _ = old_folder(tmp_path, "v0.2", tokenizer_folder)
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=message): VisionLanguageModel.from_pretrained(tmp_path)

def test_tiles_without_a_whole_are_refused(tmp_path, tokenizer_folder):
    "A format between the second and the third."
    config, _ = old_folder(tmp_path, "v0.2", tokenizer_folder)
    (tmp_path / "config.json").write_text(json.dumps(config | dict(vlm_extra_tokens={"image_token": "<|image|>", "r1c1": "<row_1_col_1>"})))
    with pytest.raises(ValueError, match="token for the whole image"): VisionLanguageModel.from_pretrained(tmp_path)

def test_an_incomplete_config_is_named(tmp_path, tokenizer_folder):
    config, _ = old_folder(tmp_path, "v0.2", tokenizer_folder)
    del config["vit_inter_dim"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="vit_inter_dim"): VisionLanguageModel.from_pretrained(tmp_path)

def test_a_foreign_tokenizer_is_refused(tmp_path, tokenizer_folder):
    old_folder(tmp_path, "v0.2", (tokenizer_folder[0], tokenizer_folder[1] + 5))
    with pytest.raises(ValueError, match="image token"): Processor.from_pretrained(tmp_path)

def test_a_new_row_never_wins():
    table, states = torch.randn(50, 16), torch.randn(200, 16)
    scores = states @ grown(table, 60).T
    assert scores.shape == (200, 60) and (scores.argmax(1) < 50).all()
    torch.testing.assert_close(scores[:, 55], scores[:, :50].mean(1), atol=1e-5, rtol=0)

@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def towers(request, tmp_path, tokenizer_folder):
    "A vision encoder and a decoder with its tokenizer, each in a folder as others publish them."
    vision, text = VisionConfig(24, 48, 2, 2, 32, 8), TextConfig(tokenizer_folder[1], 48, 100, 2, 4, 2, tie_word_embeddings=request.param)
    eye, mouth = VisionModel(vision), LanguageModel(text)
    folders = tmp_path / "eye", tokenizer_folder[0]
    folders[0].mkdir()
    save_file({f"vision_model.{n}": t for n, t in eye.state_dict().items()}, folders[0] / "model.safetensors")
    (folders[0] / "config.json").write_text(json.dumps(dict(vision_config=vars(vision))))
    save_file({n.replace("text_model.", "model."): t for n, t in mouth.state_dict().items() if not (request.param and n == "lm_head.weight")}, folders[1] / "model.safetensors")
    (folders[1] / "config.json").write_text(json.dumps(vars(text)))
    return *folders, eye, mouth

def test_joined_towers_keep_what_they_know(towers):
    vision, text, eye, mouth = towers
    model = VisionLanguageModel.from_backbones(vision=vision, text=text, scale_factor=2)
    images, ids, old = torch.randn(2, 3, 32, 32), torch.randint(0, mouth.text_model.config.vocab_size, (2, 9)), mouth.text_model.config.vocab_size
    assert torch.equal(model.vision_model(images), eye(images))
    torch.testing.assert_close(model(ids)[..., :old], mouth(ids), atol=1e-5, rtol=0)
    assert (model.lm_head.weight is model.text_model.embed_tokens.weight) == mouth.text_model.config.tie_word_embeddings
    assert model.config.text_config.vocab_size == old + 128 and not any(p.is_meta for p in model.parameters())
    scale = model.connector.modality_projection.proj.weight.std() * (24 * 4) ** 0.5
    assert 0.9 < scale < 1.1

def test_joined_towers_can_be_asked_and_saved(towers, tmp_path):
    vision, text, *_ = towers
    model = VisionLanguageModel.from_backbones(vision, text)
    processor = Processor.from_backbones(text, model.config)
    assert processor.image_token_id == model.config.image_token_id
    model.save_pretrained(tmp_path / "joined")
    processor.save_pretrained(tmp_path / "joined")
    again, image = VisionLanguageModel.from_pretrained(tmp_path / "joined"), Image.effect_noise((40, 40), 90)
    assert ask(again, Processor.from_pretrained(tmp_path / "joined"), image, "is it?", max_new_tokens=4) == ask(model, processor, image, "is it?", max_new_tokens=4)

def test_type_and_place_are_chosen_while_loading(towers):
    for dtype in (torch.bfloat16, torch.float16): assert {p.dtype for p in LanguageModel.from_pretrained(towers[1], dtype=dtype).parameters()} == {dtype}
    assert next(VisionModel.from_pretrained(towers[0], device="meta").parameters()).is_meta

def test_shards_are_read_together(towers, tmp_path):
    whole = towers[1] / "model.safetensors"
    tensors = load_file(whole)
    names = sorted(tensors)
    for n, part in enumerate((names[::2], names[1::2]), 1): save_file({name: tensors[name] for name in part}, towers[1] / f"model-0000{n}-of-00002.safetensors")
    whole.unlink()
    for name, tensor in LanguageModel.from_pretrained(towers[1]).state_dict().items(): assert torch.equal(tensor, towers[3].state_dict()[name])

def test_a_missing_shard_is_named(towers):
    (towers[1] / "model.safetensors").rename(towers[1] / "model-00001.safetensors")
    (towers[1] / "model.safetensors.index.json").write_text(json.dumps(dict(weight_map={"a": "model-00001.safetensors", "b": "model-00002.safetensors"})))
    with pytest.raises(FileNotFoundError, match="model-00002.safetensors"): LanguageModel.from_pretrained(towers[1])

def test_a_whole_file_goes_before_other_files(towers):
    "As in transformers: what else lies there, an optimizer's state or an older form, is not the model's."
    save_file({"other": torch.ones(3)}, towers[1] / "optimizer.safetensors")
    for name, tensor in LanguageModel.from_pretrained(towers[1]).state_dict().items(): assert torch.equal(tensor, towers[3].state_dict()[name])

def test_another_decoders_tokenizer_is_refused(towers, tmp_path):
    model = VisionLanguageModel.from_backbones(towers[0], towers[1])
    other = Tokenizer.from_file(str(towers[1] / "tokenizer.json"))
    other.add_tokens(["one", "more"])
    (tmp_path / "other").mkdir()
    other.save(str(tmp_path / "other" / "tokenizer.json"))
    with pytest.raises(ValueError, match="image token"): Processor.from_backbones(tmp_path / "other", model.config)

def test_a_bf16_checkpoint_can_be_asked(tiny, tmp_path):
    tiny[0].bfloat16().save_pretrained(tmp_path)
    model = VisionLanguageModel.from_pretrained(tmp_path)
    assert next(model.parameters()).dtype is torch.bfloat16
    assert isinstance(ask(model, tiny[1], Image.effect_noise((40, 40), 90), "is it?", max_new_tokens=3), str)

def test_a_tokenizer_larger_than_the_model_is_refused(tiny, tmp_path):
    model, processor = tiny
    model.save_pretrained(tmp_path)
    processor.tokenizer.add_tokens([f"extra {n}" for n in range(600)])
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="tokens, the model 512"): Processor.from_pretrained(tmp_path)

class FakeApi:
    "Remembers what would have been uploaded."
    calls = []
    def create_repo(self, repo_id, **options): return self.calls.append(("create", repo_id, options)) or f"https://huggingface.co/{repo_id}"
    def upload_folder(self, repo_id, folder_path, **options): self.calls.append(("upload", sorted(p.name for p in Path(folder_path).iterdir()), {p.name: p.read_text() for p in Path(folder_path).glob("*.md")}))

def test_pushing_uploads_the_checkpoint_and_a_card(demo, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    FakeApi.calls.clear()
    assert push_to_hub(demo[0], "me/tiny") == "https://huggingface.co/me/tiny"
    (_, repo, options), (_, files, _), (_, _, card) = FakeApi.calls
    metrics = json.loads((demo[0] / "metrics.json").read_text())
    assert repo == "me/tiny" and options["private"] and {"model.safetensors", "config.json", "tokenizer.json"} <= set(files)
    assert "3,800 images to learn from" in card["README.md"]
    for figure in ("exact_match", "blind_exact_match", "majority"): assert f"{100 * metrics[figure]:.2f} %" in card["README.md"], figure

def test_what_does_not_load_is_not_pushed(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    FakeApi.calls.clear()
    tiny[0].save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError): push_to_hub(tmp_path, "me/tiny")
    assert not FakeApi.calls

@pytest.mark.parametrize("kind", ["none", "nanoVLM"])
def test_what_transformers_cannot_open_is_not_pushed(tmp_path, tokenizer_folder, monkeypatch, kind):
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    FakeApi.calls.clear()
    if kind == "nanoVLM": old_folder(tmp_path, "v0.2", tokenizer_folder)
    with pytest.raises((FileNotFoundError, ValueError)): push_to_hub(tmp_path if kind == "nanoVLM" else "runs/nothing", "me/tiny")
    assert not FakeApi.calls

def test_a_card_without_figures_says_so(tiny): assert "No figures" in model_card("me/tiny", tiny[0].config)

def test_a_card_of_a_multiple_choice_run(tiny):
    card = model_card("me/tiny", tiny[0].config, dict(accuracy=0.4, interval=(0.3, 0.5), count=90, by_type=dict(math=dict(accuracy=0.25)), blind_accuracy=0.26, chance=0.25))
    for said in ("accuracy | 40.00 %", "blank image | 26.00 %", "guessing | 25.00 %", "of these, math | 25.00 %"): assert said in card, said

def test_states_of_a_run_stay_at_home(demo, monkeypatch):
    "They hold optimizer states, three times as large as the model; the hub's own rule decides what goes."
    from huggingface_hub.utils import filter_repo_objects
    told = []
    class Api(FakeApi):
        def upload_folder(self, repo_id, folder_path, **options): told.append(options)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    push_to_hub(demo[0], "me/tiny")
    names = ["config.json", "model.safetensors", "model-00001-of-00002.safetensors", "chat_template.jinja", "states/step-00000010.safetensors", "bad_batch_0.safetensors", "history.jsonl", "loss.svg"]
    assert [*filter_repo_objects(names, **told[0])] == names[:4]
