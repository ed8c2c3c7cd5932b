"What is saved is a transformers checkpoint: it opens there and answers the same."
import json, os, random, signal, time
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from nanovlm.bench import mended
from nanovlm.data import easy_vqa
from nanovlm.evaluation import predict
from nanovlm.images import load_image
from nanovlm.model import VisionLanguageModel
from nanovlm.processor import WHOLE, Processor, ask

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
    model, processor = mended(AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)), AutoProcessor.from_pretrained(folder)
    theirs = []
    for start in range(0, 300, 50):
        part = asked[start:start + 50]
        prompts = [processor.apply_chat_template(conversation(path, q), add_generation_prompt=True) for path, q in part]
        batch = processor(text=prompts, images=[[Image.open(path)] for path, _ in part], return_tensors="pt", padding=True)
        tokens = model.generate(**batch, max_new_tokens=16, do_sample=False)[:, batch["input_ids"].shape[1]:]
        theirs += [text.strip() for text in processor.batch_decode(tokens, skip_special_tokens=True)]
    assert len(theirs) == 300 and len(set(theirs)) > 5
    assert ours == theirs

def test_round_trip_changes_no_bit_and_no_answer(demo, questions, tmp_path):
    from transformers import AutoModelForImageTextToText, AutoProcessor
    AutoModelForImageTextToText.from_pretrained(demo[0], dtype=torch.float32).save_pretrained(tmp_path)
    AutoProcessor.from_pretrained(demo[0]).save_pretrained(tmp_path)
    first, again = VisionLanguageModel.from_pretrained(demo[0]), VisionLanguageModel.from_pretrained(tmp_path)
    assert first.config == again.config
    for name, tensor in first.state_dict().items(): assert torch.equal(tensor, again.state_dict()[name]), name
    expected, found = predict(first, Processor.from_pretrained(demo[0]), questions[0]), predict(again, Processor.from_pretrained(tmp_path), questions[0])
    assert len(expected) > 300 and found == expected

def test_pipeline_gives_the_same_answers(demo, questions):
    from transformers import pipeline
    folder, (_, asked) = demo[0], questions
    model, processor = VisionLanguageModel.from_pretrained(folder), Processor.from_pretrained(folder)
    answer = pipeline("image-text-to-text", model=str(folder), device="cpu")
    mended(answer.model)
    for path, question in asked[::60]:
        theirs = answer(text=conversation(path, question), max_new_tokens=16, return_full_text=False, generate_kwargs=dict(do_sample=False))[0]["generated_text"]
        assert ask(model, processor, path, question) == theirs.strip()

@pytest.mark.parametrize("mode, size", [("RGB", (64, 64)), ("RGB", (200, 31)), ("L", (90, 120)), ("RGBA", (50, 70)), ("P", (33, 64))])
def test_processor_equals_transformers(demo, mode, size):
    from transformers import AutoProcessor, __version__
    ours, theirs = Processor.from_pretrained(demo[0]), AutoProcessor.from_pretrained(demo[0])
    image = Image.effect_noise(size, 80).convert("RGB").convert(mode)
    if mode == "RGBA": image.putalpha(Image.effect_noise(size, 90))
    given = load_image(image) if __version__.startswith("4.") else image # version 4 stops at grey and palettes, and puts white behind an image after resizing it
    for question in ("what color is the shape?", "Wörter, that  the tokenizer\nnever saw: 17?"):
        prompt = theirs.apply_chat_template(conversation("", question), add_generation_prompt=True)
        expected, batch = theirs(text=prompt, images=[given], return_tensors="pt"), ours([image], question)
        assert batch["input_ids"].tolist() == expected["input_ids"].tolist()
        torch.testing.assert_close(batch["pixel_values"], expected["pixel_values"][0], atol=1e-5, rtol=0)

def test_labelled_text_equals_the_chat_template(demo):
    from transformers import AutoProcessor
    ours, theirs = Processor.from_pretrained(demo[0]), AutoProcessor.from_pretrained(demo[0])
    said = [{"role": "user", "content": [{"type": "text", "text": "is it red?"}]}, {"role": "assistant", "content": [{"type": "text", "text": "yes"}]}]
    expected = theirs(text=theirs.apply_chat_template(said), return_tensors="pt")["input_ids"][0].tolist()
    assert [*ours.prompt("is it red?", []), *ours.answer("yes"), *ours.encode("\n")] == expected

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
    for name in ("image_size", "image_seq_len", "max_length", "image_mean", "image_std", "resample", "longest_edge", "format", "eos_token_id"):
        assert getattr(again, name) == getattr(processor, name), name
    assert again.prompt("what colour is it?", [WHOLE] * 2) == processor.prompt("what colour is it?", [WHOLE] * 2)

def test_padding_and_truncation_of_the_file_are_off(tiny, tmp_path):
    "transformers leaves the settings of the last call in the tokenizer that it saves."
    _, processor = tiny
    expected = processor.prompt("what colour is it?", [WHOLE])
    processor.tokenizer.enable_padding(length=64)
    processor.tokenizer.enable_truncation(20)
    processor.save_pretrained(tmp_path)
    assert Processor.from_pretrained(tmp_path).prompt("what colour is it?", [WHOLE]) == expected

def test_special_tokens_that_could_be_typed_are_refused(tiny):
    content = json.loads(tiny[1].tokenizer.to_str())
    for token in content["added_tokens"]: token["special"] = False
    with pytest.raises(ValueError, match="user could type"): Processor(Tokenizer.from_str(json.dumps(content)), 64, 16)

@pytest.mark.parametrize("name, value", [("max_image_size", None), ("do_image_splitting", None), ("image_mean", [0.4, 0.5, 0.5]), ("rescale_factor", 1.0)])
def test_another_kind_of_processor_is_refused(tiny, tmp_path, name, value):
    tiny[1].save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings | {name: value}))
    with pytest.raises(ValueError, match="normalise" if name == "rescale_factor" else name): Processor.from_pretrained(tmp_path)

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
    with pytest.raises(ValueError, match=r"down_proj.*\(64, 256\).*\(64, 96\)"): VisionLanguageModel.from_pretrained(tmp_path)

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

@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_save_leaves_a_whole_checkpoint(tiny, tmp_path):
    "SIGKILL at 20 random moments of a process that saves two models in turn: the folder holds one or the other."
    first, processor = tiny
    second = VisionLanguageModel(first.config)
    states, moments = [first.state_dict(), second.state_dict()], random.Random(0)
    first.save_pretrained(tmp_path)
    for _ in range(20):
        child = os.fork()
        if not child:
            while True: second.save_pretrained(tmp_path), processor.save_pretrained(tmp_path), first.save_pretrained(tmp_path)
        time.sleep(moments.uniform(0, 0.1))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        again = VisionLanguageModel.from_pretrained(tmp_path).state_dict()
        assert any(all(torch.equal(tensor, again[name]) for name, tensor in state.items()) for state in states)
    Processor.from_pretrained(tmp_path)
    first.save_pretrained(tmp_path), processor.save_pretrained(tmp_path)
    assert not [*tmp_path.glob(".*")] # what the killed ones left is swept up
