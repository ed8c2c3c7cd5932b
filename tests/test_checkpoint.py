"What is saved is a transformers checkpoint: it opens there and answers the same."
import json, os, signal, subprocess, sys, time
import pytest
import torch
from PIL import Image
from nanovlm.data import easy_vqa
from nanovlm.evaluation import predict
from nanovlm.model import VisionLanguageModel
from nanovlm.processor import Processor, ask

@pytest.fixture(scope="module")
def questions():
    "300 test questions with their images, spread over the test split."
    rows = easy_vqa("test").select(range(0, 1000, 30))
    return rows, [(r["images"][0]["path"], t["user"]) for r in rows for t in r["texts"]][:300]

def conversation(path, question, **content):
    return [{"role": "user", "content": [{"type": "image", "path": path} | content, {"type": "text", "text": question}]}]

def test_transformers_gives_the_same_answers(demo, questions):
    from transformers import AutoModelForImageTextToText, AutoProcessor
    folder, (rows, asked) = demo[0], questions
    ours = [p["prediction"] for p in predict(VisionLanguageModel.from_pretrained(folder), Processor.from_pretrained(folder), rows)][:300]
    model, processor = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval(), AutoProcessor.from_pretrained(folder)
    theirs = []
    for start in range(0, 300, 50):
        part = asked[start:start + 50]
        prompts = [processor.apply_chat_template(conversation(path, q), add_generation_prompt=True) for path, q in part]
        batch = processor(text=prompts, images=[[Image.open(path)] for path, _ in part], return_tensors="pt", padding=True)
        tokens = model.generate(**batch, max_new_tokens=16, do_sample=False)[:, batch["input_ids"].shape[1]:]
        theirs += [text.strip() for text in processor.batch_decode(tokens, skip_special_tokens=True)]
    assert len(theirs) == 300 and len(set(theirs)) > 5
    assert ours == theirs

def test_pipeline_gives_the_same_answers(demo, questions):
    from transformers import pipeline
    folder, (_, asked) = demo[0], questions
    model, processor = VisionLanguageModel.from_pretrained(folder), Processor.from_pretrained(folder)
    answer = pipeline("image-text-to-text", model=str(folder), device="cpu")
    for path, question in asked[::60]:
        theirs = answer(text=conversation(path, question), max_new_tokens=16, return_full_text=False, generate_kwargs=dict(do_sample=False))[0]["generated_text"]
        assert ask(model, processor, path, question) == theirs.strip()

@pytest.mark.parametrize("mode, size", [("RGB", (64, 64)), ("RGB", (200, 31)), ("L", (90, 120)), ("RGBA", (50, 70)), ("P", (33, 64))])
def test_processor_equals_transformers(demo, mode, size):
    from transformers import AutoProcessor
    ours, theirs = Processor.from_pretrained(demo[0]), AutoProcessor.from_pretrained(demo[0])
    image = Image.effect_noise(size, 80).convert("RGB").convert(mode)
    if mode == "RGBA": image.putalpha(Image.effect_noise(size, 90))
    for question in ("what color is the shape?", "Wörter, that  the tokenizer\nnever saw: 17?"):
        prompt = theirs.apply_chat_template(conversation("", question), add_generation_prompt=True)
        expected, batch = theirs(text=prompt, images=[image], return_tensors="pt"), ours([image], question)
        assert batch["input_ids"].tolist() == expected["input_ids"].tolist()
        torch.testing.assert_close(batch["pixel_values"], expected["pixel_values"][0], atol=1e-5, rtol=0)

def test_labelled_text_equals_the_chat_template(demo):
    from transformers import AutoProcessor
    ours, theirs = Processor.from_pretrained(demo[0]), AutoProcessor.from_pretrained(demo[0])
    said = [{"role": "user", "content": [{"type": "text", "text": "is it red?"}]}, {"role": "assistant", "content": [{"type": "text", "text": "yes"}]}]
    expected = theirs(text=theirs.apply_chat_template(said), return_tensors="pt")["input_ids"][0].tolist()
    assert [*ours.prompt("is it red?", 0), *ours.answer("yes"), *ours.encode("\n")] == expected

def test_streamed_text_only_grows(tiny, monkeypatch):
    "A letter of several tokens appears when it is complete; joined, the pieces are the answer."
    from nanovlm import processor as module
    model, processor = tiny
    ids = processor.answer("café 🙂 x")[:-1]
    monkeypatch.setattr(module, "stream", lambda *args, **kwargs: (torch.tensor([i]) for i in ids))
    seen = [*module.stream_answer(model, processor, None, "what is it?")]
    assert len(ids) > len(seen) and all(later.startswith(sooner) for sooner, later in zip(seen, seen[1:])) and seen[-1] == "café 🙂 x"

@pytest.mark.parametrize("most", [0, -3])
def test_no_room_for_an_answer_is_refused(tiny, most):
    with pytest.raises(ValueError, match="no room for an answer"): ask(*tiny, None, "what is it?", max_new_tokens=most)

def test_processor_round_trip(tiny, tmp_path):
    _, processor = tiny
    processor.save_pretrained(tmp_path)
    again = Processor.from_pretrained(tmp_path)
    for name in ("image_size", "image_seq_len", "max_length", "image_mean", "image_std", "resample", "eos_token_id", "image_ids"):
        assert getattr(again, name) == getattr(processor, name), name
    assert again.prompt("what colour is it?", 2) == processor.prompt("what colour is it?", 2)

@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(tiny, tmp_path, name):
    tiny[0].save_pretrained(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match="safetensors" if name.startswith("model") else name): VisionLanguageModel.from_pretrained(tmp_path)

def test_a_broken_file_is_named(tiny, tmp_path):
    tiny[0].save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match="model.safetensors"): VisionLanguageModel.from_pretrained(tmp_path)

def test_a_tensor_of_another_shape_is_named(tiny, tmp_path):
    tiny[0].save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["intermediate_size"] = 96
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"gate_proj.*\(256, 64\).*\(96, 64\)"): VisionLanguageModel.from_pretrained(tmp_path)

def test_tensors_that_do_not_belong_are_named(tiny, tmp_path):
    tiny[0].save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["vision_config"]["num_hidden_layers"] = 2
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="layers.2"): VisionLanguageModel.from_pretrained(tmp_path)

def test_another_model_type_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="'bert'"): VisionLanguageModel.from_pretrained(tmp_path)

def test_pickle_is_never_read(tiny, tmp_path):
    tiny[0].save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="pickle"): VisionLanguageModel.from_pretrained(tmp_path)

def test_a_killed_save_leaves_a_whole_checkpoint(tiny, tmp_path):
    "SIGKILL at different moments of a process that saves over and over."
    tiny[0].save_pretrained(tmp_path)
    code = f"from nanovlm.model import VisionLanguageModel as M\nm = M.from_pretrained({str(tmp_path)!r})\nprint('go', flush=True)\nwhile True: m.save_pretrained({str(tmp_path)!r})"
    for moment in (0.0, 0.003, 0.011):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        process.stdout.readline()
        time.sleep(moment)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        again = VisionLanguageModel.from_pretrained(tmp_path)
        for name, tensor in tiny[0].state_dict().items(): assert torch.equal(tensor, again.state_dict()[name])
