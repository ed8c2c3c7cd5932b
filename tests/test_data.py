"Rows become batches without leaking an answer, losing a row in silence, or cutting an image."
import json
import datasets
import pytest
import torch
from PIL import Image
from nanovlm.data import Examples, collate, easy_vqa, from_questions, image_folder, load_data
from nanovlm.evaluation import evaluate_choices, load_choices, read_choice
from nanovlm.processor import SPECIAL_TOKENS, WHOLE
from nanovlm.images import MAX_PIXELS, load_image
from nanovlm.vision import preprocess

def loss_terms(model, batch):
    "Sum of the loss, and labelled tokens."
    n = int((batch["labels"][:, 1:] != -100).sum())
    return model(**batch) * n, n

@pytest.fixture
def example(tiny, rows):
    return Examples(rows, tiny[1])[3]

def test_easy_vqa_is_whole():
    for split, images, questions in (("train", 4000, 38_575), ("test", 1000, 9_673)):
        data = easy_vqa(split)
        assert len(data) == images and sum(map(len, data["texts"])) == questions
    assert {t["source"] for t in data[0]["texts"]} <= {"yes/no", "color", "shape"}

def test_shared_prefix_gives_the_loss_of_separate_rows(tiny, example):
    together, n = loss_terms(tiny[0], collate([example], questions=100))
    apart = [loss_terms(tiny[0], collate([example | dict(turns=[turn])])) for turn in example["turns"]]
    assert n == sum(m for _, m in apart)
    torch.testing.assert_close(together / n, sum(loss for loss, _ in apart) / n, atol=1e-5, rtol=0)

def test_no_question_sees_another(tiny, example):
    model, _ = tiny
    batch = collate([example], questions=3)
    before = model(**{k: v for k, v in batch.items() if k != "labels"})
    T, head = batch["input_ids"].shape[1], len(example["head"])
    ends = [i + 1 for i in range(head, T - 1) if batch["position_ids"][0, i + 1] == head] + [T]
    changed = batch | dict(input_ids=batch["input_ids"].clone())
    changed["input_ids"][0, head:ends[0]] = 300 # the whole first question
    after = model(**{k: v for k, v in changed.items() if k != "labels"})
    assert len(ends) == 3
    torch.testing.assert_close(after[0, ends[0]:], before[0, ends[0]:], atol=1e-6, rtol=0)
    assert not torch.allclose(after[0, head:ends[0]], before[0, head:ends[0]])

def test_padding_changes_nothing(tiny, rows):
    model, processor = tiny
    examples = [Examples(rows, processor)[i] for i in range(4)]
    together, n = loss_terms(model, collate(examples, questions=100))
    apart = [loss_terms(model, collate([e], questions=100)) for e in examples]
    torch.testing.assert_close(together / n, sum(loss for loss, _ in apart) / n, atol=1e-5, rtol=0)

def test_only_answers_carry_loss(tiny, example):
    processor, batch = tiny[1], collate([example], questions=100)
    ids, labels = batch["input_ids"][0], batch["labels"][0]
    assert torch.equal(ids[labels != -100], labels[labels != -100])
    assert (labels == processor.eos_token_id).sum() == len(example["turns"])
    assert not (labels == processor.image_token_id).any()

@pytest.mark.parametrize("typed", [*SPECIAL_TOKENS, "Assistant: <image><image>", "<|im_start|>User:"])
def test_typed_special_tokens_stay_plain_text(tiny, typed):
    processor = tiny[1]
    special = {processor.tokenizer.token_to_id(t) for t in SPECIAL_TOKENS}
    assert not special & set(processor.encode(f"what is {typed}?"))
    assert processor.tokenizer.decode(list(processor.encode(typed))) == typed

def test_truncation_spares_images_and_question(tiny):
    processor = tiny[1]
    processor.max_length = len(processor.prompt("what is it?", [WHOLE] * 2)) + 3
    turn, answer = processor.example("what is it?", "a rectangle and a circle and a triangle", [WHOLE] * 2)
    ids = processor.head([WHOLE] * 2) + turn + answer
    assert len(ids) == processor.max_length and ids.count(processor.image_token_id) == 2 * processor.image_seq_len
    assert turn == processor.turn("what is it?", [WHOLE] * 2) and processor.eos_token_id not in answer
    processor.max_length -= 3
    with pytest.raises(ValueError, match="no room for an answer"): processor.example("what is it?", "a circle", [WHOLE] * 2)

def test_prompt_longer_than_the_context(tiny):
    with pytest.raises(ValueError, match="context is 512"): tiny[1]([], "why? " * 600)

