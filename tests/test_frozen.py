"Parts that do not learn: features that are computed once, and low-rank additions in place of the decoder."
import copy, sys
import pytest
import torch
from nanovlm.data import Examples, collate
from nanovlm.frozen import add_lora, cache_features, merge_lora, merged_copy, with_additions
from nanovlm.model import VisionLanguageModel
from nanovlm.training import TrainConfig, parameter_groups, train

SMALL = dict(steps=6, batch_size=8, valid_every=3, shift=0, progress=False)

@pytest.fixture
def learn(rows, model, processor):
    "Trains a copy of the model: function of settings -> model, losses and validation losses."
    def learn(folder="", valid=True, **options):
        twin, config = copy.deepcopy(model), TrainConfig(output_dir=str(folder), **SMALL, **options)
        valid_rows = rows.select(range(48, 64)) if valid else None
        history = train(twin, processor, rows.select(range(48)), config, valid_rows)
        return twin, [line[name] for name in ("loss", "valid_loss") for line in history if name in line]
    return learn

def same_weights(a, b): return all(torch.equal(p, b.state_dict()[n]) for n, p in a.state_dict().items())

@pytest.mark.parametrize("more", [{}, dict(pack=256), dict(workers=2), dict(precision="bf16")], ids=str)
def test_what_the_encoder_saw_once_teaches_the_same(learn, more):
    looked, losses = learn(lr_vision=0.0, **more)
    cached, losses_cached = learn(lr_vision=0.0, cache_features=True, **more)
    half = "precision" in more
    assert losses == pytest.approx(losses_cached, abs=1e-2 if half else 1e-6) # attention rounds otherwise in training
    for name, p in looked.state_dict().items():
        torch.testing.assert_close(p, cached.state_dict()[name], atol=1e-2 if half else 1e-5, rtol=0)

def test_features_stand_where_pixels_stood(rows, model, processor):
    "Rows of one image, of two, of none, and one that cannot be used."
    two = dict(images=rows[1]["images"] + rows[2]["images"], texts=rows[1]["texts"])
    text = dict(images=[], texts=rows[0]["texts"])
    broken = dict(images=[dict(bytes=b"no image", path=None)], texts=rows[0]["texts"])
    mixed = [rows[0], two, text, broken, rows[3]]
    before, after = Examples(mixed, processor), Examples(mixed, processor)
    cache_features(after, model, batch_size=2)
    assert [e and len(e["pixel_values"]) for e in map(after.__getitem__, range(5))] == [1, 2, 0, None, 1]
    assert after.skipped.total() == 1
    losses = []
    for examples in (before, after):
        torch.manual_seed(0)
        losses.append(model(**collate([examples[i] for i in range(5)])).item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)

WRONG = [(dict(cache_features=True), "set both to 0"),
         (dict(cache_features=True, lr_vision=0.0), "shift is 2"),
         (dict(lora=4, lr_text=0.0), "nothing of the decoder would learn"),
         (dict(lora=-1), "lora is -1"),
         (dict(shard=True), "optimizer adamw"),
         (dict(shard=True, optimizer="adamw", precision="fp16"), "without fp16")]

@pytest.mark.parametrize("wrong, message", WRONG, ids=str)
def test_switches_that_do_not_go_together_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message): TrainConfig(**wrong)

def test_a_stream_is_not_cached(rows, model, processor):
    stream = rows.to_iterable_dataset()
    with pytest.raises(ValueError, match="without streaming"):
        cache_features(Examples(stream, processor), model)
    config = TrainConfig(output_dir="", lr_vision=0.0, cache_features=True, **SMALL)
    with pytest.raises(ValueError, match="without streaming"): train(model, processor, stream, config)

def test_more_than_fits_is_not_cached(model, processor):
    examples = Examples(range(10**12), processor)
    with pytest.raises(ValueError, match="take fewer rows"): cache_features(examples, model)

def test_one_process_cannot_share_a_model(learn):
    with pytest.raises(ValueError, match="torchrun"): learn(shard=True, optimizer="adamw")

def test_additions_start_at_nothing_and_alone_learn(rows, model, processor):
    batch = collate([Examples(rows, processor)[0]])
    before = model(**batch).item()
    add_lora(model, 4)
    assert model(**batch).item() == before
    assert len(with_additions(model)) == 7 * len(model.text_model.layers)
    parameter_groups(model, TrainConfig(lora=4))
    names = {n for n, _ in model.named_parameters()}
    learning = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n for n in learning if n.startswith("text_model")} == {n for n in names if ".lora_" in n}
    assert "lm_head.weight" not in learning
    assert {n for n in names if n.startswith(("vision_model", "connector"))} <= learning

LORA = [{}, dict(optimizer="adamw", checkpointing=True, lr_vision=0.0, cache_features=True)]

@pytest.mark.parametrize("more", LORA, ids=str)
def test_what_lora_learnt_is_saved_in_plain_matrices(learn, model, tmp_path, more):
    learnt, losses = learn(tmp_path, lora=4, **more)
    assert losses[5] < losses[0] and not with_additions(learnt)
    assert same_weights(learnt, VisionLanguageModel.from_pretrained(tmp_path)) # the last step was the best
    for name, p in learnt.state_dict().items():
        if not name.startswith("text_model"): continue
        assert torch.equal(p, model.state_dict()[name]) == ("_proj" not in name)

def test_a_run_with_lora_goes_on_as_if_nothing_had_happened(learn, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    options = dict(lora=4, save_every=3, valid=False)
    undisturbed, losses = learn(whole, **options)
    learn(broken, **options)
    (broken / "states" / "step-00000006.safetensors").unlink()
    again, losses_again = learn(broken, resume=True, **options)
    assert losses_again == losses and same_weights(again, undisturbed)

def test_after_an_error_the_model_is_plain(rows, model, processor):
    def fail(history): raise RuntimeError("stop")
    config = TrainConfig(output_dir="", lora=4, checkpointing=True, **SMALL)
    with pytest.raises(RuntimeError, match="stop"): train(model, processor, rows, config, callback=fail)
    assert not with_additions(model) and not model.training
    assert not any("forward" in vars(m) for m in model.modules())

def test_a_merged_model_is_the_same_function(rows, model, processor):
    batch = collate([Examples(rows, processor)[i] for i in range(4)])
    add_lora(model, 4)
    for n, p in model.named_parameters():
        if "lora_B" in n: torch.nn.init.normal_(p, std=0.05)
    loss, plain = model(**batch).item(), merged_copy(model)
    merge_lora(model)
    assert plain(**batch).item() == pytest.approx(loss, abs=1e-5)
    assert model(**batch).item() == plain(**batch).item()

def test_without_peft_the_message_says_what_to_install(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match="pip install peft"): add_lora(model, 4)

def test_peft_knows_our_names(model):
    "Its own way of naming targets works on our model, too."
    from peft import LoraConfig, inject_adapter_in_model
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj", "v_proj"]), model)
    layers = len(model.text_model.layers) + len(model.vision_model.encoder["layers"])
    assert len(with_additions(model)) == 2 * layers
