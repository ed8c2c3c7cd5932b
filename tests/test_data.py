"Rows become batches without leaking an answer, losing a row in silence, or cutting an image."
import io, json
import datasets
import pytest
import torch
from PIL import Image
from nanovlm import evaluation
from nanovlm.data import Examples, collate, easy_vqa, from_questions, image_folder, load_data
from nanovlm.evaluation import evaluate_choices, load_choices, predict, read_choice
from nanovlm.generation import generate
from nanovlm.images import MAX_PIXELS, load_image
from nanovlm.processor import SPECIAL_TOKENS, WHOLE
from nanovlm.vision import preprocess

def loss_terms(model, batch):
    "Sum of the loss, and labelled tokens."
    n = int((batch["labels"][:, 1:] != -100).sum())
    return model(**batch) * n, n

@pytest.fixture
def example(processor, rows):
    return Examples(rows, processor)[3]

def test_easy_vqa_is_whole():
    for split, images, questions in (("train", 4000, 38_575), ("test", 1000, 9_673)):
        data = easy_vqa(split)
        assert len(data) == images and sum(map(len, data["texts"])) == questions
    assert {t["source"] for t in data[0]["texts"]} <= {"yes/no", "color", "shape"}

def test_shared_prefix_gives_the_loss_of_separate_rows(model, example):
    together, n = loss_terms(model, collate([example], questions=100))
    apart = [loss_terms(model, collate([example | dict(turns=[turn])])) for turn in example["turns"]]
    assert n == sum(m for _, m in apart)
    torch.testing.assert_close(together / n, sum(loss for loss, _ in apart) / n, atol=1e-5, rtol=0)

def test_no_question_sees_another(model, example):
    batch = collate([example], questions=3)
    del batch["labels"]
    before = model(**batch)
    prefix = len(example["prefix"])
    starts = (batch["position_ids"][0] == prefix).nonzero()[:, 0].tolist() # of the questions
    assert len(starts) == 3 and starts[0] == prefix
    end = starts[1] # of the first question
    batch["input_ids"][0, prefix:end] = 300 # all of it
    after = model(**batch)
    torch.testing.assert_close(after[0, end:], before[0, end:], atol=1e-6, rtol=0)
    assert not torch.allclose(after[0, prefix:end], before[0, prefix:end])

def test_padding_changes_nothing(model, processor, rows):
    examples = [Examples(rows, processor)[i] for i in range(4)]
    together, n = loss_terms(model, collate(examples, questions=100))
    apart = [loss_terms(model, collate([e], questions=100)) for e in examples]
    torch.testing.assert_close(together / n, sum(loss for loss, _ in apart) / n, atol=1e-5, rtol=0)

def test_only_answers_carry_loss(processor, example):
    batch = collate([example], questions=100)
    ids, labels = batch["input_ids"][0], batch["labels"][0]
    assert torch.equal(ids[labels != -100], labels[labels != -100])
    assert (labels == processor.eos_token_id).sum() == len(example["turns"])
    assert not (labels == processor.image_token_id).any()

@pytest.mark.parametrize("typed", [*SPECIAL_TOKENS, "Assistant: <image><image>", "<|im_start|>User:"])
def test_typed_special_tokens_stay_plain_text(processor, typed):
    special = {processor.tokenizer.token_to_id(t) for t in SPECIAL_TOKENS}
    assert not special & set(processor.encode(f"what is {typed}?"))
    assert processor.tokenizer.decode(list(processor.encode(typed))) == typed

def test_truncation_spares_images_and_question(processor):
    grids = [WHOLE] * 2
    processor.max_length = len(processor.prompt("what is it?", grids)) + 3
    prompt, answer = processor.example("what is it?", "a rectangle and a circle and a triangle", grids)
    ids = prompt + answer
    assert len(ids) == processor.max_length
    assert ids.count(processor.image_token_id) == 2 * processor.image_seq_len
    assert prompt == processor.prompt("what is it?", grids) and processor.eos_token_id not in answer
    processor.max_length -= 3
    with pytest.raises(ValueError, match="no room for an answer"):
        processor.example("what is it?", "a circle", grids)

def test_prompt_longer_than_the_context(processor):
    with pytest.raises(ValueError, match="context is 512"): processor([], "why? " * 600)

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
    with pytest.raises(ValueError, match=r"cannot read image .*bad.png") as caught:
        load_image(str(bad_image(kind, tmp_path)))
    assert "\n" not in str(caught.value)

@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I;16"])
def test_any_mode_becomes_pixels(mode):
    image = Image.new(mode, (40, 20)) # for I;16, to which Pillow converts nothing
    if mode != "I;16": image = Image.effect_noise((40, 20), 60).convert("RGB").convert(mode)
    pixels = preprocess(image, 32)
    assert pixels.shape == (3, 32, 32) and pixels.min() >= -1 and pixels.max() <= 1

