"""Train the tiny model once more, as `nanovlm demo` does, and keep what it was on the way, for the slider.

After the last step it must be the model of the package, to the last bit; else nothing is kept."""
from pathlib import Path
import torch
from nanovlm.data import easy_vqa, split_rows
from nanovlm.hub import load
from nanovlm.processor import tiny_model
from nanovlm.training import TrainConfig, train
from nanovlm.weights import write_json
from safetensors.torch import save_file

STEPS = 0, 20, 60, 120, 240, 480
LIVE = Path(__file__).parent.parent / "nbs/live"

def snapshot(model):
    "Copy the weights, named as in the file: without the head, which is tied to the embedding."
    copies = {f"model.{name}": tensor.detach().clone() for name, tensor in model.state_dict().items()}
    del copies["model.lm_head.weight"]
    return copies

def snapshots():
    "The weights after so many steps, by number of steps, and those after the last step."
    rows, valid_rows = split_rows(easy_vqa("train"))
    model, processor = tiny_model(rows)
    kept = {0: snapshot(model)}
    def keep(line):
        if line["step"] in STEPS: kept[line["step"]] = snapshot(model)
        return {}
    config = TrainConfig(output_dir="", progress=False)
    train(model, processor, rows, config, valid_rows, measure=keep)
    return kept, snapshot(model)

def write(kept): # steps: weights
    "Write them in bfloat16, and the list that the page reads. They share the trained model's other files."
    for step, weights in kept.items():
        halves = {name: tensor.bfloat16() for name, tensor in weights.items()}
        save_file(halves, LIVE / f"training/{step:03}.safetensors")
    labels = {f"../training/{step:03}.safetensors": f"after {step} steps of training"
              for step in kept}
    labels["model.safetensors"] = "after 720 steps: trained"
    entries = [dict(folder="tiny", weights=file, label=label) for file, label in labels.items()]
    write_json(LIVE / "checkpoints.json", entries)

if __name__ == "__main__":
    kept, last = snapshots()
    tiny = snapshot(load("tiny")[0])
    differ = [name for name in tiny if not torch.equal(tiny[name], last[name])]
    assert not differ, f"not the package's model (it was made with two threads): {differ}"
    write(kept)
