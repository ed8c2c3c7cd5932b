"What a survey says about data: figures by hand, faults as training counts them, and no traceback."
import io, json, re
from collections import Counter
import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, SplitDict, SplitInfo
from PIL import Image
from test_layouts import SHARDS, write_names
from nanovlm.data import Examples, Part, cauldron_features, load_data
from nanovlm.survey import (
    Seen, accepted_answers, align, contact_sheet, describe_faults, plain_processor, read_header, some_rows,
    subset_table, survey)

@pytest.fixture(autouse=True)
def no_sleep(monkeypatch):
    "datasets waits five seconds at the end of every pass over a stream."
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)

def png(n, size=(4, 4), kind="png"):
    file = io.BytesIO()
    Image.new("RGB", size, (n % 256, n // 256, 0)).save(file, kind)
    return file.getvalue()

def picture(n, *size_and_kind): return dict(bytes=png(n, *size_and_kind), path=None)
def turn(user="what?", assistant="a", source="s"): return dict(user=user, assistant=assistant, source=source)
def row(*pictures, texts=None): return dict(images=[*map(picture, pictures)], texts=texts or [turn()])

def write(file, rows, kind=pa.string()):
    "Write rows as they are, nulls included."
    file.parent.mkdir(parents=True, exist_ok=True)
    text = pa.struct([(name, kind) for name in ("user", "assistant", "source")])
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema(dict(images=pa.list_(image), texts=pa.list_(text)).items())
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), file)

def table(folder, *lines, pictures=3, name="metadata.csv"):
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(pictures): (folder / f"{n}.png").write_bytes(png(n))
    (folder / name).write_text("\n".join(lines))

def figures(found, subset=None):
    "What is said about the rows: words, and the text behind them."
    said = {}
    seen = [s for s in found.seen if subset in (None, s.place[0])]
    lines = found.describe(subset).splitlines() + align([*describe_faults(seen)]).splitlines()
    for line in lines:
        what = line[:19].strip() or what
        said[what] = f"{said.get(what, '')} {line[19:]}".strip()
    return said

# The right figures

def test_easy_vqa():
    found = survey("easy-vqa", "test", limit=1000)
    said = figures(found)
    kinds = Counter(t["source"] for r in load_data("easy-vqa", "test") for t in r["texts"])
    assert kinds.total() == 9673
    yes_no = 100 * kinds["yes/no"] / 9673
    assert said["images per row"] == "1: 100 %" and said["formats"] == "PNG: 100 %"
    assert said["size in pixels"] == "median 64 × 64, smallest 64 × 64, largest 64 × 64"
    assert said["questions per row"].startswith("mean 9.67, median") and said["unusable"] == "nothing"
    assert said["kinds"].startswith(f"yes/no: {yes_no:.3g} %")
    assert said["in several rows"] == "0 of 1,000 pictures"
    assert found.splits["train"] == "4,000 rows; no picture is in both"
    assert found.shared == dict(train=[]) and not found.unusable
    assert max(map(len, str(found).splitlines())) <= 90

ROWS = [ # sizes 4 × 4, 8 × 3, 10 × 10; the first picture twice; six questions
    row(1, texts=[turn("ab", "yes"), turn("abcd", "Yes.")]),
    dict(images=[picture(1), picture(2, (10, 10), "jpeg")],
         texts=[turn("abc", "no", "t"), turn("abc", "yes")]),
    dict(images=[], texts=[turn("abc", "maybe not")]),
    dict(images=[picture(3, (8, 3))], texts=[turn("abcdefghij", "no")])]

@pytest.mark.parametrize("streaming", [False, True])
def test_figures_by_hand(tmp_path, streaming):
    write(tmp_path / "train-0.parquet", ROWS)
    assert figures(survey(str(tmp_path), streaming=streaming)) == {
        "images per row": "1: 50 %, 2: 25 %, 0: 25 %",
        "size in pixels": "median 8 × 3, smallest 4 × 4, largest 10 × 10",
        "formats": "PNG: 75 %, JPEG: 25 %",
        "in several rows": f"1 of 3 pictures, first row 0 of {tmp_path.name} and row 1 of {tmp_path.name}",
        "questions per row": "mean 1.5, median 1.5, 95th percentile 2, most 2",
        "question length": "median 3, 95th percentile 10, most 10 characters",
        "answer length": "median 3, 95th percentile 9, most 9 characters",
        "kinds": "s: 83.3 %, t: 16.7 %",
        "commonest answers": "yes: 50 %, no: 33.3 %, maybe not: 16.7 %",
        "guessing": "always 'yes' is right 50 % of the time",
        "unusable": "nothing"}