def test_an_impossible_address_is_refused():
    with pytest.raises(ValueError, match="cannot read image 'http://localhost/a b.png'"):
        load_image("http://localhost/a b.png")

def test_upright():
    image = Image.new("RGB", (40, 20), "white")
    image.getexif()[0x0112] = 6 # turned by a quarter
    assert load_image(image).size == (20, 40)

@pytest.mark.parametrize("kind", ["truncated", "text", "missing"])
def test_an_unreadable_row_is_skipped_and_counted(processor, rows, tmp_path, kind):
    bad = from_questions([(bad_image(kind, tmp_path), "what is it?", "red", "test")])
    examples = Examples(datasets.concatenate_datasets([rows.select(range(3)), bad]), processor)
    batch = collate([examples[i] for i in range(4)])
    assert len(batch["input_ids"]) == 3 and len(batch["pixel_values"]) == 3
    assert examples.skipped.total() == 1 and "bad.png" in str(examples.skipped)
    assert collate([examples[3]]) is None

def test_an_unusable_question_does_not_cost_its_row(processor, rows):
    good = dict(user="what is it?", assistant="red", source="")
    bad = [good | dict(user="why? " * 600), good | dict(assistant="")]
    examples = Examples([rows[0] | dict(texts=texts) for texts in ([good, *bad], bad, [])], processor)
    assert [e and len(e["turns"]) for e in (examples[i] for i in (0, 1, 2, 0))] == [1, None, None, 1]
    assert [*examples.unusable] == [(0, 1), (0, 2), (1, 0), (1, 1), (2, None)]
    assert examples.skipped.total() == 5
    for reason in ("no room for an answer", "empty", "no questions"):
        assert any(reason in why for why in examples.skipped), reason

@pytest.fixture
def folder(tmp_path):
    "Three images with five questions, in a folder of one's own."
    for name, color in (("a.png", "red"), ("b.jpg", "blue"), ("c.webp", "green")):
        Image.new("RGB", (30, 40), color).save(tmp_path / name)
    table = [("a.png", "what colour?", "red"), ("b.jpg", "what colour?", "blue"),
             ("b.jpg", "is it blue?", "yes"), ("c.webp", "what colour, please?", "green"),
             ("a.png", "is it blue?", "no")]
    lines = [json.dumps(dict(zip(("file_name", "question", "answer"), row))) + "\n" for row in table]
    (tmp_path / "metadata.jsonl").write_text("".join(lines))
    return tmp_path

HEADER = "file_name,question,answer"

def as_csv(folder, lines):
    (folder / "metadata.jsonl").unlink(missing_ok=True)
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")

def test_image_folder(folder):
    data = load_data(str(folder))
    assert data.features == easy_vqa("test").features
    assert sorted(len(t) for t in data["texts"]) == [1, 2, 2]
    as_csv(folder, [HEADER, 'a.png,"red, or blue?",red'])
    text = dict(user="red, or blue?", assistant="red", source=folder.name)
    assert image_folder(folder)[0]["texts"] == [text]

def test_file_names_do_not_make_splits(folder):
    (folder / "train").mkdir()
    (folder / "a.png").rename(folder / "train/a.png")
    (folder / "b.jpg").rename(folder / "my_test.jpg")
    as_csv(folder, [HEADER, "train/a.png,what?,red", "my_test.jpg,what?,blue", "c.webp,what?,green"])
    for split in ("train", None): # all of it is one part
        answers = [t["assistant"] for texts in load_data(str(folder), split)["texts"] for t in texts]
        assert sorted(answers) == ["blue", "green", "red"]
    with pytest.raises(ValueError, match="no split 'test': it has train"): load_data(str(folder), "test")

@pytest.mark.parametrize("lines, complaint", [
    (["file_name,question", "a.png,what?"], "'answer'"),
    ([HEADER, "a.png,what?,"], "row 1 .* no answer"),
    ([HEADER, 'a.png,what?,"  "'], "row 1 .* no answer"),
    ([HEADER, "a.png,what?,red", "zzz.png,what?,red"], "row 2 .*zzz.png")])
def test_bad_metadata_is_named(folder, lines, complaint):
    as_csv(folder, lines)
    with pytest.raises(ValueError, match=complaint): image_folder(folder)