def bad_image(kind, folder):
    "A file that is no good."
    file = folder / "bad.png"
    if kind == "truncated":
        Image.effect_noise((64, 64), 50).save(file)
        file.write_bytes(file.read_bytes()[:900])
    elif kind == "text": file.write_text("not an image")
    elif kind == "empty": file.touch()
    elif kind == "enormous": Image.new("1", (MAX_PIXELS // 9000 + 1, 9000)).save(file)
    return file

@pytest.mark.parametrize("kind", ["truncated", "text", "empty", "enormous", "missing"])
def test_bad_images_are_refused(tmp_path, kind):
    with pytest.raises(ValueError, match=r"cannot read image .*bad.png") as caught: load_image(str(bad_image(kind, tmp_path)))
    assert "\n" not in str(caught.value)

@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I;16"])
def test_any_mode_becomes_pixels(mode):
    image = Image.new(mode, (40, 20)) if mode == "I;16" else Image.effect_noise((40, 20), 60).convert("RGB").convert(mode)
    pixels = preprocess(image, 32)
    assert pixels.shape == (3, 32, 32) and pixels.min() >= -1 and pixels.max() <= 1

def test_an_impossible_address_is_refused():
    with pytest.raises(ValueError, match="cannot read image 'http://localhost/a b.png'"): load_image("http://localhost/a b.png")

def test_upright():
    image = Image.new("RGB", (40, 20), "white")
    image.getexif()[0x0112] = 6 # turned by a quarter
    assert load_image(image).size == (20, 40)

@pytest.mark.parametrize("kind", ["truncated", "text", "missing"])
def test_an_unreadable_row_is_skipped_and_counted(tiny, rows, tmp_path, kind):
    bad = from_questions([(bad_image(kind, tmp_path), "what is it?", "red", "test")])
    from datasets import concatenate_datasets
    examples = Examples(concatenate_datasets([rows.select(range(3)), bad]), tiny[1])
    batch = collate([examples[i] for i in range(4)])
    assert len(batch["input_ids"]) == 3 and len(batch["pixel_values"]) == 3
    assert examples.skipped.total() == 1 and "bad.png" in str(examples.skipped)
    assert collate([examples[3]]) is None

def test_an_unusable_question_does_not_cost_its_row(tiny, rows):
    texts = [dict(user="what is it?", assistant="red", source=""), dict(user="why? " * 600, assistant="red", source=""), dict(user="is it?", assistant="", source="")]
    examples = Examples([rows[0] | dict(texts=texts), rows[0] | dict(texts=texts[1:]), rows[0] | dict(texts=[])], tiny[1])
    assert [e and len(e["turns"]) for e in (examples[i] for i in (0, 1, 2, 0))] == [1, None, None, 1]
    assert examples.skipped.total() == 5 and any("no room for an answer" in why for why in examples.skipped) and any("empty" in why for why in examples.skipped)

@pytest.fixture
def folder(tmp_path):
    "Three images with five questions, in a folder of one's own."
    for name, color in (("a.png", "red"), ("b.jpg", "blue"), ("c.webp", "green")): Image.new("RGB", (30, 40), color).save(tmp_path / name)
    lines = [("a.png", "what colour?", "red"), ("b.jpg", "what colour?", "blue"), ("b.jpg", "is it blue?", "yes"), ("c.webp", "what colour, please?", "green"), ("a.png", "is it blue?", "no")]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(dict(zip(("file_name", "question", "answer"), line))) + "\n" for line in lines))
    return tmp_path

def as_csv(folder, lines):
    (folder / "metadata.jsonl").unlink(missing_ok=True)
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")

def test_image_folder(folder):
    data = load_data(str(folder))
    assert data.features == easy_vqa("test").features
    assert sorted(len(t) for t in data["texts"]) == [1, 2, 2]
    as_csv(folder, ["file_name,question,answer", 'a.png,"red, or blue?",red'])
    assert image_folder(folder)[0]["texts"] == [dict(user="red, or blue?", assistant="red", source=folder.name)]

def test_file_names_do_not_make_splits(folder):
    (folder / "train").mkdir()
    (folder / "a.png").rename(folder / "train/a.png")
    (folder / "b.jpg").rename(folder / "my_test.jpg")
    as_csv(folder, ["file_name,question,answer", "train/a.png,what?,red", "my_test.jpg,what?,blue", "c.webp,what?,green"])
    assert sorted(t["assistant"] for texts in load_data(str(folder), "test")["texts"] for t in texts) == ["blue", "green", "red"]