@pytest.mark.parametrize("given, accepted", [
    (dict(assistant="Net."), {"net"}), (dict(assistant="a", answers=[]), {"a"}),
    (dict(assistant="a", answers=["A", " b  c ", None, ""]), {"a", "b c"})])
def test_answers_that_are_accepted(given, accepted): assert accepted_answers(given) == accepted

def test_any_of_several_answers_is_right(tmp_path):
    lines = [json.dumps(dict(file_name=f"{n}.png", question="what?") | answer) for n, answer in enumerate(
        [dict(answers=["a", "b", "b"]), dict(answers=["a"]), dict(answer="b")])]
    table(tmp_path, *lines, name="metadata.jsonl")
    said = figures(survey(str(tmp_path)))
    assert said["commonest answers"].startswith(("a: 66.7 %, b: 66.7 %", "b: 66.7 %, a: 66.7 %"))
    assert said["several answers"] == "66.7 % of the questions have a list"

def test_with_a_processor_lengths_are_tokens_and_long_questions_are_named(tmp_path, trained):
    processor = trained[1]
    long = "word " * 3000
    write(tmp_path / "train-0.parquet", [row(1), row(2, texts=[turn(), turn(long)])])
    rows = load_data(str(tmp_path))
    found = survey(str(tmp_path), processor=processor)
    examples = Examples(rows, processor)
    for n in range(2): examples[n]
    assert {(n, k): why for (_, n, k), why in found.unusable.items()} == examples.unusable
    assert [*found.unusable] == [(tmp_path.name, 1, 1)]
    said = figures(found)
    assert said["squares per row"] == f"1: 100 %; a square takes {processor.image_seq_len} tokens"
    tokens = len(processor.encode("what?"))
    assert said["question length"] == f"median {tokens}, 95th percentile {tokens}, most {tokens} tokens"
    assert "--model" not in str(found) and "--model" in str(survey(str(tmp_path)))

@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("min_rating, turns, rows", [(1, [2, 1, 1], 3), (3, [1, 1], 2)])
def test_finevision_with_ratings(tmp_path, streaming, min_rating, turns, rows):
    "What a low rating leaves out is not surveyed; a row names the kind of its turns."
    rated = [row(1, texts=[turn(), turn("why?")]) | dict(relevance_ratings=[5, 2]),
             row(2) | dict(relevance_ratings=[None]), row(3) | dict(relevance_ratings=[1])]
    texts = [[dict(user=t["user"], assistant=t["assistant"]) for t in r["texts"]] for r in rated]
    data = Dataset.from_list([r | dict(source="ocr", texts=t) for r, t in zip(rated, texts)])
    (tmp_path / "a").mkdir()
    data.cast_column("images", cauldron_features()["images"]).to_parquet(tmp_path / "a/train-0.parquet")
    found = survey(str(tmp_path), streaming=streaming, min_rating=min_rating)
    assert [len(s.turns) for s in found.seen] == turns and len(found.seen) == rows
    assert figures(found)["kinds"] == "ocr: 100 %"

# Faults

BAD = [row(1), row(2) | dict(texts=None), row(3) | dict(texts=[]), row(4) | dict(texts=[None]),
       row(5, texts=[turn(), turn(None), turn(assistant=None), turn(""), turn(assistant="")]),
       row(6) | dict(images=None), row(7) | dict(images=[None]),
       row(8) | dict(images=[dict(bytes=None, path=None)]),
       row(9) | dict(images=[dict(bytes=b"no", path=None)]),
       row(10) | dict(images=[dict(bytes=None, path="/none.png")]),
       row(11, texts=[turn("is <image> like <image>?")]),
       row(12) | dict(images=[dict(bytes=png(12, (300, 300))[:-40], path=None)]), row(13)]

