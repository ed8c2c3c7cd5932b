"What the planner predicts is what a step takes."
from dataclasses import replace
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from nanovlm.bench import LiveBytes, full_size, training_batch
from nanovlm.frozen import add_lora
from nanovlm.model import VisionLanguageModel, VLMConfig
from nanovlm.scaling import GPUS, Plan, kept_for_backward, largest_batch, training_work
from nanovlm.training import TrainConfig, parameter_groups, speed_up

SMALL = replace(full_size(quick=True), text_config=replace(full_size(quick=True).text_config, vocab_size=49280))

@pytest.mark.parametrize("frozen, cached, lora", [(False, False, 0), (True, False, 0), (True, True, 0), (False, False, 1), (True, True, 1)])
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
    with FlopCounterMode(display=False) as counter: model(ids, pixels, labels=torch.where(batch["labels"] < 0, -100, ids)).backward()
    work = training_work(config, rows, rows, 60, 5, frozen, cached, lora > 0)
    assert sum(n for part, n in work.items() if part != "attention") == pytest.approx(counter.get_total_flops(), rel=0.06 if lora else 0.002)

def test_attention_is_counted_twice_over(): # scores and sums, forward once and back twice
    work = training_work(VLMConfig.tiny(), squares=1, rows=1, tokens=10, labelled=1)
    v, t = VLMConfig.tiny().vision_config, VLMConfig.tiny().text_config
    assert work["attention"] == 3 * 2 * 2 * (v.grid**4 * v.hidden_size * v.num_hidden_layers + 10 * 10 * t.hidden_size * t.num_hidden_layers)

@pytest.mark.parametrize("options", [dict(), dict(checkpointing=True), dict(freeze_vision=True), dict(freeze_vision=True, cache_features=True, lora=4)], ids=str)
def test_memory_is_what_a_step_holds(options):
    plan = Plan(SMALL, "cpu", rows=8, tokens=177, labelled=12, **options)
    model = VisionLanguageModel(SMALL)
    config = TrainConfig(optimizer="adamw", checkpointing=plan.checkpointing, lr_vision=0.0 if plan.freeze_vision else 1e-3, lora=plan.lora, shift=0, cache_features=plan.cache_features)
    if plan.lora: add_lora(model, plan.lora)
    groups = parameter_groups(model, config)
    speed_up(model, config)
    def batch(rows):
        made = training_batch(SMALL, rows) | dict(attention_mask=torch.ones(rows, 1, 177, 177).bool().tril())
        return made | (dict(pixel_values=model.vision_model(made["pixel_values"]).detach()) if plan.cache_features else {})
    model(**batch(1)).backward()
    eight = batch(8)
    with LiveBytes(model) as counted: model(**eight).backward()
    parts = plan.memory()
    assert parts["weights"] == 4 * sum(p.numel() for p in model.parameters())
    assert parts["gradients"] == parts["optimizer"] / 2 == 4 * sum(p.numel() for g in groups["adamw"] for p in g["params"])
    predicted = sum(size for part, size in parts.items() if part != "optimizer")
    assert predicted == pytest.approx(counted.peak, rel=0.12)

def test_what_is_kept_grows_with_the_batch_and_shrinks_in_half_precision():
    one, eight = (sum(kept_for_backward(VLMConfig.tiny(), n, n, 60, 5).values()) for n in (1, 8))
    half = sum(kept_for_backward(VLMConfig.tiny(), 8, 8, 60, 5, torch.bfloat16).values())
    assert eight == pytest.approx(8 * one, rel=0.02) and 0.5 < half / eight < 0.95

def test_the_largest_batch_fits_and_twice_as_many_do_not():
    plan = Plan(VLMConfig.tiny(), "t4", rows=4, tokens=200)
    most = largest_batch(plan)
    total = lambda rows: sum(replace(plan, rows=rows, squares=rows).memory().values())
    assert most > 100 and total(most) < 0.95 * GPUS["t4"][1] <= total(2 * most)

@pytest.mark.parametrize("wrong, message", [(dict(gpu="b200"), "'b200'.*t4"), (dict(rows=0), "rows is 0"), (dict(tokens=-1), "tokens is -1"), (dict(optimizer="sgd"), "'sgd'"), (dict(mfu=0.0), "mfu is 0.0")])
def test_a_plan_that_cannot_be_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message): Plan(VLMConfig.tiny(), **wrong)

def test_the_command_prints_a_plan(cli):
    result = cli("plan", "--model", "tiny", "--gpu", "l4", "--rows", 64, "--checkpointing")
    assert result.returncode == 0 and "fits" in result.stdout and "samples/s" in result.stdout and "largest batch" in result.stdout, result.stderr
    assert cli("plan", "--gpu", "b200").returncode == 2
