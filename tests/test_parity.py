"Every part of the model against transformers' own, over sizes that stress a different corner each."
import pytest
import torch
import transformers
from transformers import (AutoModelForImageTextToText, LlamaConfig, LlamaForCausalLM, SiglipVisionConfig,
                          SiglipVisionModel)
from nanovlm.bench import fix_positions
from nanovlm.generation import filter_logits, generate
from nanovlm.language import LanguageModel, TextConfig
from nanovlm.model import VisionLanguageModel, VLMConfig
from nanovlm.vision import VisionConfig, VisionModel

transformers.utils.logging.disable_progress_bar()

def close(ours, theirs): torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)

def randomised(model):
    "Larger weights than transformers starts with, norms and biases included: mistakes show."
    for p in model.parameters():
        is_norm = p.ndim == 1 and p.mean() == 1
        torch.nn.init.normal_(p, float(is_norm), 0.1)
    return model.eval()

SIGLIPS = [(32, 8, 1, 16), (64, 16, 4, 64), (56, 14, 2, 48), (48, 16, 3, 72)]

@pytest.mark.parametrize("image_size, patch_size, heads, width", SIGLIPS)
def test_siglip(tmp_path, image_size, patch_size, heads, width):
    config = SiglipVisionConfig(
        hidden_size=width, intermediate_size=2 * width + 4, num_hidden_layers=3, num_attention_heads=heads,
        image_size=image_size, patch_size=patch_size)
    theirs = randomised(SiglipVisionModel(config))
    theirs.save_pretrained(tmp_path)
    ours, images = VisionModel.from_pretrained(tmp_path), torch.randn(2, 3, image_size, image_size)
    close(ours(images), theirs(images).last_hidden_state)
    larger = torch.randn(1, 3, image_size + patch_size, image_size + 3 * patch_size)
    close(ours(larger), theirs(larger, interpolate_pos_encoding=True).last_hidden_state)

LLAMAS = [dict(num_attention_heads=4, num_key_value_heads=4),
          dict(num_attention_heads=6, num_key_value_heads=2),
          dict(num_attention_heads=4, num_key_value_heads=1, head_dim=32),
          dict(num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=True),
          dict(num_attention_heads=3, num_key_value_heads=3, rms_norm_eps=1e-3, rope_theta=500.0)]

@pytest.fixture(params=LLAMAS, ids=str)
def llama(request, tmp_path):
    "The same Llama twice: ours, and transformers'."
    options = dict(request.param)
    if "rope_theta" in options and int(transformers.__version__.split(".")[0]) >= 5:
        options["rope_parameters"] = dict(rope_type="default", rope_theta=options.pop("rope_theta"))
    config = LlamaConfig(vocab_size=120, hidden_size=48, intermediate_size=100, num_hidden_layers=3,
                         max_position_embeddings=256, **options)
    theirs = randomised(LlamaForCausalLM(config))
    theirs.save_pretrained(tmp_path)
    return LanguageModel.from_pretrained(tmp_path), theirs

def padded_prompts():
    "Three prompts of different length, flush right."
    ids, mask = torch.randint(3, 120, (3, 17)), torch.ones(3, 17, dtype=torch.long)
    mask[0, :9], mask[2, :4] = 0, 0
    return ids, mask

def test_llama_logits(llama):
    ours, theirs = llama
    ids = torch.randint(0, 120, (2, 40))
    close(ours(ids), theirs(ids).logits)

def test_llama_left_padding(llama):
    ours, theirs = llama
    ids, mask = padded_prompts()
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    expected = theirs(ids, attention_mask=mask, position_ids=positions).logits
    result = ours(ids, attention_mask=mask)
    assert result.isfinite().all()
    close(result[mask.bool()], expected[mask.bool()])

@pytest.mark.parametrize("chunks", [(1,) * 12, (5, 7), (3, 1, 8), (12,)])
def test_cache_takes_chunks_of_any_length(llama, chunks):
    ours, _ = llama
    ids = torch.randint(0, 120, (2, 12))
    with torch.no_grad():
        cache = ours.text_model.new_cache(2, 12)
        parts = [ours(part, cache=cache) for part in ids.split(chunks, 1)]
        close(torch.cat(parts, 1), ours(ids))

def test_cache_with_padding(llama):
    ours, _ = llama
    ids, mask = padded_prompts()
    with torch.no_grad():
        cache, whole = ours.text_model.new_cache(3, 17), ours(ids, attention_mask=mask)
        def read(a, b): return ours(ids[:, a:b], attention_mask=mask[:, :b], cache=cache)
        parts = [read(0, 6), read(6, 7), read(7, 17)]
    close(torch.cat(parts, 1)[mask.bool()], whole[mask.bool()])

