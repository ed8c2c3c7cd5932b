"The short way of one token says what the model says."
import shutil
import pytest
import torch
from torch import nn
from nanovlm.fast import FastDecoder, attention_spelt_out, signed_tables, spelt_out
from nanovlm.generation import generate
from nanovlm.language import LanguageModel, TextConfig
from nanovlm.quantise import Int8Linear, quantise
from nanovlm.rope import apply_rope, rope_tables

SIZES = { # name: heads, key-value heads, head_dim, layers
    "one head": (1, 1, 16, 1), "no sharing": (4, 4, 8, 2), "all share": (4, 1, 8, 3),
    "SmolLM2's heads": (9, 3, 64, 2), "wide heads": (3, 1, 40, 2)}

def small(name="SmolLM2's heads"):
    heads, kv_heads, head_dim, layers = SIZES[name]
    torch.manual_seed(0)
    config = TextConfig(vocab_size=90, hidden_size=48, intermediate_size=96, num_hidden_layers=layers,
                        num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=head_dim,
                        max_position_embeddings=200)
    return LanguageModel(config).eval()

def prompts(rows=4, length=9):
    ids = torch.randint(1, 90, (rows, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    for row in range(rows): mask[row, :2 * row] = 0
    return dict(input_ids=ids, attention_mask=mask)

class Watched(FastDecoder):
    "Counts how often the short way was taken."
    taken = 0
    def step(self, *args):
        self.taken += 1
        return super().step(*args)

@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("given", [prompts(1), prompts(4), prompts(1, 1),
                                   dict(input_ids=prompts()["input_ids"])],
                         ids=["one row", "rows of different length", "one token", "no mask"])
def test_tokens_are_the_same(name, given):
    model = small(name)
    fast = Watched(model)
    for ends in (None, [*range(12)]): # with some, rows end early and leave
        tokens = [generate(m, **given, max_new_tokens=64, eos_token_id=ends) for m in (model, fast)]
        assert torch.equal(*tokens)
    assert fast.taken > 64

@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_steps_say_the_same():
    model = small()
    fast = Watched(model, compile=True)
    for given in (prompts(1), prompts(3)):
        assert torch.equal(*[generate(m, **given, max_new_tokens=40) for m in (model, fast)])
    assert fast.taken > 70

@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on a CPU")
def test_what_is_compiled_for_one_model_does_not_serve_another():
    plain, other = small("wide heads"), small("wide heads")
    for layer in other.text_model.layers: layer.input_layernorm.eps = 1.0 # a field that no guard looks at
    for model in (plain, other):
        assert torch.equal(*[generate(m, **prompts(1), max_new_tokens=20)
                             for m in (model, FastDecoder(model, compile=True))])

@pytest.mark.parametrize("dtype, near", [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("rows, bias", [(1, False), (1, True), (4, False)])
def test_a_product_spelt_out_is_a_product(rows, bias, dtype, near):
    torch.manual_seed(0)
    linear, x = nn.Linear(40, 24, bias=bias, dtype=dtype), torch.randn(rows, 1, 40, dtype=dtype)
    torch.testing.assert_close(spelt_out(linear, x), linear(x), atol=near, rtol=near)

@pytest.mark.parametrize("rows, bias", [(1, False), (1, True), (4, False)])
def test_a_product_in_int8_spelt_out_is_that_product(rows, bias):
    torch.manual_seed(0)
    packed, x = Int8Linear(nn.Linear(48, 24, bias=bias)), torch.randn(rows, 1, 48)
    with torch.no_grad(): found, wanted = spelt_out(packed, x), packed(x)
    assert found.dtype == torch.float32 and (found - wanted).abs().max() < 0.02 * wanted.abs().max() # x in bfloat16

@pytest.mark.parametrize("dtype, near", [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("rows, group, masked", [(1, 1, False), (1, 3, False), (2, 3, False), (2, 3, True)])
def test_attention_spelt_out_is_attention(rows, group, masked, dtype, near):
    torch.manual_seed(0)
    queue = torch.randn(rows, 2, group, 16, dtype=dtype)
    keys, values = torch.randn(2, rows, 2, 7, 16, dtype=dtype).unbind(0)
    mask = torch.ones(rows, 1, 1, 7, dtype=torch.bool) if masked else None
    if masked: mask[0, ..., :3] = False
    wanted = nn.functional.scaled_dot_product_attention(queue, keys, values, mask)
    torch.testing.assert_close(attention_spelt_out(queue, keys, values, mask), wanted, atol=near, rtol=near)

@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SIZES)
def test_sorted_products_say_the_same(name, dtype):
    model = small(name).to(dtype)
    fast = Watched(model, sort=True)
    assert len(fast.product.copies) == 7 * len(model.text_model.layers) + 1
    with torch.inference_mode():
        for part in fast.product.copies:
            x = torch.randn(3, 1, part.in_features, dtype=dtype)
            near = 1e-5 if dtype == torch.float32 else 2e-2
            torch.testing.assert_close(fast.product(part, x), part(x), atol=near, rtol=near)
    if dtype == torch.float32:
        for given in (prompts(1), prompts(4)):
            assert torch.equal(*[generate(m, **given, max_new_tokens=30) for m in (model, fast)])
        assert fast.taken > 50

def test_layers_without_a_sorted_copy_are_called():
    model = quantise(small(), "int4")
    fast = Watched(model, sort=True)
    assert not fast.product.copies
    assert torch.equal(*[generate(m, **prompts(), max_new_tokens=20) for m in (model, fast)]) and fast.taken

def test_compiled_and_sorted_at_once_is_refused():
    with pytest.raises(ValueError, match="choose compile for one row, sort for several"):
        FastDecoder(small(), compile=True, sort=True)

def test_logits_are_the_same_to_the_last_digits():
    model = small()
    given = prompts()
    caches = [model.text_model.new_cache(4, 20) for _ in "ab"]
    for m, cache in zip((model, FastDecoder(model)), caches): m(**given, cache=cache)
    mask = torch.cat([given["attention_mask"], torch.ones(4, 1, dtype=torch.long)], 1)
    token = torch.tensor([[3], [4], [5], [6]])
    with torch.inference_mode():
        plain, fast = (m(token, attention_mask=mask, cache=cache)
                       for m, cache in zip((model, FastDecoder(model)), caches))
    assert plain.shape == fast.shape == (4, 1, 90)
    assert (plain - fast).abs().max() < 1e-5 and caches[0][0].length == caches[1][0].length == 10

def test_a_rotated_head_is_the_same():
    config = small().text_model.config
    x = torch.randn(2, 9, 30, 64)
    cos, sin = signed_tables(config, 30, x)
    plain = apply_rope(x, *rope_tables(torch.arange(30)[None], 64, config.rope_theta))
    assert torch.equal(x * cos + x.roll(32, -1) * sin, plain)

def test_pictures_and_the_tiny_model(model, processor, rows):
    batch = processor(rows[0]["images"][0], "what color is the shape?")
    fast = Watched(model)
    assert torch.equal(*[generate(m, **batch, max_new_tokens=12) for m in (model, fast)])
    assert fast.taken == 11 # the first token comes with the prompt

@pytest.mark.parametrize("where", ["layer", "attention", "mlp"])
def test_a_layer_that_is_watched_is_called(where):
    model, seen = small(), []
    layer = model.text_model.layers[1]
    part = dict(layer=layer, attention=layer.self_attn, mlp=layer.mlp)[where]
    fast = Watched(model)
    handle = part.register_forward_pre_hook(lambda *args: seen.append(1))
    generate(fast, **prompts(), max_new_tokens=8)
    assert len(seen) == 8 and fast.taken == 0
    handle.remove()
    generate(fast, **prompts(), max_new_tokens=8)
    assert len(seen) == 8 and fast.taken == 7

def test_other_modules_may_stand_in_for_linear_layers():
    class Halves(nn.Module): # a product in two parts, as a packed matrix might do it
        def __init__(self, linear):
            super().__init__()
            self.parts = linear.weight.data.chunk(2)
        def forward(self, x): return torch.cat([x @ part.T for part in self.parts], -1)
    model = small()
    for layer in model.text_model.layers:
        layer.self_attn.q_proj = Halves(layer.self_attn.q_proj)
        layer.mlp.down_proj = Halves(layer.mlp.down_proj)
    model.lm_head = Halves(model.lm_head)
    assert torch.equal(*[generate(m, **prompts(), max_new_tokens=20) for m in (model, FastDecoder(model))])

def test_a_full_cache_is_refused_as_the_model_does():
    model = small()
    cache = model.text_model.new_cache(1, 9)
    fast = FastDecoder(model)
    fast(prompts(1)["input_ids"], cache=cache)
    with pytest.raises(ValueError, match="the cache holds 9 positions"):
        fast(torch.tensor([[3]]), cache=cache)
