"""What makes training fast must not change what is learnt."""
import pytest, torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from nanovlm import training
from nanovlm.data import Examples, collate, easy_vqa
from nanovlm.model import VisionLanguageModel, VLMConfig
from nanovlm.processor import tiny_model
from nanovlm.training import (Muon, TrainConfig, autocast, make_optimizers, newton_schulz, plain_attention,
                              training_step, wrap_layers)

@pytest.fixture(scope="module")
def batch():
    rows = easy_vqa("train").select(range(6))
    return collate([e for e in Examples(rows, tiny_model(rows)[1])], questions=3)

def gradients(batch, precision, length, **switches): # -> loss, all gradients in a row
    torch.manual_seed(0)
    model = VisionLanguageModel(VLMConfig.tiny())
    wrap_layers(model, TrainConfig(output_dir="", **switches))
    assert any("forward" in vars(layer.mlp) for layer in model.text_model.layers) == (not switches)
    with plain_attention(model, precision, length):
        with autocast(model, precision): loss = model(**batch)
        loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters()])

@pytest.mark.parametrize("precision, length, switches, near", [
    ("fp32", 1, {}, 1e-5), ("fp32", 1, dict(checkpointing=True), 1e-5),
    ("bf16", 1, {}, 1e-2), ("bf16", 1, dict(checkpointing=True), 1e-2), ("bf16", 10**6, {}, 1e-2)])
def test_switches_leave_loss_and_gradient_as_they_are(batch, precision, length, switches, near, monkeypatch):
    monkeypatch.setattr(training, "WIDE", 64) # so wide is this model
    loss, gradient = gradients(batch, precision, length, **switches)
    expected, plain = gradients(batch, "fp32", 10**6)
    assert abs(loss - expected) < near * expected
    assert (gradient - plain).norm() < 5 * near * plain.norm()

def test_plain_attention_is_for_bfloat16_and_rows_of_moderate_length(monkeypatch):
    chosen = []
    def choose(backend):
        chosen.append(backend)
        return sdpa_kernel(backend)
    monkeypatch.setattr(training, "sdpa_kernel", choose)
    model = VisionLanguageModel(VLMConfig.tiny())
    before = training.keeps_bf16()
    longer = training.PLAIN_TOKENS + 1
    for precision, length in [("fp32", 64), ("auto", 64), ("bf16", 64), ("bf16", longer)]:
        with plain_attention(model, precision, length): pass
    assert chosen == [SDPBackend.MATH]
    with pytest.raises(ZeroDivisionError), plain_attention(model, "bf16", 64): 1 / 0
    assert training.keeps_bf16() == before # what it sets is set back, also after an error

def test_training_step_takes_plain_attention(batch, monkeypatch):
    lengths = []
    def note(model, precision, length):
        lengths.append(length)
        return plain_attention(model, precision, length)
    monkeypatch.setattr(training, "plain_attention", note)
    model = VisionLanguageModel(VLMConfig.tiny())
    config = TrainConfig(output_dir="", precision="bf16", checkpointing=True)
    wrap_layers(model, config)
    loss, norm = training_step(model, [batch], make_optimizers(model, config), 1.0, config)
    assert lengths == [batch["input_ids"].shape[1]] and loss > 0 and norm > 0

@pytest.mark.parametrize("shape", [(5, 8, 8), (3, 4, 16), (3, 16, 4), (1, 1, 7)])
def test_matrices_made_orthogonal_together_are_those_made_alone(shape):
    torch.manual_seed(0)
    x = torch.randn(shape)
    alone = torch.cat([newton_schulz(matrix[None]) for matrix in x])
    torch.testing.assert_close(newton_schulz(x), alone, atol=1e-5, rtol=0)

def by_hand(x): # the iteration as it is published, product by product
    flat = x.mT if x.shape[0] > x.shape[1] else x
    flat = flat / (flat.norm() + 1e-7)
    for _ in range(5):
        square = flat @ flat.mT
        flat = 3.4445 * flat + (2.0315 * square @ square - 4.7750 * square) @ flat
    return flat.mT if x.shape[0] > x.shape[1] else flat

def test_muon_steps_each_matrix_as_if_it_were_alone():
    torch.manual_seed(0)
    shapes = [(8, 8), (16, 8), (8, 8), (8, 16), (4, 2, 3, 3)]
    params = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    single = [torch.nn.Parameter(p.detach().clone()) for p in params]
    together, alone = Muon(params, lr=0.1), [Muon([p], lr=0.1) for p in single]
    for _ in range(3):
        for p, q in zip(params, single):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        together.step()
        for optimizer in alone: optimizer.step()
    for p, q in zip(params, single): torch.testing.assert_close(p, q, atol=1e-5, rtol=0)
    for x in (torch.randn(6, 4), torch.randn(4, 9)):
        torch.testing.assert_close(newton_schulz(x[None])[0], by_hand(x), atol=1e-4, rtol=0)