def test_greedy_generation(llama):
    ours, theirs = llama
    ids, mask = padded_prompts()
    free = generate(ours, ids, attention_mask=mask, max_new_tokens=24)
    end = int(free[1, 5]) # a token that is certain to come up
    for eos in (None, end):
        expected = theirs.generate(ids, attention_mask=mask, max_new_tokens=24, do_sample=False,
                                   eos_token_id=eos, pad_token_id=0)[:, 17:]
        result = generate(ours, ids, attention_mask=mask, max_new_tokens=24, eos_token_id=eos)
        assert result.shape == expected.shape
        for row, other in zip(result.tolist(), expected.tolist()):
            length = row.index(end) + 1 if eos is not None and end in row else len(row)
            assert row[:length] == other[:length]
            assert set(row[length:]) <= {end}

@pytest.mark.parametrize("top_p", [0.05, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("top_k", [0, 1, 7])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_sampling_filters(temperature, top_k, top_p):
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
    logits = torch.randn(64, 50) * 3
    expected = TemperatureLogitsWarper(temperature)(None, logits)
    if top_k: expected = TopKLogitsWarper(top_k)(None, expected)
    expected = TopPLogitsWarper(top_p)(None, expected)
    result = filter_logits(logits, temperature, top_k, top_p)
    torch.testing.assert_close(result.softmax(-1), expected.softmax(-1))

CONFIGS = {
    "tiny": VLMConfig.tiny(),
    "r = 4, untied": VLMConfig(
        VisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                     image_size=64, patch_size=8),
        TextConfig(vocab_size=300, hidden_size=48, intermediate_size=80, num_hidden_layers=3,
                   num_attention_heads=6, num_key_value_heads=2, tie_word_embeddings=False), 4, 7),
    "r = 1, rope": VLMConfig(
        VisionConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1,
                     image_size=24, patch_size=8),
        TextConfig(vocab_size=99, hidden_size=24, intermediate_size=40, num_hidden_layers=2,
                   num_attention_heads=2, num_key_value_heads=1, rope_theta=300.0, rms_norm_eps=1e-3), 1, 98)}

@pytest.fixture(params=CONFIGS, ids=str)
def vlm(request, tmp_path):
    "Ours, and transformers' Idefics3 from the folder that ours wrote."
    ours = randomised(VisionLanguageModel(CONFIGS[request.param]))
    ours.save_pretrained(tmp_path)
    theirs, info = AutoModelForImageTextToText.from_pretrained(
        tmp_path, output_loading_info=True, dtype=torch.float32)
    assert not any(info.values()), info
    return ours, fix_positions(theirs)

def vlm_batch(config, images_per_row=1, length=60):
    "Two rows with as many images each, apart from one another."
    ids, n = torch.randint(8, 90, (2, length)), config.image_seq_len
    for i in range(images_per_row):
        start = 3 + i * (n + 1)
        ids[:, start:start + n] = config.image_token_id
    side = config.vision_config.image_size
    return ids, torch.randn(2 * images_per_row, 3, side, side)

@pytest.mark.parametrize("images_per_row", [1, 3])
def test_idefics3(vlm, images_per_row):
    ours, theirs = vlm
    ids, pixels = vlm_batch(ours.config, images_per_row)
    stacked = pixels.unflatten(0, (2, images_per_row))
    close(ours(ids, pixels), theirs(input_ids=ids, pixel_values=stacked).logits)
    labels = torch.where(torch.rand(ids.shape) < 0.2, ids, -100)
    close(ours(ids, pixels, labels=labels), theirs(input_ids=ids, pixel_values=stacked, labels=labels).loss)

def test_idefics3_gradients(vlm):
    ours, theirs = vlm
    ids, pixels = vlm_batch(ours.config)
    labels = torch.where(torch.rand(ids.shape) < 0.3, ids, -100)
    ours(ids, pixels, labels=labels).backward()
    theirs(input_ids=ids, pixel_values=pixels[:, None], labels=labels).loss.backward()
    expected = dict(theirs.named_parameters())
    for name, p in ours.named_parameters():
        close(p.grad, expected[name if name == "lm_head.weight" else "model." + name].grad)

def test_text_only_rows(vlm):
    ours, theirs = vlm
    ids = torch.randint(8, 90, (2, 11))
    close(ours(ids), theirs(input_ids=ids).logits)

def test_round_trip_through_transformers_keeps_every_bit(vlm, tmp_path):
    ours, theirs = vlm
    theirs.save_pretrained(tmp_path / "theirs")
    again = VisionLanguageModel.from_pretrained(tmp_path / "theirs")
    assert again.config == ours.config
    for name, tensor in ours.state_dict().items(): assert torch.equal(tensor, again.state_dict()[name]), name

def test_bf16_weights_stay_bf16(model):
    model = model.bfloat16()
    ids, pixels = vlm_batch(model.config)
    assert model(ids, pixels.bfloat16()).dtype is torch.bfloat16
    assert generate(model, ids, pixels.bfloat16(), max_new_tokens=3).shape == (2, 3)
