"Training is what it says: right gradients, the right learning rates, repeatable, and not stopped by a bad row."
import math
import pytest
import torch
from nanovlm.data import Examples, collate, from_questions
from nanovlm.demo import tiny_model
from nanovlm.model import VisionLanguageModel
from nanovlm.training import Muon, TrainConfig, learning_rate, make_optimizers, parameter_groups, train, training_step

QUIET = dict(output_dir="", progress=False)

def weights(model): return torch.cat([p.detach().flatten() for p in model.parameters()])

def test_micro_batches_equal_one_batch(rows):
    "Rows with a different number of labelled tokens: averaging averages would fail here."
    results = []
    for parts in ([range(8)], [range(3), range(3, 8)]):
        model, processor = tiny_model(rows)
        examples, config = Examples(rows, processor), TrainConfig(**QUIET, optimizer="adamw")
        micro = [collate([examples[i] for i in part], questions=100 if 0 in part else 1) for part in parts] if len(parts) > 1 else None
        if micro is None:
            first, second = [examples[i] for i in range(3)], [examples[i] | dict(turns=examples[i]["turns"][:1]) for i in range(3, 8)]
            micro = [collate(first + second, questions=100)]
        else: micro[1] = collate([examples[i] | dict(turns=examples[i]["turns"][:1]) for i in parts[1]], questions=100)
        loss, norm = training_step(model, micro, make_optimizers(model, config), 1.0, config)
        results.append((loss, norm, weights(model)))
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-5) and results[0][1] == pytest.approx(results[1][1], rel=1e-4)
    torch.testing.assert_close(results[0][2], results[1][2], atol=2e-4, rtol=0)

def test_learning_rate_rises_then_falls():
    config = TrainConfig(steps=200, warmup=0.1, final_lr=0.02)
    rates = [learning_rate(s, config) for s in range(200)]
    assert rates[0] == pytest.approx(1 / 20) and max(rates) == 1.0 == rates[19]
    assert all(a < b for a, b in zip(rates[:19], rates[1:20])) and all(a > b for a, b in zip(rates[20:], rates[21:]))
    assert rates[-1] == pytest.approx(0.02, abs=1e-3)
    assert rates[20 + 90] == pytest.approx(0.02 + 0.98 / 2)

@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_every_parameter_has_one_group_of_its_part(tiny, optimizer):
    config, (model, _) = TrainConfig(**QUIET, optimizer=optimizer, lr_connector=3e-3, lr_vision=2e-3, lr_text=1e-3), tiny
    groups = parameter_groups(model, config)
    owner = {id(p): (kind, g["peak"]) for kind, gs in groups.items() for g in gs for p in g["params"]}
    assert sum(len(g["params"]) for gs in groups.values() for g in gs) == len(owner) == len(list(model.parameters()))
    for name, p in model.named_parameters():
        kind, peak = owner[id(p)]
        lr = {"connector": 3e-3, "vision_model": 2e-3}.get(name.split(".")[0], 1e-3)
        assert peak == pytest.approx(lr * (config.muon_factor if kind == "muon" else 1)), name
        assert kind == ("muon" if optimizer == "muon" and p.ndim > 1 and not name.endswith(("embed_tokens.weight", "position_embedding.weight")) else "adamw"), name

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

def test_a_rate_of_zero_freezes(rows):
    model, processor = tiny_model(rows)
    before = {n: p.clone() for n, p in model.named_parameters()}
    train(model, processor, rows.select(range(8)), TrainConfig(**QUIET, steps=2, batch_size=8, lr_vision=0.0))
    for n, p in model.named_parameters(): assert torch.equal(p, before[n]) == n.startswith("vision_model"), n

def test_overfits_one_batch(rows):
    model, processor = tiny_model(rows)
    history = train(model, processor, rows.select(range(4)), TrainConfig(**QUIET, steps=120, batch_size=4, questions=8, shift=0))
    assert history[0]["loss"] > 1 and history[-1]["loss"] < 0.05

def test_same_seed_same_weights(rows):
    runs = []
    for seed in (0, 0, 1):
        model, processor = tiny_model(rows, seed)
        train(model, processor, rows.select(range(32)), TrainConfig(**QUIET, steps=3, batch_size=8, seed=seed))
        runs.append(weights(model))
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])

def test_best_checkpoint_is_kept(rows, tmp_path):
    model, processor = tiny_model(rows)
    config = TrainConfig(output_dir=str(tmp_path), progress=False, steps=24, batch_size=16, valid_every=8)
    seen = []
    history = train(model, processor, rows.select(range(64)), config, rows.select(range(64, 80)), lambda h: seen.append(len(h)))
    losses = {h["step"]: h["valid_loss"] for h in history if "valid_loss" in h}
    assert seen == [8, 16, 24] == list(losses)
    from nanovlm.training import mean_loss
    saved = VisionLanguageModel.from_pretrained(tmp_path)
    assert mean_loss(saved, Examples(rows.select(range(64, 80)), processor)) == pytest.approx(min(losses.values()), abs=1e-5)

def test_bad_rows_do_not_stop_training(rows, tmp_path, capsys):
    from datasets import concatenate_datasets
    (tmp_path / "bad.png").write_text("not an image")
    mixed = concatenate_datasets([rows.select(range(12)), from_questions([(tmp_path / "bad.png", "what?", "red", "")])])
    model, processor = tiny_model(rows)
    history = train(model, processor, mixed, TrainConfig(**QUIET, steps=6, batch_size=4))
    assert all(math.isfinite(h["loss"]) for h in history)
    assert "1 row" in capsys.readouterr().out

def test_nothing_but_bad_rows_is_an_error(rows, tmp_path):
    (tmp_path / "bad.png").write_text("not an image")
    model, processor = tiny_model(rows)
    with pytest.raises(ValueError, match="none of the 1 rows.*bad.png"):
        train(model, processor, from_questions([(tmp_path / "bad.png", "what?", "red", "")]), TrainConfig(**QUIET, steps=2))

def test_nothing_but_bad_validation_rows_is_an_error(rows, tmp_path):
    from nanovlm.training import mean_loss
    (tmp_path / "bad.png").write_text("not an image")
    model, processor = tiny_model(rows)
    with pytest.raises(ValueError, match="none of the 1 validation rows.*bad.png"): mean_loss(model, Examples(from_questions([(tmp_path / "bad.png", "what?", "red", "")]), processor))

def test_nothing_to_learn_is_an_error(tiny):
    model, processor = tiny
    ids = torch.tensor([processor.prompt("what is it?", [])])
    with pytest.raises(ValueError, match="nothing to learn"): model(ids, labels=torch.full_like(ids, -100))

@pytest.mark.parametrize("wrong", [dict(steps=0), dict(batch_size=-1), dict(optimizer="sgd"), dict(precision="fp8"), dict(warmup=1.5), dict(lr_text=-1.0)])
def test_a_config_that_cannot_work_is_refused(wrong):
    (name, value), = wrong.items()
    with pytest.raises(ValueError, match=f"{name} is {value!r}"): TrainConfig(**wrong)

def test_bf16_trains(rows):
    model, processor = tiny_model(rows)
    history = train(model, processor, rows.select(range(8)), TrainConfig(**QUIET, steps=3, batch_size=8, precision="bf16"))
    assert history[-1]["loss"] < history[0]["loss"] and next(model.parameters()).dtype is torch.float32
