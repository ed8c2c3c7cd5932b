"Weights in int8 and int4: they stay near, keep their files, run compiled, and refuse what cannot be."
import copy, json
from dataclasses import replace
import pytest, torch
from torch import nn
from nanovlm import VisionLanguageModel, VLMConfig, load
from nanovlm.cli import main
from nanovlm.hub import model_card
from nanovlm.language import LanguageModel, TextConfig
from nanovlm.quantise import (GROUP, WIDTHS, Int4Linear, Int8Linear, as_floats, input_squares, load_quantised,
                              pack_nibbles, quantise, random_squares, round_int4, round_int8, unpack_nibbles)
from nanovlm.training import TrainConfig, train

widths = pytest.mark.parametrize("weights", WIDTHS)

@pytest.fixture(scope="module")
def tiny(): return load("tiny")

@pytest.fixture(scope="module")
def small(tiny): return {weights: quantise(copy.deepcopy(tiny[0]), weights) for weights in WIDTHS}

def numbers(*shape): return torch.randn(shape, generator=torch.Generator().manual_seed(0))

def inputs(): return dict(input_ids=torch.tensor([[5] * 16 + [7, 8, 9]]), pixel_values=numbers(1, 3, 64, 64))

@pytest.mark.parametrize("weight", [numbers(16, 64), torch.zeros(16, 64), torch.full((16, 64), 0.3),
                                    numbers(16, 64) * 1e-8 + 5, numbers(16, 64) * 1e6])
@pytest.mark.parametrize("rounding, steps", [(round_int8, 127), (round_int4, 7)])
def test_a_weight_moves_by_half_a_step(weight, rounding, steps):
    "Of a row in int8, of a group in int4; and some thousandths, since scales are in bfloat16."
    moved = (as_floats(*rounding(weight)) - weight).abs()
    assert (moved <= 0.51 * weight.abs().amax(1, keepdim=True) / steps + 1e-30).all()

uneven = torch.logspace(-3, 3, 64) # squares of inputs

def harm(weight, squares, rounded): return ((rounded - weight).square() * squares).sum().item()

@pytest.mark.parametrize("weight", [numbers(16, 64), numbers(16, 64).exp(), numbers(16, 64) * 1e-8,
                                    numbers(16, 64) * 1e6])
def test_a_fitted_grid_does_less_harm_to_outputs(weight):
    plain, fitted = as_floats(*round_int4(weight)), as_floats(*round_int4(weight, uneven))
    assert harm(weight, uneven, fitted) < 0.75 * harm(weight, uneven, plain)
    same = as_floats(*round_int4(weight, torch.ones(64)))
    assert harm(weight, 1, same) < harm(weight, 1, plain)

@pytest.mark.parametrize("squares", [torch.zeros(64), torch.eye(64)[3], torch.full((64,), 1e-20)])
@pytest.mark.parametrize("weight", [numbers(16, 64), torch.zeros(16, 64), torch.full((16, 64), 0.3)])
def test_idle_inputs_and_even_groups_are_fitted_too(weight, squares):
    q, scales = round_int4(weight, squares)
    moved = (as_floats(q, scales) - weight).abs()
    assert torch.isfinite(scales).all() and q.max() <= 15 and moved.max() <= 0.5 * weight.abs().max()

def test_the_sums_of_squares_are_those_of_each_input():
    first, second = nn.Linear(4, 3), nn.Linear(3, 2)
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.idle = first, second, nn.Linear(2, 2)
        def forward(self, x): return self.second(self.first(x))
    x, more = numbers(2, 5, 4), numbers(1, 4)
    model = Model()
    squares = input_squares(model, [dict(x=x), dict(x=more)])
    rows = torch.cat([x.flatten(0, 1), more])
    assert set(squares) == {first, second} and torch.allclose(squares[first], rows.square().sum(0))
    assert torch.allclose(squares[second], first(rows).square().sum(0))
    assert not first._forward_pre_hooks
    with pytest.raises(TypeError): input_squares(model, [dict(y=x)])
    assert not first._forward_pre_hooks

@pytest.fixture(scope="module")
def plain(tiny): return quantise(copy.deepcopy(tiny[0]), "int4", ())

some, other = torch.randint(30, 90, (2, 16, 40), generator=torch.Generator().manual_seed(0))

def sums_of(ids): return lambda model: input_squares(model, [dict(input_ids=ids)])

@pytest.mark.parametrize("examples, measured", [([dict(input_ids=some)], sums_of(other)),
                                                (None, lambda model: random_squares(model.text_model))])
