"Trainers of others work on a saved folder, and what they save is opened here."
from importlib.util import find_spec
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from conftest import TINY
from nanovlm.bench import fix_positions
from nanovlm.hub import load
from nanovlm.processor import WHOLE

def test_what_peft_merges_is_a_folder_of_ours(tmp_path):
    "LoRA on every linear layer, as peft's users have it; a bare adapter is named as one."
    from peft import LoraConfig, PeftModel, get_peft_model
    def theirs(): return fix_positions(AutoModelForImageTextToText.from_pretrained(TINY, dtype=torch.float32))
    adapted = get_peft_model(theirs(), LoraConfig(r=4, target_modules="all-linear"))
    for name, weights in adapted.named_parameters(): # as if it had learnt something
        if "lora_B" in name: torch.nn.init.normal_(weights, std=0.05)
    adapted.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="is an adapter for .*tiny.*merge_and_unload"):
        load(tmp_path / "adapter")
    merged = PeftModel.from_pretrained(theirs(), tmp_path / "adapter").merge_and_unload()
    for part in (merged, AutoProcessor.from_pretrained(TINY)): part.save_pretrained(tmp_path / "merged")
    model, processor = load(tmp_path / "merged")
    batch = processor([Image.effect_noise((64, 64), 90)], "what color is the shape?")
    pixels = batch["pixel_values"]
    with torch.no_grad():
        ours, before = model(**batch), load("tiny")[0](**batch)
        expected = adapted.eval()(input_ids=batch["input_ids"], pixel_values=pixels[None]).logits
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)
    assert (ours - before).abs().max() > 0.1

@pytest.mark.skipif(not find_spec("trl"), reason="needs trl, of the extra dev")
def test_trl_learns_our_labels(tmp_path, trained, rows):
    "Dialogues of 20 rows, in trl's form, by the collator that its trainer makes for this folder."
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer
    rows = rows.select(range(20))
    exchanges = [[(turn["user"], turn["assistant"]) for turn in row["texts"][:3]] for row in rows]
    def messages(said):
        texts = [text for exchange in said for text in exchange]
        parts = [[dict(type="text", text=text)] for text in texts]
        parts[0].insert(0, dict(type="image", text=None))
        roles = ["user", "assistant"] * len(said)
        return [dict(role=role, content=content) for role, content in zip(roles, parts)]
    images = [[Image.open(row["images"][0]["path"])] for row in rows]
    data = Dataset.from_list([dict(images=image, messages=messages(said))
                              for image, said in zip(images, exchanges)])
    options = SFTConfig(str(tmp_path), assistant_only_loss=True, max_length=None, report_to=[], use_cpu=True,
                        bf16=False)
    model, other = AutoModelForImageTextToText.from_pretrained(TINY), AutoProcessor.from_pretrained(TINY)
    trainer = SFTTrainer(model, options, train_dataset=data, processing_class=other)
    batch = trainer.data_collator([data[n] for n in range(20)])
    ours, end = trained[1], [*trained[1].encode("\n")] # the template's last line end is not learnt
    for n, said in enumerate(exchanges):
        turns = [*ours.dialogue(said, [WHOLE])]
        ids = [i for asked, answer in turns for i in asked + answer] + end
        labels = [i for asked, answer in turns for i in [-100] * len(asked) + answer] + [-100] * len(end)
        real = batch["attention_mask"][n] == 1
        assert batch["input_ids"][n][real].tolist() == ids
        assert batch["labels"][n][real].tolist() == labels
    assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()
