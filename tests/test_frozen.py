"Parts that do not learn: features that are computed once, and low-rank additions that learn in place of the decoder."
import pytest
import torch
from nanovlm.data import Examples, collate
from nanovlm.demo import tiny_model
from nanovlm.frozen import add_lora, cache_features, merge_lora, ordinary, with_additions
from nanovlm.model import VisionLanguageModel
from nanovlm.training import TrainConfig, parameter_groups, train

SMALL = dict(steps=6, batch_size=8, valid_every=3, shift=0, progress=False)

def learnt(rows, folder="", valid=True, **options): # -> model, losses
    model, processor = tiny_model(rows)
    history = train(model, processor, rows.select(range(48)), TrainConfig(output_dir=str(folder), **SMALL, **options), rows.select(range(48, 64)) if valid else None)
    return model, [line["loss"] for line in history] + [line["valid_loss"] for line in history if "valid_loss" in line]

@pytest.mark.parametrize("more", [{}, dict(pack=256), dict(workers=2), dict(precision="bf16")], ids=str)
def test_what_the_encoder_saw_once_teaches_the_same(rows, more):
    (looked, a), (cached, b) = (learnt(rows, lr_vision=0.0, cache_features=kept, **more) for kept in (False, True))
    assert a == pytest.approx(b, abs=1e-4 if more.get("precision") else 1e-6)
    for name, p in looked.state_dict().items(): torch.testing.assert_close(p, cached.state_dict()[name], atol=1e-3 if more.get("precision") else 1e-5, rtol=0)

def test_features_stand_where_pixels_stood(rows, tiny):
    "Rows of one image, of two, of none, and one that cannot be used."
    model, processor = tiny
    text, broken = dict(images=[], texts=rows[0]["texts"]), dict(images=[dict(bytes=b"no image", path=None)], texts=rows[0]["texts"])
    some = [rows[0], dict(images=rows[1]["images"] + rows[2]["images"], texts=rows[1]["texts"]), text, broken, rows[3]]
    before, after = Examples(some, processor), Examples(some, processor)
    cache_features(after, model, batch_size=2)
    assert [e and len(e["pixel_values"]) for e in map(after.__getitem__, range(5))] == [1, 2, 0, None, 1] and after.skipped.total() == 1
    losses = []
    for examples in (before, after):
        torch.manual_seed(0)
        losses.append(model(**collate([examples[i] for i in range(5)])).item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)

@pytest.mark.parametrize("wrong, message", [(dict(cache_features=True), "set both to 0"), (dict(cache_features=True, lr_vision=0.0), "shift is 2"), (dict(lora=4, lr_text=0.0), "nothing of the decoder would learn"),
    (dict(lora=-1), "lora is -1"), (dict(shard=True), "optimizer adamw"), (dict(shard=True, optimizer="adamw", precision="fp16"), "without fp16")], ids=str)
def test_switches_that_do_not_go_together_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message): TrainConfig(**wrong)

def test_a_stream_is_not_cached(rows, tiny):
    with pytest.raises(ValueError, match="without streaming"): cache_features(Examples(rows.to_iterable_dataset(), tiny[1]), tiny[0])

def test_more_than_fits_is_not_cached(tiny):
    with pytest.raises(ValueError, match="take fewer rows"): cache_features(Examples(range(10**12), tiny[1]), tiny[0])

def test_one_process_cannot_share_a_model(rows):
    with pytest.raises(ValueError, match="torchrun"): learnt(rows, shard=True, optimizer="adamw")

def test_additions_start_at_nothing_and_alone_learn(rows, tiny):
    model, batch = tiny[0], collate([Examples(rows, tiny[1])[0]])
    before = model(**batch).item()
    add_lora(model, 4)
    assert model(**batch).item() == before
    assert len(with_additions(model)) == 7 * len(model.text_model.layers)
    parameter_groups(model, TrainConfig(lora=4))
    learning = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n for n in learning if n.startswith("text_model")} == {n for n, _ in model.named_parameters() if ".lora_" in n} and "lm_head.weight" not in learning
    assert {n for n, _ in model.named_parameters() if n.startswith(("vision_model", "connector"))} <= learning

@pytest.mark.parametrize("more", [{}, dict(optimizer="adamw", checkpointing=True, lr_vision=0.0, cache_features=True)], ids=str)
def test_what_lora_learnt_is_saved_in_ordinary_matrices(rows, tmp_path, more):
    start, (model, losses) = tiny_model(rows)[0], learnt(rows, tmp_path, lora=4, **more)
    assert losses[5] < losses[0] and not with_additions(model)
    saved = VisionLanguageModel.from_pretrained(tmp_path)
    same = {n: torch.equal(p, start.state_dict()[n]) for n, p in model.state_dict().items() if n.startswith("text_model")}
    assert all(torch.equal(p, saved.state_dict()[n]) for n, p in model.state_dict().items()) # the last step was the best
    assert all(unchanged == ("_proj" not in n) for n, unchanged in same.items())

def test_a_run_with_lora_goes_on_as_if_nothing_had_happened(rows, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    options = dict(lora=4, save_every=3, valid=False)
    model, losses = learnt(rows, whole, **options)
    learnt(rows, broken, **options)
    (broken / "states" / "step-00000006.safetensors").unlink()
    again, last = learnt(rows, broken, resume=True, **options)
    assert last == losses and all(torch.equal(p, model.state_dict()[n]) for n, p in again.state_dict().items())

def test_after_an_error_the_model_is_ordinary(rows, tmp_path):
    model, processor = tiny_model(rows)
    def fail(history): raise RuntimeError("stop")
    with pytest.raises(RuntimeError, match="stop"): train(model, processor, rows, TrainConfig(output_dir="", lora=4, checkpointing=True, **SMALL), callback=fail)
    assert not with_additions(model) and not model.training and not any("forward" in vars(m) for m in model.modules())

def test_a_merged_model_is_the_same_function(rows, tiny):
    model, batch = tiny[0], collate([Examples(rows, tiny[1])[i] for i in range(4)])
    add_lora(model, 4)
    for n, p in model.named_parameters():
        if "lora_B" in n: torch.nn.init.normal_(p, std=0.05)
    loss, plain = model(**batch).item(), ordinary(model)
    merge_lora(model)
    assert plain(**batch).item() == pytest.approx(loss, abs=1e-5) and model(**batch).item() == plain(**batch).item()

def test_without_peft_the_message_says_what_to_install(tiny, monkeypatch):
    import sys
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match="pip install peft"): add_lora(tiny[0], 4)

def test_peft_knows_our_names(tiny):
    "Its own way of naming targets works on our model, too."
    from peft import LoraConfig, inject_adapter_in_model
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj", "v_proj"]), tiny[0])
    assert len(with_additions(tiny[0])) == 2 * (len(tiny[0].text_model.layers) + len(tiny[0].vision_model.encoder["layers"]))