@pytest.mark.parametrize("lines, complaint", [
    (["file_name,question", "a.png,what?"], "'answer'"), (["file_name,question,answer", "a.png,what?,"], "row 1 .* no answer"), (["file_name,question,answer", 'a.png,what?,"  "'], "row 1 .* no answer"),
    (["file_name,question,answer", "a.png,what?,red", "zzz.png,what?,red"], "row 2 .*zzz.png")])
def test_bad_metadata_is_named(folder, lines, complaint):
    as_csv(folder, lines)
    with pytest.raises(ValueError, match=complaint): image_folder(folder)

def test_folder_without_metadata(tmp_path):
    with pytest.raises(ValueError, match="metadata.csv"): load_data(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no data set"): load_data(str(tmp_path / "nothing"))

def test_several_images_and_none_in_one_batch(tiny, rows):
    model, processor = tiny
    mixed = [dict(images=[i for r in rows.select(range(n)) for i in r["images"]], texts=[dict(user="is it?", assistant="yes", source="")]) for n in (0, 1, 3)]
    batch = collate([Examples(mixed, processor)[i] for i in range(3)])
    assert len(batch["pixel_values"]) == 4
    assert model(**batch).isfinite()
    assert "pixel_values" not in collate([Examples(mixed, processor)[0]])

# Multiple-choice benchmarks

MMSTAR = dict(index=0, question="Which option describes the object relationship in the image correctly?\nOptions: A: The suitcase is on the book., B: The suitcase is beneath the cat., C: The suitcase is beneath the bed., D: The suitcase is beneath the book.",
              answer="A", category="coarse perception", l2_category="image scene and topic", meta_info=dict(source="MMBench", split="val", image_path="images/0.jpg"))

def test_mmstar_is_read_and_scored(tiny, tmp_path):
    import io
    image = io.BytesIO()
    Image.effect_noise((50, 40), 90).save(image, "png")
    some = [MMSTAR | dict(index=n, image=dict(bytes=image.getvalue(), path=None), answer="ABCD"[n % 4], category=("coarse perception", "math")[n % 2]) for n in range(8)]
    datasets.Dataset.from_list(some).to_parquet(tmp_path / "mmstar.parquet")
    choices = load_choices(str(tmp_path))
    assert choices[0]["options"] == ["The suitcase is on the book.", "The suitcase is beneath the cat.", "The suitcase is beneath the bed.", "The suitcase is beneath the book."]
    assert [c["answer"] for c in choices] == [0, 1, 2, 3] * 2 and choices[1]["source"] == "math" and choices[0]["question"].endswith("correctly?")
    found = evaluate_choices(*tiny, choices, max_new_tokens=3)
    assert found["count"] == 8 and found["chance"] == 0.25 and {kind: v["count"] for kind, v in found["by_type"].items()} == {"coarse perception": 4, "math": 4}

def test_replies_are_scored_by_their_letters(tiny, monkeypatch):
    "A model that always says B; and one that answers in words when it sees something."
    from nanovlm import evaluation
    choices = [dict(images=[], question=f"question {n}?", options=["one", "two", "three"], answer=n % 3, source="all") for n in range(9)]
    monkeypatch.setattr(evaluation, "predict", lambda model, processor, rows, images, **kw: [dict(prediction="B.") for _ in rows])
    assert evaluate_choices(None, None, choices)["accuracy"] == pytest.approx(1 / 3)
    monkeypatch.setattr(evaluation, "predict", lambda model, processor, rows, images, **kw: [dict(prediction=["one", "Two.", "a dog"][n % 3] if images == "own" else "C") for n in range(len(rows))])
    found = evaluate_choices(None, None, choices)
    assert found["accuracy"] == pytest.approx(2 / 3) and found["unreadable"] == 3 and found["blind_accuracy"] == pytest.approx(1 / 3)

def test_scienceqas_form_is_read():
    row = dict(image=None, question="Which is a mammal?", choices=["a trout", "a bat"], answer=1, hint="", subject="natural science")
    assert read_choice(row) == dict(images=[], question="Which is a mammal?", options=["a trout", "a bat"], answer=1, source="natural science")

@pytest.mark.parametrize("change, message", [(dict(question="What?"), "no options"), (dict(answer="E"), "'E' is none of the 4"), (dict(question="What?\nOptions: B: b, C: c"), "no options"), (dict(question="What?\nOptions: A: a, C: c", answer="C"), "none of the 1"), (dict(answer="?"), "none of the 4")])
def test_a_question_that_cannot_be_scored_is_refused(change, message):
    with pytest.raises(ValueError, match=message): read_choice(MMSTAR | change)

def test_a_folder_without_a_benchmark_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no Parquet file"): load_choices(str(tmp_path))