@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("source", [False, True])
def test_reasons_are_those_that_training_counts(tmp_path, source, streaming):
    rows = BAD if source else [BAD[0] | dict(texts=[None]), *BAD]
    write(tmp_path / "a/train-0.parquet", rows)
    examples = Examples([*load_data(str(tmp_path), streaming=streaming)], plain_processor(), cache=False)
    for n in range(len(rows)): examples[n]
    found = survey(str(tmp_path), streaming=streaming)
    def plain(reasons): return {place[-2:]: re.sub("0x[0-9a-f]+", "", why) for place, why in reasons.items()}
    assert plain(found.unusable) == plain(examples.unusable) and len(found.unusable) >= 12
    assert found.unusable.keys() == {("a", n, k) for n, k in examples.unusable}
    assert "1 × 2 × <image> in" in figures(found)["unusable"]
    assert found.sheet().size[0] == 1000
    assert max(map(len, str(found).splitlines())) <= 90

@pytest.mark.parametrize("reasons, said", [
    ([{}], ["nothing"]),
    ([{0: "row 1 ('a') is bad"}, {}, {2: "row 22 ('b') is bad"}],
     ["2 × row 1 ('a') is bad (first: row 0 of a, question 0)"]),
    ([{None: "x"}, {0: "y", 1: "y"}],
     ["2 × y (first: row 1 of a, question 0)", "1 × x (first: row 0 of a)"])], ids=str)
def test_reasons_are_grouped(reasons, said):
    seen = [Seen(("a", n), unusable) for n, unusable in enumerate(reasons)]
    assert [text for _, text in describe_faults(seen)] == said

class Failing(list):
    "Rows of which some cannot be read."
    def __getitem__(self, n):
        if n > 1: raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")
        return row(n)

def failing_stream():
    yield row(0)
    raise pa.ArrowInvalid("a page is damaged\nin many lines")

@pytest.mark.parametrize("rows, read", [(Failing(range(4)), 2), (failing_stream(), 1), (iter(()), 0)])
def test_rows_that_cannot_be_read_are_said(rows, read):
    found = [*some_rows([Part("a", rows, None)], 10)]
    assert [isinstance(r, dict) for _, r in found[:read]] == [True] * read
    for (subset, n), why in found[read:]: assert "cannot be read" in why and "\n" not in why and n == read - 1

# Splits

def test_leaks_are_counted_and_named(tmp_path):
    write(tmp_path / "a/train-0.parquet", [row(n) for n in range(10)])
    write(tmp_path / "b/train-0.parquet", [row(n) for n in (20, 3)])
    write(tmp_path / "a/test-0.parquet", [row(n) for n in (30, 4, 3, 4)] + [row(7) | dict(images=[None])])
    write(tmp_path / "b/val-0.parquet", [row(40)])
    found = survey(str(tmp_path))
    assert found.shared == dict(test=[(("a", 4), ("a", 1)), (("a", 3), ("a", 2))], val=[])
    assert [*found.splits.items()] == [
        ("train", "12 rows, this one"),
        ("test", "5 rows; PICTURES IN BOTH: 2, first row 4 of a here, row 1 of a there"),
        ("val", "1 rows; no picture is in both")]
    assert figures(found)["in several rows"] == "1 of 11 pictures, first row 3 of a and row 1 of b"
    assert survey(f"{tmp_path}:b").shared["test"] == [(("b", 1), ("a", 2))]
    other = survey(str(tmp_path), "test")
    assert other.shared["train"] == [(("a", 2), ("a", 3)), (("a", 1), ("a", 4))]

@pytest.mark.parametrize("layout", SHARDS)
def test_each_layout_gives_its_split(tmp_path, layout):
    names, wanted = SHARDS[layout]
    write_names(tmp_path, names)
    for (subset, split), files in wanted.items():
        found = survey(f"{tmp_path}{subset}", split)
        assert len(found.seen) == len(files.split()) and not any(found.shared.values())

