"What the planner predicts is what a step takes."
from dataclasses import replace
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from nanovlm import scaling
from nanovlm.bench import full_size, training_batch
from nanovlm.cli import main
from nanovlm.frozen import add_lora
from nanovlm.model import VisionLanguageModel, VLMConfig
from nanovlm.scaling import GPUS, LiveBytes, Plan, kept_for_backward, largest_batch, mfu_meter, training_work
from nanovlm.training import TrainConfig, parameter_groups, wrap_layers

QUICK = full_size(quick=True)
SMALL = replace(QUICK, text_config=replace(QUICK.text_config, vocab_size=49280))

@pytest.mark.parametrize("frozen, cached, lora", [
    (False, False, 0), (True, False, 0), (True, True, 0), (False, False, 1), (True, True, 1)])
@pytest.mark.parametrize("rows", [1, 3])
def test_operations_are_those_pytorch_counts(rows, frozen, cached, lora):
    "Its counter leaves a CPU's attention out, and counts the additions of LoRA, which we do not."
    config, model = VLMConfig.tiny(), VisionLanguageModel(VLMConfig.tiny())
    if lora: add_lora(model, lora)
    parameter_groups(model, TrainConfig(lr_vision=0.0 if frozen else 1e-3, lora=lora)) # freezes
    pixels = torch.randn(rows, 3, 64, 64)
    if cached: pixels = model.vision_model(pixels).detach()
    batch = training_batch(SMALL, rows, length=60, labelled=5)
    ids = batch["input_ids"] % 400 + 10
    ids[:, 4:20] = config.image_token_id
    labels = torch.where(batch["labels"] < 0, -100, ids)
    with FlopCounterMode(display=False) as counter: model(ids, pixels, labels=labels).backward()
    work = training_work(config, rows, rows, 60, 5, frozen, cached, lora > 0)
    ours = sum(n for part, n in work.items() if part != "attention")
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.06 if lora else 0.002)

def test_attention_is_counted_twice_over(): # scores and sums, forward once and back twice
    work = training_work(VLMConfig.tiny(), squares=1, rows=1, tokens=10, labelled=1)
    v, t = VLMConfig.tiny().vision_config, VLMConfig.tiny().text_config
    vision = v.grid**4 * v.hidden_size * v.num_hidden_layers
    text = 10 * 10 * t.hidden_size * t.num_hidden_layers
    assert work["attention"] == 3 * 2 * 2 * (vision + text)

@pytest.mark.parametrize("options", [
    dict(), dict(checkpointing=True), dict(freeze_vision=True),
    dict(freeze_vision=True, cache_features=True, lora=4)], ids=str)
def test_memory_is_what_a_step_holds(options):
    plan = Plan(SMALL, "cpu", rows=8, tokens=177, labelled=12, **options)
    model = VisionLanguageModel(SMALL)
    config = TrainConfig(optimizer="adamw", lr_vision=0.0 if plan.freeze_vision else 1e-3,
                         shift=0, lora=plan.lora, checkpointing=plan.checkpointing,
                         cache_features=plan.cache_features)
    if plan.lora: add_lora(model, plan.lora)
    groups = parameter_groups(model, config)
    wrap_layers(model, config)
    def batch(rows):
        mask = torch.ones(rows, 1, 177, 177).bool().tril()
        made = training_batch(SMALL, rows) | dict(attention_mask=mask)
        if plan.cache_features: made["pixel_values"] = model.vision_model(made["pixel_values"]).detach()
        return made
    model(**batch(1)).backward()
    eight = batch(8)
    with LiveBytes(model) as counted: model(**eight).backward()
    parts = plan.memory()
    assert parts["weights"] == 4 * sum(p.numel() for p in model.parameters())
    learnt = sum(p.numel() for g in groups["adamw"] for p in g["params"])
    assert parts["gradients"] == parts["optimizer"] / 2 == 4 * learnt
    predicted = sum(size for part, size in parts.items() if part != "optimizer")
    assert predicted == pytest.approx(counted.peak, rel=0.08)

def test_what_is_kept_grows_with_the_batch_and_shrinks_in_half_precision():
    def kept(n, half=None): return sum(kept_for_backward(VLMConfig.tiny(), n, n, 60, 5, half).values())
    one, eight, half = kept(1), kept(8), kept(8, torch.bfloat16)
    assert eight == pytest.approx(8 * one, rel=0.02) and 0.5 < half / eight < 0.95

def test_the_largest_batch_fits_and_twice_as_many_do_not():
    plan = Plan(VLMConfig.tiny(), "t4", rows=4, tokens=200)
    most = largest_batch(plan)
    def total(rows): return sum(replace(plan, rows=rows, squares=rows).memory().values())
    assert most > 100 and total(most) < 0.95 * GPUS["t4"][1] <= total(2 * most)

@pytest.mark.parametrize("wrong, message", [
    (dict(gpu="b200"), "'b200'.*t4"), (dict(rows=0), "rows is 0"), (dict(tokens=-1), "tokens is -1"),
    (dict(optimizer="sgd"), "'sgd'.*adamw"), (dict(mfu=0.0), "mfu is 0.0"), (dict(lora=-1), "lora is -1"),
    (dict(cache_features=True), "freeze_vision")])
def test_a_plan_that_cannot_be_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message): Plan(VLMConfig.tiny(), **wrong)

@pytest.mark.parametrize("gpu", [None, "t4"])
def test_the_meter_divides_the_work_by_the_time(gpu, monkeypatch):
    monkeypatch.setattr(scaling, "this_gpu", lambda: gpu)
    config = TrainConfig(lr_vision=0.0, lora=2)
    line = dict(samples=6, images=4, tokens=300, labelled=30, step_seconds=0.25, processes=2)
    work = sum(training_work(VLMConfig.tiny(), 4, 6, 50, 5, freeze_vision=True, lora=True).values())
    speed = mfu_meter(VLMConfig.tiny(), config)(line)
    assert speed.pop("tflops") == pytest.approx(work / 0.25 / 1e12)
    assert speed == ({"mfu": pytest.approx(work / 0.25 / 2 / 65e12)} if gpu else {})

def test_the_command_prints_a_plan(capsys):
    main("plan --model tiny --gpu l4 --rows 64 --checkpointing".split())
    said = capsys.readouterr().out
    assert "fits" in said and "samples/s" in said and "largest batch" in said
    with pytest.raises(SystemExit) as stop: main(["plan", "--gpu", "b200"])
    assert stop.value.code == 2
