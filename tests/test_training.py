"Training does what it says: right gradients and learning rates, repeatable, and not stopped by a bad row."
import copy, json, math
import pytest
import torch
from datasets import concatenate_datasets
from safetensors.torch import save_file
from nanovlm.data import Examples, collate, from_questions
from nanovlm.model import VisionLanguageModel
from nanovlm.runs import Processes, read_metadata, state_files
from nanovlm.training import (MAY_DIFFER, Muon, TrainConfig, learning_rate, make_optimizers, mean_loss,
                              parameter_groups, train, training_step)

QUIET = dict(output_dir="", progress=False)

def weights(model): return torch.cat([p.detach().flatten() for p in model.parameters()])

@pytest.fixture
def bad(tmp_path):
    "A data set of one row, whose image is none."
    file = tmp_path / "bad.png"
    file.write_text("not an image")
    return from_questions([(file, "what?", "red", "")])

def test_micro_batches_equal_one_batch(rows, model, processor):
    "Rows with a different number of labelled tokens: averaging averages would fail here."
    examples, config = Examples(rows, processor), TrainConfig(**QUIET, optimizer="adamw")
    many = [examples[i] for i in range(3)]
    few = [examples[i] | dict(turns=examples[i]["turns"][:1]) for i in range(3, 8)]
    whole = collate(many + few, questions=100)
    parts = [collate(many, questions=100), collate(few, questions=100)]
    results = []
    for micro in ([whole], parts):
        twin = copy.deepcopy(model)
        loss, norm = training_step(twin, micro, make_optimizers(twin, config), 1.0, config)
        results.append((loss, norm, weights(twin)))
    (loss, norm, after), (loss_of_parts, norm_of_parts, after_parts) = results
    assert loss == pytest.approx(loss_of_parts, abs=1e-5)
    assert norm == pytest.approx(norm_of_parts, rel=1e-4)
    torch.testing.assert_close(after, after_parts, atol=2e-4, rtol=0)

def test_a_step_without_labels_is_an_error(rows, model, processor):
    batch = collate([Examples(rows, processor)[0]])
    batch["labels"][:] = -100
    config = TrainConfig(**QUIET)
    with pytest.raises(ValueError, match="no labelled token"):
        training_step(model, [batch], make_optimizers(model, config), 1.0, config)

def test_one_process_asks_no_device():
    lone = Processes(alone=True)
    lone.device = "cuda:7"
    assert lone.sum(3) == 3 and [*lone.sum(1, 2.5)] == [1, 2.5]

def test_gradients_of_any_layout_are_added(monkeypatch):
    monkeypatch.setattr("torch.distributed.all_reduce", lambda t: t.mul_(2)) # two processes that found the same
    two = Processes(alone=True)
    two.world = 2
    parameters = [torch.nn.Parameter(torch.zeros(2, 3, 4, 4)) for _ in range(2)]
    gradient = torch.randn(2, 3, 4, 4)
    parameters[0].grad = gradient.clone(memory_format=torch.channels_last)
    two.sum_gradients(parameters)
    assert torch.equal(parameters[0].grad, 2 * gradient) and not parameters[1].grad.any()

def test_learning_rate_rises_then_falls():
    config = TrainConfig(steps=200, warmup=0.1, final_lr=0.02)
    rates = [learning_rate(s, config) for s in range(200)]
    assert rates[0] == pytest.approx(1 / 20) and max(rates) == 1.0 == rates[19]
    assert all(a < b for a, b in zip(rates[:19], rates[1:20]))
    assert all(a > b for a, b in zip(rates[20:], rates[21:]))
    assert rates[-1] == pytest.approx(0.02, abs=1e-3)
    assert rates[20 + 90] == pytest.approx(0.02 + 0.98 / 2)

@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_every_parameter_has_one_group_of_its_part(model, optimizer):
    config = TrainConfig(**QUIET, optimizer=optimizer, lr_connector=3e-3, lr_vision=2e-3, lr_text=1e-3)
    groups = [(kind, g) for kind, gs in parameter_groups(model, config).items() for g in gs]
    owner = {id(p): (kind, g["peak"]) for kind, g in groups for p in g["params"]}
    assert sum(len(g["params"]) for _, g in groups) == len(owner) == len(list(model.parameters()))
    for name, p in model.named_parameters():
        kind, peak = owner[id(p)]
        lr = {"connector": 3e-3, "vision_model": 2e-3}.get(name.split(".")[0], 1e-3)
        table = name.endswith(("embed_tokens.weight", "position_embedding.weight"))
        assert peak == pytest.approx(lr * (config.muon_factor if kind == "muon" else 1)), name
        assert kind == ("muon" if optimizer == "muon" and p.ndim > 1 and not table else "adamw"), name

def test_muon_treats_filters_as_a_matrix():
    "A convolution's filters move as the matrix that they are when each is laid flat, momentum included."
    torch.manual_seed(0)
    filters = torch.nn.Parameter(torch.randn(16, 3, 4, 4))
    flat = torch.nn.Parameter(filters.detach().flatten(1).clone())
    optimizers = Muon([filters]), Muon([flat])
    for _ in range(3):
        filters.grad = torch.randn_like(filters)
        flat.grad = filters.grad.flatten(1).clone()
        for optimizer in optimizers: optimizer.step()
    assert torch.equal(filters.flatten(1), flat)