@pytest.mark.parametrize("names, split, splits", [
    (["train/0", "test/0"], "train", ["train", "test"]), (["val-0", "test-0"], "test", ["test", "val"]),
    (["dev-0", "dev-1"], "dev", ["dev"]), (["Train/0", "TEST/0"], "train", ["train", "test"]),
    (["shapes/0", "colours/0"], "train", ["train"]),
    (["train/0", "test/0", "more/0"], "train", ["train", "test"]),
    (["a/train/0", "a/test/0", "b/train/0", "b/dev/0"], "train", ["train", "dev", "test"]),
    ([".cache/test-0", "a/train-0", "a/.train-1"], "train", ["train"])], ids=str)
def test_which_splits_there_are(tmp_path, names, split, splits):
    write_names(tmp_path, names)
    found = survey(str(tmp_path))
    assert found.split == split and [*found.splits][0] == split and {*found.splits} == {*splits}
    assert " ".join(str(found).split()).startswith(f"{tmp_path}: looked at")

def test_a_table_and_its_splits(tmp_path):
    table(tmp_path, "file_name,question,answer,split", "0.png,what?,a,train", "1.png,what?,b,val",
          "1.png,why?,b,train")
    found = survey(str(tmp_path))
    assert found.splits["train"] == "2 rows, this one"
    assert found.shared["val"] == [((tmp_path.name, 1), (tmp_path.name, 0))]
    assert survey(str(tmp_path), "validation").splits["validation"] == "1 rows, this one"

def test_a_split_that_cannot_be_opened_is_said(tmp_path):
    table(tmp_path / "train", "file_name,question,answer", "0.png,what?,a")
    table(tmp_path / "test", "file_name,question,answer", "none.png,what?,a")
    assert "not opened: row 1 of the metadata" in survey(str(tmp_path)).splits["test"]

def test_a_mixture_is_shown_by_subset(tmp_path):
    write(tmp_path / "a/train-0.parquet", [row(n) for n in range(30)])
    write(tmp_path / "b/train-0.parquet", [row(n, texts=[turn(), turn(None)]) for n in range(100, 104)])
    found = survey(f"{tmp_path}:a=2,b", limit=20)
    assert [line.split() for line in subset_table(found.parts, found.seen).splitlines()[1:]] == [
        ["a", "30", "2", "10", "10", "0"], ["b", "4", "1", "4", "4", "4"]]
    assert [s.place[1] for s in found.seen] == [*range(0, 30, 3), 0, 1, 2, 3]
    text = str(found)
    assert " ".join(text.split()).startswith(f"{tmp_path}:a=2,b: looked at 14 of 34 rows")
    assert "\nb\n" in text and "all subsets" in text
    assert figures(found, "b")["unusable"].startswith("4 × the question is missing")

@pytest.mark.parametrize("streaming, numbers", [(False, [0, 25, 50, 75]), (True, [0, 1, 2, 3])])
def test_few_rows_of_many(tmp_path, streaming, numbers):
    write(tmp_path / "train-0.parquet", [row(n) for n in range(100)])
    found = survey(str(tmp_path), limit=4, streaming=streaming)
    assert [s.place[1] for s in found.seen] == numbers
    assert "looked at 4 of 100 rows" in " ".join(str(found).split())

def test_large_data_and_the_hub_are_streamed(tmp_path, monkeypatch):
    "What the hub tells of its splits is shown, and nothing else of them is asked for."
    asked = []
    def load(path, name, split, streaming):
        asked.append((path, name, split, streaming))
        rows = Dataset.from_list([row(1), row(2)], features=cauldron_features()).to_iterable_dataset()
        rows.info.splits = SplitDict(train=SplitInfo("train", num_examples=2),
                                     test=SplitInfo("test", num_examples=7))
        return rows
    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda name: ["vqav2"])
    found = survey("someone/cauldron:vqav2", limit=1)
    assert asked == [("someone/cauldron", "vqav2", "train", True)] and len(found.seen) == 1
    assert found.splits == dict(train="2 rows, this one", test="7 rows, not opened")

# What cannot be surveyed is refused in one line