def test_what_is_read_fits_the_layers_that_it_reaches(tiny, plain, examples, measured):
    "An eye without images is rounded plainly. None: random tokens, image tokens among them."
    fitted = quantise(copy.deepcopy(tiny[0]), "int4", examples)
    squares = measured(tiny[0])
    count = 0
    for name, layer in tiny[0].named_modules():
        if not isinstance(fitted.get_submodule(name), Int4Linear): continue
        parts = [model.get_submodule(name) for model in (fitted, plain)]
        near, far = [as_floats(part.numbers(), part.scales) for part in parts]
        if layer not in squares: assert torch.equal(near, far)
        else: assert harm(layer.weight, squares[layer], near) < 0.9 * harm(layer.weight, squares[layer], far)
        count += layer in squares
    assert count == 5 # of the decoder's layer, all but k_proj and v_proj

def test_random_tokens_are_the_same_each_time_and_fit_the_context():
    decoder = LanguageModel(TextConfig(64, 64, 128, 1, 2, 1, max_position_embeddings=24)).text_model
    seen = []
    handle = decoder.register_forward_pre_hook(lambda *given: seen.append(given[2]["x"]), with_kwargs=True)
    first, second = random_squares(decoder), random_squares(decoder)
    handle.remove()
    assert seen[0].shape == (16, 24, 64) and torch.equal(*seen)
    assert len(first) == 7 and all(torch.equal(first[layer], second[layer]) for layer in first)

@pytest.mark.parametrize("weights, options", [("int8", ()), ("int4", [()])])
def test_nothing_is_read_where_nothing_is_fitted(tiny, weights, options, monkeypatch, tmp_path):
    "Nor when a saved model is opened, or an empty one made."
    from nanovlm import quantise as module
    monkeypatch.setattr(module, "random_squares", None) # a call would fail
    model = quantise(copy.deepcopy(tiny[0]), weights, *options)
    model.save_pretrained(tmp_path)
    with torch.inference_mode(): assert torch.equal(load_quantised(tmp_path)(**inputs()), model(**inputs()))