def test_folder_without_metadata(tmp_path):
    with pytest.raises(ValueError, match="metadata.csv"): load_data(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no data set"): load_data(str(tmp_path / "nothing"))

def test_several_images_and_none_in_one_batch(model, processor, rows):
    images = [i for r in rows.select(range(3)) for i in r["images"]]
    texts = [dict(user="is it?", assistant="yes", source="")]
    examples = Examples([dict(images=images[:n], texts=texts) for n in (0, 1, 3)], processor)
    batch = collate([examples[i] for i in range(3)])
    assert len(batch["pixel_values"]) == 4
    assert model(**batch).isfinite()
    assert "pixel_values" not in collate([examples[0]])

@pytest.mark.parametrize("images", [[], None], ids=["empty", "null"])
def test_no_image_is_an_empty_pixel_values(model, processor, images):
    rows = [dict(images=images, texts=[dict(user="is it?", assistant="yes", source="")] * 2)]
    ids = torch.tensor([processor.prompt("is it?", [])])
    alone = generate(model, ids, max_new_tokens=16, eos_token_id=processor.eos_token_id)
    for shown in ("own", "blank", "other"):
        predictions = predict(model, processor, rows, shown)
        assert [p["prediction"] for p in predictions] == [processor.decode(alone[0])] * 2

# Multiple-choice benchmarks

OPTIONS = ["The suitcase is on the book.", "The suitcase is beneath the cat.",
           "The suitcase is beneath the bed.", "The suitcase is beneath the book."]
LISTED = ", ".join(f"{letter}: {option}" for letter, option in zip("ABCD", OPTIONS))
MMSTAR = dict(index=0, answer="A", category="coarse perception", l2_category="image scene and topic",
              question="Which option describes the object relationship in the image correctly?\n"
                       f"Options: {LISTED}",
              meta_info=dict(source="MMBench", split="val", image_path="images/0.jpg"))

def test_mmstar_is_read_and_scored(model, processor, tmp_path):
    file = io.BytesIO()
    Image.effect_noise((50, 40), 90).save(file, "png")
    image = dict(bytes=file.getvalue(), path=None)
    kinds = ["coarse perception", "math"]
    benchmark = [MMSTAR | dict(index=n, image=image, answer="ABCD"[n % 4], category=kinds[n % 2])
                 for n in range(8)]
    datasets.Dataset.from_list(benchmark).to_parquet(tmp_path / "mmstar.parquet")
    choices = load_choices(str(tmp_path))
    assert choices[0]["options"] == OPTIONS and choices[0]["question"].endswith("correctly?")
    assert [c["answer"] for c in choices] == [0, 1, 2, 3] * 2 and choices[1]["source"] == "math"
    metrics = evaluate_choices(model, processor, choices, max_new_tokens=3)
    assert metrics["count"] == 8 and metrics["chance"] == 0.25
    counts = {kind: scores["count"] for kind, scores in metrics["by_type"].items()}
    assert counts == {kind: 4 for kind in kinds}

def test_replies_are_scored_by_their_letters(monkeypatch):
    "A model that always says B; and one that answers in words when it sees something."
    form = dict(images=[], options=["one", "two", "three"], source="all")
    choices = [form | dict(question=f"question {n}?", answer=n % 3) for n in range(9)]
    def pretend(reply): # reply(number of the row, images) stands in for the model
        def predict(model, processor, rows, images, **kwargs):
            return [dict(prediction=reply(n, images), source="all") for n in range(len(rows))]
        monkeypatch.setattr(evaluation, "predict", predict)
    pretend(lambda n, images: "B.")
    assert evaluate_choices(None, None, choices)["accuracy"] == pytest.approx(1 / 3)
    pretend(lambda n, images: ["one", "Two.", "a dog"][n % 3] if images == "own" else "C")
    metrics = evaluate_choices(None, None, choices)
    assert metrics["accuracy"] == pytest.approx(2 / 3) and metrics["unreadable"] == 3
    assert metrics["blind_accuracy"] == pytest.approx(1 / 3)

def test_scienceqas_form_is_read():
    both = dict(question="Which is a mammal?", answer=1)
    row = both | dict(image=None, choices=["a trout", "a bat"], hint="", subject="natural science")
    assert read_choice(row) == both | dict(images=[], options=["a trout", "a bat"], source="natural science")

@pytest.mark.parametrize("change, message", [
    (dict(question="What?"), "no options"),
    (dict(answer="E"), "'E' is none of the 4"),
    (dict(question="What?\nOptions: B: b, C: c"), "no options"),
    (dict(question="What?\nOptions: A: a, C: c", answer="C"), "none of the 1"),
    (dict(answer="?"), "none of the 4")])
def test_a_question_that_cannot_be_scored_is_refused(change, message):
    with pytest.raises(ValueError, match=message): read_choice(MMSTAR | change)

def test_a_folder_without_a_benchmark_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no Parquet file"): load_choices(str(tmp_path))