def empty(root): return str(root)
def missing(root): return str(root / "none")
def no_name(root): return "vqa-easy"
def damaged(root):
    (root / "train-0.parquet").write_bytes(b"not Parquet")
    return str(root)
def mmstar(root):
    data = pa.table(dict(index=[0], question=["Which? Options: A: x, B: y"], answer=["A"], image=[png(1)]))
    pq.write_table(data, root / "val-0.parquet")
    return str(root)
def science(root):
    data = pa.table(dict(question=["Which?"], choices=[["x", "y"]], answer=[0], hint=[""], image=[None]))
    pq.write_table(data, root / "test-0.parquet")
    return str(root)
def chat(root):
    pq.write_table(pa.table(dict(conversations=["x"])), root / "train-0.parquet")
    return str(root)
def two_words(root):
    write(root / "train/test-0.parquet", [row(1)])
    return str(root)

@pytest.mark.parametrize("make, message", [
    (empty, "no metadata.csv or metadata.jsonl"), (missing, "no data set"),
    (no_name, "no data set 'vqa-easy'"),
    (damaged, "cannot read .*train-0.parquet"), (mmstar, "nanovlm evaluate CHECKPOINT --data .* --choices"),
    (science, "nanovlm evaluate CHECKPOINT --data .* --choices"),
    (chat, "(?!.*--choices).*not 'images' and 'texts'"),
    (two_words, "names two splits")])
def test_what_is_refused(tmp_path, make, message):
    name = make(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught: survey(name)
    assert "\n" not in str(caught.value)

@pytest.mark.parametrize("options, message", [
    (dict(limit=0), "a limit of 0 rows"), (dict(split="val"), "has no split 'val'|split 'val'")])
def test_options_that_cannot_be_meant(options, message):
    with pytest.raises(ValueError, match=message): survey("easy-vqa", **options)

# Drawing

def test_headers_are_read_and_nothing_else():
    "Half a picture has its whole size."
    whole = png(1, (300, 200))
    assert read_header(dict(bytes=whole[:60], path=None)) == (300, 200, "PNG")
    assert read_header(Image.new("RGB", (3, 2))) == (3, 2, "in memory")
    nothing = dict(bytes=None, path=None)
    for source in (nothing | dict(bytes=b"no"), nothing, nothing | dict(path="/none.png"), None):
        assert read_header(source) is None

def test_a_line_is_never_too_wide():
    lines = align([("what", "word " * 60), ("what", "x" * 200), ("else", "")]).splitlines()
    assert max(map(len, lines)) <= 90 and lines[0].startswith("what") and not lines[1].startswith("what")

BROKEN = dict(bytes=b"no", path=None)
SHOWN = [row(200), dict(images=[picture(250), BROKEN], texts=[turn("long " * 99, "y" * 300)] * 3),
         dict(images=[], texts=[]), dict(images=None, texts=None),
         dict(images=[None], texts=[None, turn(None, None)]),
         row(5, texts=[turn("half \ud800", "ünï 你好\x00\n→")]),
         dict(images=[dict(bytes=png(1, (2000, 1)), path=None)] * 9, texts=[turn()])]

def test_a_contact_sheet():
    sheet = contact_sheet(SHOWN, [*"abcdefg"], width=1000)
    assert sheet.size[0] == 1000 and sheet.getpixel((20, 100)) == (200, 0, 0)
    assert sheet.getpixel((270, 50)) == (250, 0, 0)   # the first of two, side by side
    assert sheet.getpixel((420, 20)) == (238, 238, 238) # a blank beside it
    assert sheet.tobytes() == contact_sheet(SHOWN, [*"abcdefg"]).tobytes()
    assert contact_sheet([], []).size == (1000, 0)

@pytest.mark.parametrize("streaming", [False, True])
def test_rows_are_drawn_with_a_seed(tmp_path, streaming):
    write(tmp_path / "train-0.parquet", [row(n) for n in range(40)])
    found = survey(str(tmp_path), streaming=streaming)
    assert found.sheet().tobytes() == found.sheet().tobytes() != found.sheet(seed=1).tobytes()
    assert found.sheet(count=99).size[1] > found.sheet(count=4).size[1]