def test_nibbles_come_back():
    q = torch.randint(0, 16, (16, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(unpack_nibbles(pack_nibbles(q)), q)
    assert pack_nibbles(torch.tensor([[3, 10]], dtype=torch.uint8)).tolist() == [[3 + 16 * 10]]

@pytest.mark.parametrize("N, K", [(16, 32), (48, 96), (80, 64), (256, 64), (64, 256), (1536, 576)])
def test_packed_int4_gives_its_numbers_back(N, K):
    "Also where the rows do not fill the processor's blocks."
    linear = nn.Linear(K, N, bias=False)
    assert torch.equal(Int4Linear(linear).numbers(), round_int4(linear.weight.detach())[0])

@pytest.mark.parametrize("rows", [1, 4, 33, 64])
@pytest.mark.parametrize("layer, N, K", [(Int8Linear, 64, 64), (Int8Linear, 13, 48), (Int8Linear, 13, 24),
                                         (Int8Linear, 3, 33), (Int4Linear, 64, 64), (Int4Linear, 48, 96)])
@torch.no_grad()
def test_a_layer_multiplies_by_what_was_rounded(layer, N, K, rows):
    "K = 24 and 33: there, PyTorch's int8 product reads beyond the row, or ends the process."
    linear = nn.Linear(K, N)
    packed = layer(linear)
    rounding = round_int8 if layer is Int8Linear else round_int4
    x = numbers(2, rows, K)
    exact = x @ as_floats(*rounding(linear.weight)).T + linear.bias
    for dtype in (torch.float32, torch.bfloat16):
        packed.bias = nn.Parameter(linear.bias.to(dtype))
        y = packed(x.to(dtype))
        assert y.shape == exact.shape and y.dtype == dtype
        assert (y.float() - exact).norm() < 0.01 * exact.norm()

@pytest.mark.parametrize("layer", [Int8Linear, Int4Linear])
@torch.no_grad()
def test_a_view_that_begins_anywhere_is_read(layer):
    packed = layer(nn.Linear(64, 64))
    x = numbers(1, 65).bfloat16()[:, 1:]
    assert torch.equal(packed(x), packed(x.clone()))

@widths
def test_a_model_keeps_its_ties_and_its_scores(tiny, small, weights):
    model = small[weights]
    assert model.lm_head.weight is model.text_model.embed_tokens.weight
    assert not any(isinstance(part, nn.Linear) for part in model.modules())
    with torch.inference_mode():
        exact, given = tiny[0](**inputs()), model(**inputs())
    assert (given - exact).norm() < dict(int8=0.02, int4=0.15)[weights] * exact.norm()
    layer = model.text_model.layers[0]
    assert isinstance(layer.self_attn.k_proj, Int8Linear) # also in int4
    assert isinstance(layer.self_attn.v_proj, Int8Linear)

@widths
def test_an_untied_model_and_a_language_model_are_quantised(weights):
    config = VLMConfig.tiny()
    text = replace(config.text_config, tie_word_embeddings=False)
    untied = VisionLanguageModel(replace(config, text_config=text)).eval()
    alone = LanguageModel(TextConfig(64, 64, 128, 1, 2, 1)).eval()
    for model in (untied, alone):
        with torch.inference_mode(): before = model(torch.tensor([[7, 8]]))
        with torch.inference_mode(): after = quantise(model, weights)(torch.tensor([[7, 8]]))
        assert (after - before).norm() < 0.3 * before.norm()
    assert not torch.equal(untied.lm_head.weight, untied.text_model.embed_tokens.weight)

@widths
def test_layers_run_compiled_in_one_graph(small, weights):
    mlp = small[weights].text_model.layers[0].mlp
    whole = torch.compile(mlp, fullgraph=True, backend="aot_eager")
    for rows in (1, 40):
        x = numbers(1, rows, 64)
        with torch.inference_mode(): assert torch.allclose(whole(x), mlp(x), atol=1e-5)

@widths
def test_a_file_gives_the_same_model_back(tiny, small, weights, tmp_path):
    small[weights].save_pretrained(tmp_path)
    tiny[1].save_pretrained(tmp_path)
    model, _ = load(tmp_path)
    with torch.inference_mode(): assert torch.equal(model(**inputs()), small[weights](**inputs()))
    half, _ = load(tmp_path, dtype="bfloat16")
    pixels = inputs()["pixel_values"].bfloat16()
    with torch.inference_mode(): assert half(inputs()["input_ids"], pixels).dtype == torch.bfloat16
    half.save_pretrained(tmp_path)
    assert load(tmp_path)[0].text_model.norm.weight.dtype == torch.bfloat16
    with pytest.raises(ValueError, match=f"model_type 'idefics3_{weights}'"):
        VisionLanguageModel.from_pretrained(tmp_path)
    from transformers import AutoConfig
    with pytest.raises(ValueError, match=f"idefics3_{weights}"): AutoConfig.from_pretrained(tmp_path)

@widths
def test_any_checkpoint_is_quantised_while_it_is_opened(small, weights):
    model, _ = load("tiny", weights=weights)
    with torch.inference_mode(): assert torch.equal(model(**inputs()), small[weights](**inputs()))

@pytest.fixture
def stored(tiny, small, tmp_path):
    small["int4"].save_pretrained(tmp_path)
    tiny[1].save_pretrained(tmp_path)
    return tmp_path

@pytest.mark.parametrize("options, says", [
    (dict(weights="int8"), "are in int4, and int8 is asked for"),
    (dict(weights="int3"), "choose int8 or int4"),
    (dict(device="meta"), "for a CPU")])
def test_what_load_cannot_do_is_refused(stored, options, says):
    with pytest.raises(ValueError, match=says): load(stored, **options)

def change(config): config["quantization_config"]["group_size"] = 64
def change_method(config): config["quantization_config"] = dict(quant_method="gptq", bits=4)
def widen(config): config["text_config"]["intermediate_size"] = 512
def deepen(config): config["text_config"]["num_hidden_layers"] = 2

@pytest.mark.parametrize("edit, says", [(change, "nanovlm's own"), (change_method, "gptq"),
                                        (widen, "the config asks for"), (deepen, "tensors missing")])
def test_a_file_that_does_not_fit_is_refused(stored, edit, says):
    file = stored / "config.json"
    config = json.loads(file.read_text())
    edit(config)
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=says): load(stored)

def test_a_quantised_model_neither_learns_nor_is_rounded_again(small):
    with pytest.raises(ValueError, match="do not learn"): copy.deepcopy(small["int4"]).train()
    with pytest.raises(ValueError, match="quantised already"): quantise(small["int4"], "int8")
    with pytest.raises(ValueError, match="choose int8 or int4"): quantise(small["int4"], "int2")

@pytest.mark.parametrize("options", [dict(), dict(lora=2), dict(optimizer="adamw", compile=True)])
def test_training_refuses_a_quantised_model_before_it_begins(tiny, small, options):
    with pytest.raises(ValueError, match="weights in int4 do not learn: load a checkpoint that is not"):
        train(small["int4"], tiny[1], [], TrainConfig(output_dir="", **options))

def test_a_card_says_what_the_weights_are(tiny, small):
    for weights, model in dict(small, float32=tiny[0]).items():
        card = model_card("me/tiny", model.config)
        rounded = weights in WIDTHS
        assert (f"to {weights} (quantised)" in card) == rounded
        assert ("Idefics3" in card) == ("library_name: transformers" in card) == (not rounded)
        assert 'model, processor = load("me/tiny")' in card

def test_a_fifth_of_the_memory_at_full_size():
    from nanovlm.weights import empty_model
    def size(model):
        once = {id(t): t for t in model.state_dict(keep_vars=True).values()}
        return sum(t.nbytes for t in once.values())

    full = empty_model(VisionLanguageModel, VLMConfig.nanovlm_222m())
    before = size(full)
    assert size(quantise(full, "int4")) < 0.185 * before and GROUP == 32

def test_the_command_asks_with_fewer_bits(tmp_path, capsys):
    from PIL import Image
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    main(["ask", "tiny", str(tmp_path / "red.png"), "what color is the shape?", "--weights", "int4"])
    assert capsys.readouterr().out.strip()
