"Conversations and images between texts: the prompts that transformers writes, and rows that teach just these."
import re
import pytest
import torch
from PIL import Image
from nanovlm.processor import WHOLE, ask, stream_answer

def picture(n): return Image.linear_gradient("L").rotate(40 * n).resize((64, 64)).convert("RGB")

# Prompts

@pytest.fixture(scope="module")
def both(rows, tmp_path_factory):
    "A processor, and what transformers makes of its folder."
    from transformers import AutoProcessor
    from nanovlm.processor import tiny_model
    _, processor = tiny_model(rows)
    folder = tmp_path_factory.mktemp("processor")
    processor.save_pretrained(folder)
    return processor, AutoProcessor.from_pretrained(folder)

def content(text):
    "A text with marks, as transformers wants it: images and texts in turn."
    parts = [part for part in re.split("(<image>)", text) if part]
    return [dict(type="image") if part == "<image>" else dict(type="text", text=part) for part in parts]

def messages(turns):
    return [dict(role=("user", "assistant")[n % 2], content=content(text)) for n, text in enumerate(turns)]

CONVERSATIONS = [ # user, assistant, user, …
    ["what is it?"], ["<image>what is it?"], ["<image><image>which?"],
    ["what is it?", "a circle", "is it red?"], ["<image>what is it?", "a circle", "is it red?"],
    ["<image><image>which?", "the first", "why?", "it is red", "and the other?"],
    ["what?", "no", "what?", "yes", "what?", "maybe", "so?"],
    ["<image>what is it?", "a circle", "<image>and this?"], ["what?", "a picture", "<image>and this?"],
    ["<image>what?", "red", "<image><image>and these?", "blue", "all?"],
    ["compare <image> with <image>"], ["compare <image> with <image> please"], ["what is it? <image>"],
    ["<image>is like <image>?"], ["<image>\nwhat is it?"], ["a <image><image> b"], [" a  <image>  b "],
    ["is <image> a circle?", "no", "is <image> one, too?", "yes", "and are both red?"],
    ["what?", "a\nb  c", "\n and?"], ["<image>what?", "Größe 形 🙂", "naïve?"], ["<image>what?", " ", "why?"]]

@pytest.mark.parametrize("turns", CONVERSATIONS, ids=str)
def test_a_prompt_is_transformers_own(both, turns):
    ours, theirs = both
    *said, question = turns
    history = [*zip(said[::2], said[1::2])]
    photos = [picture(n) for n in range("".join(turns).count("<image>"))]
    text = theirs.apply_chat_template(messages(turns), add_generation_prompt=True)
    expected = theirs(text=text, images=photos or None, return_tensors="pt")
    batch = ours(photos, question, history)
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    if photos: torch.testing.assert_close(batch["pixel_values"], expected["pixel_values"][0])

@pytest.mark.parametrize("question, history, images", [
    ("what?", [], 2), ("and?", [("what?", "no")], 1), ("so?", [("what?", "no"), ("and?", "yes")], 3)])
def test_without_marks_images_stand_before_the_first_question(processor, question, history, images):
    marks = "<image>" * images
    marked = [(marks + history[0][0], history[0][1]), *history[1:]] if history else []
    grids = [WHOLE] * images
    assert processor.prompt(question, grids, history) == processor.prompt(
        question if history else marks + question, grids, marked)

@pytest.mark.parametrize("question, history, images, message", [
    ("is <image> it?", [], 0, "1 × <image> .* 0 image"), ("<image>what?", [], 2, "1 × <image> .* 2 image"),
    ("a <image> b <image>", [], 1, "2 × <image> .* 1 image"),
    ("<image>what?", [("<image>so?", "yes")], 1, "2 × <image> .* 1 image"),
    ("what?", [("is <image> it?", "yes")], 2, "1 × <image> .* 2 image")])
def test_every_mark_needs_an_image(pair, question, history, images, message):
    photos = [picture(n) for n in range(images)]
    with pytest.raises(ValueError, match=message) as caught: ask(*pair, photos, question, history)
    assert "\n" not in str(caught.value) and "mark every image once, or none" in str(caught.value)

@pytest.mark.parametrize("history, message", [
    ("what?", "list of pairs"), (("what?", "no"), "list of pairs"), ([("what?",)], "list of pairs"),
    ([["what?", "no", "why?"]], "list of pairs"), ([dict(role="user", content="what?")], "list of pairs"),
    (None, "list of pairs"), ([("what?", None)], "earlier answer is None"), ([(7, "no")], "earlier question is 7"),
    ([("what?", "\ud83d")], "half a letter"), ([("  ", "no")], "question is empty"),
    ([("<end_of_utterance>", "no")], "special token"), ([("what?", "a <image>")], "earlier answer .* take it out"),
    ([("what?", "no")] * 200, "200 earlier turns included"), ([("what?", "no " * 600)], "context")])
def test_a_history_that_cannot_be_one(pair, history, message):
    with pytest.raises(ValueError, match=message) as caught: ask(*pair, None, "and?", history)
    assert "\n" not in str(caught.value)

def test_the_history_counts(pair):
    model, processor = pair
    logits = [model(**processor([picture(0)], "is it red?", history))[0, -1]
              for history in ([], [("what is it?", "a circle")], [("what is it?", "a triangle")])]
    assert not torch.allclose(logits[0], logits[1]) and not torch.allclose(logits[1], logits[2])
    *_, streamed = stream_answer(*pair, picture(0), "is it?", 3, [("what?", "no")])
    assert streamed == ask(*pair, picture(0), "is it?", [("what?", "no")], max_new_tokens=3)