def test_a_rate_of_zero_freezes(rows, model, processor):
    before = {n: p.clone() for n, p in model.named_parameters()}
    config = TrainConfig(**QUIET, steps=2, batch_size=8, lr_vision=0.0)
    train(model, processor, rows.select(range(8)), config)
    for n, p in model.named_parameters(): assert torch.equal(p, before[n]) == n.startswith("vision_model"), n

def test_overfits_one_batch(rows, model, processor):
    config = TrainConfig(**QUIET, steps=120, batch_size=4, questions=8, shift=0)
    history = train(model, processor, rows.select(range(4)), config)
    assert history[0]["loss"] > 1 and history[-1]["loss"] < 0.05

def test_same_seed_same_weights(rows, model, processor):
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        fresh = VisionLanguageModel(model.config)
        config = TrainConfig(**QUIET, steps=3, batch_size=8, seed=seed)
        train(fresh, processor, rows.select(range(32)), config)
        runs.append(weights(fresh))
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])

def test_best_checkpoint_is_kept(rows, model, processor, tmp_path):
    config = TrainConfig(output_dir=str(tmp_path), progress=False, steps=24, batch_size=16, valid_every=8)
    seen, valid = [], rows.select(range(64, 80))
    history = train(model, processor, rows.select(range(64)), config, valid, lambda h: seen.append(len(h)))
    losses = {h["step"]: h["valid_loss"] for h in history if "valid_loss" in h}
    assert seen == [8, 16, 24] == list(losses)
    saved = VisionLanguageModel.from_pretrained(tmp_path)
    assert mean_loss(saved, Examples(valid, processor)) == pytest.approx(min(losses.values()), abs=1e-5)

def test_the_log_holds_what_was_counted(rows, model, processor):
    "A step of two batches of 8 images; a measure sees the counts, and adds to the line."
    config = TrainConfig(**QUIET, steps=2, batch_size=8, accumulate=2, questions=1)
    measure = lambda line: dict(seen=dict(line), per_image=line["tokens"] / line["images"])
    for line in train(model, processor, rows.select(range(16)), config, measure=measure):
        assert (line["samples"], line["images"], line["processes"]) == (16, 16, 1)
        assert line["tokens"] > 16 * model.config.image_seq_len
        assert line["labelled"] == 32 # an answer and an end token for each question
        assert line["tokens_per_s"] == pytest.approx(line["tokens"] / line["step_seconds"])
        assert line["seen"]["step"] == line["step"] and line["per_image"] == line["tokens"] / 16
        assert line["step_seconds"] <= line["seconds"]

def test_bad_rows_do_not_stop_training(rows, bad, model, processor, capsys):
    mixed = concatenate_datasets([rows.select(range(12)), bad])
    history = train(model, processor, mixed, TrainConfig(**QUIET, steps=6, batch_size=4))
    assert all(math.isfinite(h["loss"]) for h in history)
    assert "1 row" in capsys.readouterr().out

def test_nothing_but_bad_rows_is_an_error(bad, model, processor):
    with pytest.raises(ValueError, match="none of the 1 rows.*bad.png"):
        train(model, processor, bad, TrainConfig(**QUIET, steps=2))

def test_nothing_but_bad_validation_rows_is_an_error(bad, model, processor):
    with pytest.raises(ValueError, match="none of the 1 validation rows.*bad.png"):
        mean_loss(model, Examples(bad, processor))

def test_nothing_to_learn_is_an_error(model, processor):
    ids = torch.tensor([processor.prompt("what is it?", [])])
    with pytest.raises(ValueError, match="nothing to learn"): model(ids, labels=torch.full_like(ids, -100))

WRONG = dict(steps=0), dict(batch_size=-1), dict(shift=-1), dict(optimizer="sgd"), dict(precision="fp8"), \
        dict(warmup=1.5), dict(lr_text=-1.0), dict(keep_states=0)

@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_a_config_that_cannot_work_is_refused(wrong):
    (name, value), = wrong.items()
    with pytest.raises(ValueError, match=f"{name} is {value!r}"): TrainConfig(**wrong)

def test_what_may_differ_are_settings():
    assert {*MAY_DIFFER} <= {*vars(TrainConfig())}

def test_a_state_of_an_earlier_version_is_refused(rows, model, processor, tmp_path):
    config = TrainConfig(output_dir=str(tmp_path), progress=False, steps=1, batch_size=4, save_every=1)
    train(model, processor, rows.select(range(8)), config)
    file, = state_files(tmp_path)
    old = dict(step=1, best=None, settings={}, scaler={}, places=[dict(turn=0, places=[[1, 0]])])
    save_file(dict(random=torch.get_rng_state()), file, dict(more=json.dumps(old)))
    with pytest.raises(ValueError, match="step-00000001.* or one of another version of nanovlm"):
        train(model, processor, rows.select(range(8)), TrainConfig(**{**vars(config), "resume": True}))
    file.write_bytes(b"no state")
    with pytest.raises(ValueError, match="not a state of a run"): read_metadata(file)

def test_bf16_trains(rows, model, processor):
    config = TrainConfig(**QUIET, steps=3, batch_size=8, precision="bf16")
    history = train(model, processor, rows.select(range(8)), config)
    assert history[-1]["loss"] < history[0]["loss"] and next(model.parameters()).dtype is torch.float32
