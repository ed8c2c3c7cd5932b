"Other people's folders: which rows are learnt, which are held out, and what their texts say."
import io, json, pickle, re
import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from PIL import Image
from nanovlm.batches import Windows
from nanovlm.data import (
    Examples, cauldron_features, describe_mixture, easy_vqa, load_data, make_example, mixture_table,
    open_data, pick_split, read_turn, split_files, split_rows)
from nanovlm.processor import WHOLE

@pytest.fixture(autouse=True)
def no_sleep(monkeypatch):
    "datasets waits five seconds at the end of every pass over a stream."
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)

def png(n):
    "The file of a picture that differs from that of every other number below 2**24."
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (n % 256, n // 256 % 256, n // 65536)).save(file, "png")
    return file.getvalue()

def row(*pictures, question="what is it?", answer=None):
    answer = answer or "".join(map(str, pictures)) or "text"
    images = [dict(bytes=png(n), path=None) for n in pictures]
    return dict(images=images, texts=[dict(user=question, assistant=answer, source="s")])

def write(file, rows):
    "Write rows in The Cauldron's schema into a Parquet file."
    file.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows, features=cauldron_features()).to_parquet(file)

def images_of(rows): return {image["bytes"] for row in rows for image in row["images"]}
def answers(rows): return [text["assistant"] for row in rows for text in row["texts"]]

TURN = dict(user="why?", assistant="so")

# Splits

def weighted(root):
    write(root / "shapes/train-0.parquet", [row(n) for n in range(200)])
    write(root / "colours/train-0.parquet", [row(n) for n in range(200, 220)])
    return f"{root}:shapes=1,colours=2", 220

def two_subsets(root):
    write(root / "ai2d/train-0.parquet", [row(n) for n in range(40)])
    write(root / "vqav2/train-0.parquet", [row(n, question="which number?") for n in range(40)])
    return str(root), 40

def repeated_rows(root):
    write(root / "a/train-0.parquet", [row(n % 12) for n in range(60)])
    return str(root), 12

def shared_pictures(root):
    "Rows of two pictures, of which each is in the next row, too."
    write(root / "a/train-0.parquet", [row(n, n + 1) for n in range(60)])
    return str(root), 61

@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("make", [weighted, two_subsets, repeated_rows, shared_pictures])
def test_no_image_that_is_held_out_is_learnt(tmp_path, make, streaming):
    name, pictures = make(tmp_path)
    rows = load_data(name, streaming=streaming)
    learnt, held = split_rows(rows, 0.2)
    assert images_of(held) and images_of(learnt) and not images_of(held) & images_of(learnt)
    assert len(images_of(held) | images_of(learnt)) >= pictures - 2 * len(held)
    assert len({repr(row) for row in held}) == len(held) # a repeat teaches nothing new about the model
    if not streaming and make is not shared_pictures:
        assert len(images_of(held)) == round(0.2 * pictures)

def test_texts_do_not_decide_what_a_stream_holds_out(tmp_path):
    "Neither does another process: its checksums are the same."
    for name, question in (("a", "what?"), ("b", "why?")):
        write(tmp_path / name / "a/train.parquet", [row(n, question=question) for n in range(50)])
    held = [answers(split_rows(load_data(str(tmp_path / name), streaming=True), 0.3)[1]) for name in "ab"]
    assert held[0] == held[1] == held[0] and 5 < len(held[0]) < 25

def test_easy_vqa_is_split_as_ever():
    "Where all images differ, the rows are those of datasets' own train_test_split, in its order."
    rows = easy_vqa("test")
    for share, seed in ((0.05, 0), (0.2, 3)):
        theirs = rows.train_test_split(test_size=round(share * len(rows)), seed=seed)
        for ours, part in zip(split_rows(rows, share, seed=seed), ("train", "test")):
            assert ours["images"] == theirs[part]["images"] and ours["texts"] == theirs[part]["texts"]

class Unread:
    "Rows that nobody may look at."
    def __getattr__(self, name): raise AssertionError(f"{name} was asked for")

@pytest.mark.parametrize("options", [dict(share=0), dict(most=0)], ids=str)
def test_nothing_is_held_out_and_nothing_read(options):
    rows = Unread()
    learnt, held = split_rows(rows, **options)
    assert learnt is rows and not held

@pytest.mark.parametrize("share", [-0.5, 1, 2, float("nan")])
def test_a_share_that_cannot_be_is_refused(share):
    with pytest.raises(ValueError, match=f"share of {share} .* give 0"): split_rows(Unread(), share)

@pytest.mark.parametrize("pictures", [[(1,)], [(1,)] * 5, [(1, 2), (1, 3), (1, 4)]])
def test_a_split_that_leaves_nothing_to_learn_is_refused(pictures):
    rows = Dataset.from_list([row(*shown) for shown in pictures], features=cauldron_features())
    with pytest.raises(ValueError, match="none are left to learn from"): split_rows(rows, 0.3)

def test_rows_without_pictures_are_told_apart_by_their_texts():
    rows = [row(answer=str(n % 10)) for n in range(30)]
    learnt, held = split_rows(Dataset.from_list(rows, features=cauldron_features()), 0.2)
    assert len(held) == 2 and len(learnt) == 24 and not {*answers(held)} & {*answers(learnt)}

def test_one_picture_in_two_files_is_one_picture(tmp_path):
    lines = ["file_name,question,answer"]
    for n in range(20):
        (tmp_path / f"{n}.png").write_bytes(png(n % 10))
        lines.append(f"{n}.png,what?,{n % 10}")
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    learnt, held = split_rows(load_data(str(tmp_path)), 0.2)
    assert len(learnt) == 16 and not {*answers(held)} & {*answers(learnt)}

@pytest.mark.parametrize("name", ["a", ":a=1,b=2", ""])
def test_streams_can_be_sent_to_another_process(tmp_path, name):
    for subset in "ab": write(tmp_path / subset / "train-0.parquet", [row(n) for n in range(10)])
    stream = load_data(f"{tmp_path}/{name}" if name == "a" else f"{tmp_path}{name}", streaming=True)
    learnt, held = split_rows(stream, 0.2)
    copy = pickle.loads(pickle.dumps(learnt))
    assert answers(copy) == answers(learnt) != []

@pytest.mark.parametrize("wanted", ["", ":a=1,b=2"])
def test_what_reads_a_stream_can_be_sent_to_another_process(tmp_path, processor, wanted):
    "A worker that is spawned (macOS, Windows, Python 3.14) gets a pickled copy, which reads the same."
    for subset in "ab": write(tmp_path / subset / "train-0.parquet", [row(n) for n in range(10)])
    learnt, _ = split_rows(load_data(f"{tmp_path}{wanted}", streaming=True), 0.2)
    windows = Windows(Examples(learnt, processor), 4)
    copy = pickle.loads(pickle.dumps(windows))
    first, same = [next(iter(w))["batch"]["input_ids"] for w in (windows, copy)]
    assert first.equal(same)

# Layouts

SHARDS = { # files, each with one row whose answer is its path; what a name and a split give
    "folders": (["train/0", "test/0"], {("", "train"): "train/0", ("", "test"): "test/0"}),
    "names": (["train-0", "val-0", "valid-0", "dev-0", "eval-0", "test-0"],
              {("", "train"): "train-0", ("", "val"): "val-0", ("", "dev"): "dev-0", ("", "eval"): "eval-0",
               ("", "valid"): "valid-0", ("", "validation"): "dev-0 eval-0 val-0 valid-0",
               ("", "test"): "test-0"}),
    "shards": (["train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001"],
               {("", "train"): "train-00000-of-00002 train-00001-of-00002",
                ("", "eval"): "validation-00000-of-00001"}),
    "data": (["data/train-0", "data/val-0"],
             {("", "train"): "data/train-0", (":data", "validation"): "data/val-0"}),
    "subsets": (["ai2d/train/0", "ai2d/test/0", "vqav2/train/0", "vqav2/dev/0"],
                {(":ai2d", "train"): "ai2d/train/0", ("", "train"): "ai2d/train/0 vqav2/train/0",
                 ("", "test"): "ai2d/test/0", (":vqav2", "valid"): "vqav2/dev/0"}),
    "splits first": (["train/ai2d/0", "train/vqav2/0", "test/ai2d/0"],
                     {(":ai2d", "train"): "train/ai2d/0", (":ai2d", "test"): "test/ai2d/0"}),
    "data in subsets": (["ai2d/data/train-0", "vqav2/data/train-0"],
                        {(":ai2d", "train"): "ai2d/data/train-0"}),
    "years": (["train2014/0", "val2014/0"], {("", "train"): "train2014/0", ("", "val"): "val2014/0"}),
    "hive": (["split=train/0", "split=test/0"], {("", "test"): "split=test/0"}),
    "capitals": (["Train/0", "TEST/0"], {("", "train"): "Train/0", ("", "test"): "TEST/0"}),
    "infix": (["shapes_train_0", "shapes_test_0"],
              {("", "train"): "shapes_train_0", ("", "test"): "shapes_test_0"}),
    "no names": (["shapes/0", "colours/0"],
                 {("", "train"): "colours/0 shapes/0", ("", None): "colours/0 shapes/0"}),
    "a subset of one part": (["train/0", "test/0", "more/0"],
                             {("", "train"): "more/0 train/0", ("", "test"): "test/0"}),
    "same last word": (["a/x/train-0", "b/x/train-0"], {(":a/x", "train"): "a/x/train-0"}),
    "hidden": ([".cache/train-0", "a/train-0", "a/.train-1"], {("", "train"): "a/train-0"})}

def write_names(root, names):
    for n, name in enumerate(names): write(root / f"{name}.parquet", [row(n, answer=name)])

@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("layout", SHARDS)
def test_each_layout_gives_its_split(tmp_path, layout, streaming):
    names, wanted = SHARDS[layout]
    write_names(tmp_path, names)
    for (subset, split), files in wanted.items():
        found = answers(load_data(f"{tmp_path}{subset}", split, streaming=streaming))
        assert sorted(found) == files.split(), (subset, split)

@pytest.mark.parametrize("names, split, message", [
    (["train/0", "test/0"], "val", "split 'val': choose one of test, train"),
    (["train-0", "more-0"], "train", "more-0.parquet names no split"),
    (["train/test-0"], "train", "names two splits, test and train"),
    (["shapes_train_val"], "train", "names two splits, train and val"),
    (["shapes/0"], "test", "split 'test': choose one of train"),
    (["train-0", "test-0"], None, "has the splits test, train: say which")])
def test_a_layout_that_is_not_clear_is_refused_by_name(tmp_path, names, split, message):
    write_names(tmp_path, names)
    with pytest.raises(ValueError, match=message): load_data(str(tmp_path), split)

def test_benchmarks_find_the_files_of_their_split(tmp_path):
    write_names(tmp_path, ["data/val-0", "data/val-1", "data/test-0"])
    found = [file[-13:] for file in split_files(str(tmp_path), "validation")]
    assert found == ["val-0.parquet", "val-1.parquet"]
    with pytest.raises(ValueError, match="split 'train': choose one of test, val"):
        split_files(str(tmp_path), "train")
    with pytest.raises(FileNotFoundError, match="no Parquet file"): split_files(str(tmp_path / "none"), "val")

@pytest.mark.parametrize("names, wished, found", [
    (["train-0", "test-0"], ["test", "validation"], "test"), (["train-0", "dev-0"], ["test", "val"], "val"),
    (["shapes/0"], ["test"], None)])
def test_a_split_is_picked_among_those_there(tmp_path, names, wished, found):
    write_names(tmp_path, names)
    assert pick_split(str(tmp_path), *wished) == found
    assert pick_split("easy-vqa", *wished) == wished[0]

def test_no_split_is_picked_that_is_not_there(tmp_path):
    write_names(tmp_path, ["train-0"])
    with pytest.raises(ValueError, match="splits train, none of test"): pick_split(str(tmp_path), "test")

# Folders with a table

def table(folder, *lines, name="metadata.csv", pictures=3):
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(pictures): (folder / f"{n}.png").write_bytes(png(n))
    (folder / name).write_text("\n".join(lines), encoding="utf-8")
    return folder

HEADER = "file_name,question,answer"

def test_tables_in_folders_of_their_split(tmp_path):
    for split in ("train", "test", "val"): table(tmp_path / split, HEADER, f"0.png,what?,{split}")
    for split in ("train", "test", "val", "dev"):
        assert answers(load_data(str(tmp_path), split)) == [split.replace("dev", "val")]
    (tmp_path / "val/metadata.csv").unlink()
    with pytest.raises(ValueError, match="no split 'val': it has test, train"):
        load_data(str(tmp_path), "val")
    with pytest.raises(ValueError, match="splits test, train: say which"): load_data(str(tmp_path), None)

def test_a_column_says_the_split(tmp_path):
    table(tmp_path, f"{HEADER},split", "0.png,what?,a,train", "1.png,what?,b,val", "2.png,what?,c,train")
    assert answers(load_data(str(tmp_path))) == ["a", "c"]
    assert answers(load_data(str(tmp_path), "validation")) == ["b"]
    assert pick_split(str(tmp_path), "test", "validation") == "validation"
    with pytest.raises(ValueError, match="no split 'test': it has train, val"):
        load_data(str(tmp_path), "test")

def test_a_table_without_parts_is_one_part(tmp_path):
    table(tmp_path, HEADER, "0.png,what?,a")
    assert pick_split(str(tmp_path), "test") is None and answers(load_data(str(tmp_path), None)) == ["a"]
    with pytest.raises(ValueError, match="no split 'test': it has train"): load_data(str(tmp_path), "test")

def test_parquet_beside_a_table_is_refused_by_name(tmp_path):
    table(tmp_path, HEADER, "0.png,what?,a")
    write(tmp_path / "more/train-0.parquet", [row(1)])
    with pytest.raises(ValueError, match="metadata.csv and train-0.parquet"): load_data(str(tmp_path))

def test_two_tables_in_one_folder_are_refused(tmp_path):
    table(tmp_path, HEADER, "0.png,what?,a")
    table(tmp_path, '{"file_name": "0.png"}', name="metadata.jsonl")
    with pytest.raises(ValueError, match="two tables, metadata.csv and metadata.jsonl"):
        load_data(str(tmp_path))

# Mixtures

def ab(root, a=20, b=5):
    write(root / "a/train-0.parquet", [row(n, answer="a") for n in range(a)])
    write(root / "b/train-0.parquet", [row(n, answer="bbb") for n in range(100, 100 + b)])
    return str(root)

@pytest.mark.parametrize("streaming", [False, True])
def test_without_weights_each_row_comes_once(tmp_path, streaming):
    rows = [repr(r) for r in load_data(ab(tmp_path), streaming=streaming)]
    assert len(rows) == len({*rows}) == 25

def test_streams_without_weights_are_well_mixed(tmp_path):
    found = answers(load_data(ab(tmp_path, 200, 50), streaming=True))
    for half in (found[:125], found[125:]): assert 15 <= half.count("bbb") <= 35

@pytest.mark.parametrize("wanted, share", [("a=1,b=1", 0.5), ("a=3,b", 0.25), ("a,b=4", 0.8), ("a=0,b=1", 1)])
def test_weights_mean_the_same_streamed_or_not(tmp_path, wanted, share):
    name = f"{ab(tmp_path, 60, 40)}:{wanted}"
    for streaming in (False, True):
        found = answers(load_data(name, streaming=streaming))
        assert found.count("bbb") / len(found) == pytest.approx(share, abs=0.12), streaming

@pytest.mark.parametrize("wanted, message", [
    ("a,b,a", "names the subset 'a' twice"), ("a=1,a=2", "twice"), ("a=nan,b", "nothing to draw from"),
    ("a=inf,b", "nothing to draw from"), ("a=x", "not a number"), ("c", "no subset 'c'")])
def test_a_mixture_that_cannot_be_meant_is_refused(tmp_path, wanted, message):
    with pytest.raises(ValueError, match=message): load_data(f"{ab(tmp_path)}:{wanted}")

def test_blanks_between_subsets_do_not_matter(tmp_path):
    assert len(load_data(f"{ab(tmp_path)}:a, b")) == 25

def write_rated(file, ratings):
    file.parent.mkdir(parents=True)
    rows = [row(n) | dict(relevance_ratings=[rating]) for n, rating in enumerate(ratings)]
    data = Dataset.from_list(rows).cast_column("images", cauldron_features()["images"])
    data.to_parquet(file)

@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("wanted", ["", ":a=1,low=5,none"])
def test_an_empty_subset_is_named_and_left_out(tmp_path, wanted, streaming, capsys):
    "One without rows, and one in which a filter leaves nothing; neither is looked through again and again."
    ab(tmp_path)
    write_rated(tmp_path / "low/train-0.parquet", [1, 2] * 10)
    write_table(tmp_path / "none/train-0.parquet", [])
    rows = load_data(f"{tmp_path}{wanted}", streaming=streaming, min_rating=3)
    assert len(list(rows)) == (20 if wanted else 25)
    assert "left out, as no row is in them: low, none" in capsys.readouterr().err
    with pytest.raises(ValueError, match="no row in low"):
        load_data(f"{tmp_path}:low", streaming=streaming, min_rating=3)

@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("wanted, drawn, lines", [
    ("", None, [("a", 20, None, 0.8, 20 / 35, 1), ("b", 5, None, 0.2, 15 / 35, 1)]),
    ("", 250, [("a", 20, None, 0.8, 20 / 35, 10), ("b", 5, None, 0.2, 15 / 35, 10)]),
    (":a=1,b=1", None, [("a", 20, 1, 0.5, 0.25, 1), ("b", 5, 1, 0.5, 0.75, 4)]),
    (":b=3,a", 100, [("b", 5, 3, 0.75, 0.9, 15), ("a", 20, 1, 0.25, 0.1, 1.25)])])
def test_a_mixture_is_described(tmp_path, wanted, drawn, lines, streaming):
    described = describe_mixture(open_data(ab(tmp_path) + wanted, streaming=streaming), drawn)
    for line, wished in zip(described, lines, strict=True):
        assert [*line.values()][:3] == [*wished[:3]]
        assert [*line.values()][3:6] == pytest.approx(wished[3:])
    assert len(mixture_table(described).splitlines()) == 3

def test_any_data_set_is_described(tmp_path):
    line, = describe_mixture(open_data("easy-vqa", "test"), measure=lambda answer: len(answer.split()))
    assert line["rows"] == 1000 and line["times_seen"] == 1

# Tables

WRITTEN = ["7", "007", "3.10", "1e5", "NA", "N/A", "None", "null", "nan", "true", "True", "2018-03-25",
           "2018-03-25 10:00", "12345678901234567890123", "1,000", "+1", "-0", "1/2", "50 %", "Ünï",
           "a\u2028b", "[x]"]

@pytest.mark.parametrize("kind", ["csv", "jsonl", "csv with a mark"])
def test_text_stays_the_text_that_was_written(tmp_path, kind):
    if kind == "jsonl":
        lines = [json.dumps(dict(file_name=f"{n % 3}.png", question="what?", answer=text), ensure_ascii=False)
                 for n, text in enumerate(WRITTEN)]
    else: lines = [HEADER, *(f'{n % 3}.png,what?,"{text}"' for n, text in enumerate(WRITTEN))]
    if kind == "csv with a mark": lines[0] = "\ufeff" + lines[0] # as Excel writes it
    table(tmp_path, *lines, name=f"metadata.{kind.split()[0]}")
    assert sorted(answers(load_data(str(tmp_path)))) == sorted(WRITTEN)

@pytest.mark.parametrize("written", ["3.10", "1e5", "7", "12345678901234567890123", "true",
                                     "-0.0", "1E400"])
def test_numbers_in_json_stay_as_written(tmp_path, written):
    table(tmp_path, f'{{{ONE}, "answer": {written}}}', name="metadata.jsonl")
    assert answers(load_data(str(tmp_path))) == [written]

@pytest.mark.parametrize("first, last", [("2", "2.5"), ("1", "one"), ("true", "7"), ("2018-03-25", "soon")])
def test_a_type_that_changes_late_changes_nothing(tmp_path, first, last):
    table(tmp_path, HEADER, *[f"0.png,what?,{first}"] * 12_000, f"1.png,what?,{last}")
    assert {*answers(load_data(str(tmp_path)))} == {first, last}

def test_an_empty_cell_beside_whole_numbers(tmp_path):
    table(tmp_path, f"{HEADER},note", "0.png,what?,7,1", "1.png,what?,8,", "", "2.png,what?,9,3")
    assert answers(load_data(str(tmp_path))) == ["7", "8", "9"]

@pytest.mark.parametrize("fields, learnt, kept", [
    (dict(answer=["net", "netting", "net"]), "net", ["net", "netting", "net"]),
    (dict(answers=["a", "b", "b"]), "b", ["a", "b", "b"]),
    (dict(answer="b", answers=["a", "a", "b"]), "b", ["a", "a", "b"]),
    (dict(answers=[dict(answer="yes", answer_id=1), dict(answer="no", answer_id=2)]), "yes", ["yes", "no"]),
    (dict(answers=["x", None, " ", "x"]), "x", ["x", "x"]),
    (dict(answers="['red', 'dark red', 'red']"), "red", ["red", "dark red", "red"]), # as Python writes a list
    (dict(answers="[unclear]"), "[unclear]", ["[unclear]"]), (dict(answers="red"), "red", ["red"]),
    (dict(answer=[7, 8, 8]), "8", ["7", "8", "8"])], ids=str)
def test_of_several_answers_the_commonest_is_learnt(tmp_path, fields, learnt, kept):
    one = dict(file_name="0.png", question="what?")
    more = one | dict(file_name="1.png", answer="only")
    table(tmp_path, json.dumps(one | fields), json.dumps(more), name="metadata.jsonl")
    first, second = load_data(str(tmp_path))["texts"]
    assert first[0]["assistant"] == learnt and first[0]["answers"] == kept
    assert second[0]["assistant"] == "only" and second[0]["answers"] is None

@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("wanted", ["", ":one=2,several", ":several"])
def test_several_answers_survive_a_mixture(tmp_path, wanted, streaming):
    turn = dict(user="what?", assistant="a", source="s", answers=["a", "b"])
    write(tmp_path / "one/train-0.parquet", [row(1)])
    data = Dataset.from_list([row(2) | dict(texts=[turn])], features=cauldron_features(True))
    (tmp_path / "several").mkdir()
    data.to_parquet(tmp_path / "several/train-0.parquet")
    found = [text for r in load_data(f"{tmp_path}{wanted}", streaming=streaming) for text in r["texts"]]
    kept = {str(text.get("answers")) for text in found}
    assert kept == ({"['a', 'b']"} if wanted == ":several" else {"['a', 'b']", "None"})

def test_answers_in_a_csv_are_a_list_in_json(tmp_path):
    table(tmp_path, "file_name,question,answers", '0.png,what?,"[""a"", ""b"", ""b""]"')
    assert load_data(str(tmp_path))[0]["texts"][0]["answers"] == ["a", "b", "b"]

ONE = '"file_name": "0.png", "question": "what?"'

@pytest.mark.parametrize("name, lines, message", [
    ("csv", ["file_name,question,answer,answer", "0.png,what?,a,b"], "'answer' is there twice"),
    ("jsonl", [f'{{{ONE}, "answer": "a", "answer": "b"}}'], "line 1: the column 'answer' is there twice"),
    ("csv", [f"{HEADER},image_1", "0.png,what?,a,1.png"], r"pictures in \['image_1'\]"),
    ("csv", [f"{HEADER},image_7,decoded_image", "0.png,what?,a,,"], r"\['image_7', 'decoded_image'\]"),
    ("csv", [f"{HEADER},mask_file_name", "0.png,what?,a,1.png"], "mask_file_name"),
    ("jsonl", [f'{{{ONE}, "answer": "a", "file_names": ["1.png"]}}'], "file_names"),
    ("jsonl", [f'{{{ONE}, "answer": null}}'], "row 1 .* no answer"),
    ("jsonl", [f'{{{ONE}, "answer": {{"text": "a"}}}}'], "row 1 .* is no text"),
    ("jsonl", [f'{{{ONE}, "answer": [["a"]]}}'], "row 1 .* is no text"),
    ("jsonl", [f'{{{ONE}, "answer": []}}'], "row 1 .* no answer"),
    ("jsonl", ['{"file_name": "0.png", "question": ["what?"], "answer": "a"}'], "row 1 .* no text"),
    ("jsonl", ['["0.png", "what?", "a"]'], "line 1 is no object"),
    ("jsonl", [f'{{{ONE}, "answer": "a"}}', "{oops"], "line 2: "),
    ("csv", [HEADER, "0.png,what?,red, or blue"], "line 2 has 4 fields and the header 3: put quotes"),
    ("csv", [HEADER, '0.png,what?,"never closed', "1.png,what?,b"], "unexpected end of data"),
    ("csv", [HEADER], "has no row"), ("csv", [""], "has no row"), ("jsonl", [""], "has no row"),
    ("csv", [HEADER, ",what?,a"], "row 1 names a file|row 1 .* not there"),
    ("csv", ["file_name;question;answer", "0.png;what?;a"], "has the columns")])
def test_a_table_that_cannot_be_meant_is_refused_by_name(tmp_path, name, lines, message):
    table(tmp_path, *lines, name=f"metadata.{name}")
    with pytest.raises(ValueError, match=message) as caught: load_data(str(tmp_path))
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)

def test_a_table_in_another_encoding_is_refused(tmp_path):
    table(tmp_path)
    (tmp_path / "metadata.csv").write_bytes(f"{HEADER}\n0.png,what?,caf\xe9".encode("latin-1"))
    with pytest.raises(ValueError, match="metadata.csv .*save it as UTF-8 text"): load_data(str(tmp_path))

@pytest.mark.parametrize("user, images, shown", [
    ("<image>\nwhat is it?", 1, "<image>what is it?"), ("what is it?\n<image>", 1, "<image>what is it?"),
    ("<image><image> which?", 2, "<image><image>which?"), ("is <image> a cat?", 1, "is <image> a cat?"),
    ("<image>\nis like <image>", 2, "<image>\nis like <image>"), ("<image>\nwhat?", 0, None),
    ("<image><image>what?", 1, None), ("is <image> a cat?", 2, None), ("<image>", 1, None),
    ("what is <b>?", 1, "what is <b>?"), (" what?\n", 1, " what?\n")])
def test_marks_of_images_in_a_text(processor, user, images, shown):
    turn = dict(user=user, assistant="a")
    pictures = [dict(bytes=png(n), path=None) for n in range(images)]
    example, unusable = make_example(dict(images=pictures, texts=[turn]), processor)
    if shown is None: assert example is None and re.search("<image>|empty", unusable[0])
    else:
        (prompt, _), = example["turns"]
        assert read_turn(turn) == (shown, "a") and not unusable
        assert example["prefix"] + prompt == processor.prompt(shown, [WHOLE] * images)

# Parquet files with something wrong

GOOD = row(1)
TEXT = GOOD["texts"][0]
BAD_ROWS = { # a row of a Parquet file; why it cannot be used
    "texts": (GOOD | dict(texts=None), "no questions|question is missing"),
    "no turns": (GOOD | dict(texts=[]), "no questions|question is missing"),
    "a turn": (GOOD | dict(texts=[None]), "question is missing"),
    "user": (GOOD | dict(texts=[TEXT | dict(user=None)]), "question is missing"),
    "assistant": (GOOD | dict(texts=[TEXT | dict(assistant=None)]), "answer is missing"),
    "picture": (GOOD | dict(images=[None]), "image is missing"),
    "bytes": (GOOD | dict(images=[dict(bytes=None, path=None)]), "image is missing"),
    "broken": (GOOD | dict(images=[dict(bytes=b"no", path=None)]), "cannot read image"),
    "marks": (GOOD | dict(texts=[TEXT | dict(user="is <image> <image>?")]), "2 × <image> .* 1 image"),
    "mark": (GOOD | dict(texts=[TEXT | dict(assistant="an <image>")]), "the answer holds <image>")}

def write_table(file, rows, *fields, **columns):
    "Write Arrow's own table, with or without a source in each turn."
    file.parent.mkdir(parents=True, exist_ok=True)
    turn = pa.struct([(name, pa.string()) for name in ("user", "assistant", *fields)])
    picture = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    kinds = dict(images=pa.list_(picture), texts=pa.list_(turn)) | columns
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(kinds.items())), file)

@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("fields", [(), ("source",)], ids=["no source", "source"])
@pytest.mark.parametrize("what", BAD_ROWS)
def test_a_bad_row_is_skipped_and_counted(tmp_path, processor, what, fields, streaming):
    bad, why = BAD_ROWS[what]
    write_table(tmp_path / "a/train-0.parquet", [GOOD, bad, row(2)], *fields)
    rows = load_data(str(tmp_path), streaming=streaming)
    examples = Examples(rows, processor)
    made = [examples.make(n, r) for n, r in enumerate(rows)]
    assert [example is not None for example in made] == [True, False, True]
    assert examples.skipped.total() == 1 and re.search(why, str(examples.skipped))
    split_rows(rows, 0.4)

PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("columns, message", [
    (dict(texts=pa.string()), "'texts' is string"), (dict(texts=pa.list_(pa.string())), "'texts' is list"),
    (dict(texts=pa.list_(pa.struct([("from", pa.string()), ("value", pa.string())]))), "'user' is no text"),
    (dict(texts=pa.list_(pa.struct(dict(user=pa.string(), assistant=pa.int64()).items()))), "'assistant' is"),
    (dict(images=pa.int64()), "'images' is int64"), (dict(images=PICTURE), "'images' is struct"),
    (dict(relevance_ratings=pa.list_(pa.string())), "'relevance_ratings' is list<.*give a number"),
    (dict(formatting_ratings=pa.string()), "'formatting_ratings' is string"),
    (dict(image_1=PICTURE), r"pictures in \['image_1'\]"),
    (dict(decoded_image=pa.binary(), image_7=pa.list_(PICTURE)), r"\['decoded_image', 'image_7'\]")], ids=str)
def test_wrong_types_are_refused_in_one_line(tmp_path, columns, message, streaming):
    write_table(tmp_path / "a/train-0.parquet", [dict()], **columns)
    with pytest.raises(ValueError, match=f"train-0.parquet.*{message}") as caught:
        load_data(str(tmp_path), streaming=streaming)
    assert "\n" not in str(caught.value)

@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "kind", [pa.list_(pa.binary()), pa.large_list(PICTURE), pa.list_(pa.string())], ids=str)
def test_usual_ways_to_store_pictures(tmp_path, kind, processor, streaming):
    (tmp_path / "1.png").write_bytes(png(1))
    stored = dict(bytes=png(1), path=None)
    if kind == pa.list_(pa.binary()): stored = png(1)
    if kind == pa.list_(pa.string()): stored = str(tmp_path / "1.png")
    write_table(tmp_path / "a/train-0.parquet", [GOOD | dict(images=[stored])], images=kind)
    found, = load_data(str(tmp_path), streaming=streaming)
    assert Examples([found], processor)[0]["pixel_values"].shape[0] == 1

def truncated(file): file.write_bytes(file.read_bytes()[:-200])
def without_bytes(file): file.write_bytes(b"")
def other_text(file): file.write_text("not Parquet")
def more_columns(file): write_table(file, [GOOD | dict(extra="x")], extra=pa.string())
def other_turns(file): write_table(file, [GOOD], "source", "rating")

@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("spoil", [truncated, without_bytes, other_text, more_columns, other_turns])
def test_a_bad_file_is_named(tmp_path, spoil, streaming):
    write_table(tmp_path / "a/train-0.parquet", [GOOD], "source")
    write_table(tmp_path / "a/train-1.parquet", [row(2)], "source")
    spoil(tmp_path / "a/train-1.parquet")
    with pytest.raises(ValueError, match="a/train-1.parquet") as caught:
        load_data(str(tmp_path), streaming=streaming)
    assert "\n" not in str(caught.value)

def test_a_file_damaged_inside_is_one_line(tmp_path):
    "Its end is whole, so this shows when it is read."
    file = tmp_path / "shapes/train-0.parquet"
    write_table(file, [row(n) for n in range(300)], "source")
    data = bytearray(file.read_bytes())
    data[200:2000] = bytes(1800)
    file.write_bytes(data)
    with pytest.raises(ValueError, match="cannot read .*shapes/train-0.parquet .Corrupt") as caught:
        load_data(str(tmp_path))
    assert "\n" not in str(caught.value)

def test_a_column_twice_is_refused(tmp_path):
    data = pa.table([[[]], [[TEXT]], [[TEXT]]], names=["images", "texts", "texts"])
    (tmp_path / "a").mkdir()
    pq.write_table(data, tmp_path / "a/train-0.parquet")
    with pytest.raises(ValueError, match="train-0.parquet has the column 'texts' twice"):
        load_data(str(tmp_path))

@pytest.mark.parametrize("streaming", [False, True])
def test_an_empty_file_changes_nothing(tmp_path, streaming):
    write_table(tmp_path / "a/train-0.parquet", [])
    write_table(tmp_path / "a/train-1.parquet", [row(2)])
    pq.write_table(pa.table(dict(images=pa.nulls(0), texts=pa.nulls(0))), tmp_path / "a/train-2.parquet")
    assert answers(load_data(str(tmp_path), streaming=streaming)) == ["2"]

@pytest.mark.parametrize("header, mend", [
    ("image,question,answer", "not 'file_name': rename 'image'"),
    ("file_name,prompt,answer", "not 'question': rename 'prompt'"),
    ("file_name,question,label", "not 'answer': rename 'label'"),
    ("file_nmae,question,answer", "rename 'file_nmae'"),
    ("file_name;question;answer", "put commas between columns"), ("a,b,c", "not 'file_name': add it")])
def test_a_header_that_does_not_fit_says_what_to_do(tmp_path, header, mend):
    table(tmp_path)
    lines = f"{header}\n0.png,what?,a"
    if ";" in header: lines = lines.replace(",", ";")
    (tmp_path / "metadata.csv").write_text(lines)
    with pytest.raises(ValueError, match=mend): load_data(str(tmp_path))

def test_pictures_in_no_table_are_told(tmp_path, capsys):
    table(tmp_path)
    (tmp_path / "metadata.csv").write_text(f"{HEADER}\n0.png,what?,a")
    Image.new("RGB", (8, 8)).save(tmp_path / "other.png")
    assert len(load_data(str(tmp_path))) == 1
    said = capsys.readouterr().err
    assert "pictures in" in said and "they are not used" in said

@pytest.mark.parametrize("name, error, message", [
    (None, ValueError, "the data set is None"), ("", ValueError, "the data set is ''"),
    (3, ValueError, "is 3"),
    ("easyvqa", FileNotFoundError, "did you mean 'easy-vqa'"), ("easy-vqa:x", ValueError, "no subsets"),
    ("./nothing", FileNotFoundError, "an existing folder"),
    ("a/b/c", FileNotFoundError, "no data set 'a/b/c'")], ids=str)
def test_a_name_that_is_none_is_refused(name, error, message):
    with pytest.raises(error, match=message): load_data(name)

def test_a_table_has_no_subsets(tmp_path):
    table(tmp_path)
    (tmp_path / "metadata.csv").write_text(f"{HEADER}\n0.png,what?,a")
    with pytest.raises(ValueError, match="has no subsets: leave ':shapes' out"):
        load_data(f"{tmp_path}:shapes")

@pytest.mark.parametrize("row, reason", [
    (None, "a row is 'None'"), ("row", "a row is 'row'"),
    (dict(texts=[]), "no questions"), (dict(images=[]), "no questions"),
    (dict(images=[], texts="why?"), "no list"), (dict(images=Image.new("RGB", (8, 8)), texts=[]), "no list"),
    (dict(images=[], texts=["why?"]), "a turn is 'why"),
    (dict(images=[3], texts=[TURN]), "cannot read image"),
    (dict(images=[], texts=[TURN | dict(user=" ")]), "question is empty"),
    (dict(images=[], texts=[TURN | dict(assistant=" ")]), "answer is empty")],
    ids=lambda reason: reason if isinstance(reason, str) else "")
def test_a_row_of_any_form_is_counted(processor, row, reason):
    example, unusable = make_example(row, processor)
    assert example is None and reason in [*unusable.values()][0]

def test_kept_examples_take_no_more_than_their_room(rows, processor):
    examples = Examples(rows, processor, room=3 * 64 * 64 * 3 * 4 + 5)
    for n in range(10): examples[n]
    assert [*examples.ready] == [0, 1, 2] and examples[0] is examples[0] and examples[5] is not examples[5]

FOLDERS = [("train_set", "test_set"), ("train-clean", "test-clean"), ("vqa_train", "vqa_test"),
           ("TrainSet", "TestSet")]

@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("learnt, tested", FOLDERS)
@pytest.mark.parametrize("in_name", [False, True])
def test_a_split_within_a_folders_or_a_files_name_is_read(tmp_path, learnt, tested, in_name, streaming):
    for n, name in enumerate((learnt, tested)):
        write(tmp_path / (f"{name}.parquet" if in_name else f"{name}/0.parquet"), [row(n)])
    found = [images_of(load_data(str(tmp_path), split, streaming=streaming)) for split in ("train", "test")]
    assert found == [{png(0)}, {png(1)}]

@pytest.mark.parametrize("name", ["a*b", "a[1]", "a?"])
def test_a_folders_name_is_no_pattern(tmp_path, name):
    for n, folder in enumerate((name, "axb", "a1")): write(tmp_path / folder / "train-0.parquet", [row(n)])
    assert images_of(load_data(f"{tmp_path}:{name}")) == {png(0)}

@pytest.mark.parametrize("lines, message", [
    (["file_name,question,answer,split", "0.png,q,a,train", "1.png,q,a,tarin"], "row 2 .*split 'tarin'"),
    (["file_name,question,answer,split", "0.png,q,a,train", "1.png,q,a,"], "row 2 .*split ''"),
    (["file_name,question,answer,Split", "0.png,q,a,train", "1.png,q,a,test"],
     "'train' in the column 'Split'"),
    (["file_name,question,answer,set", "0.png,q,a,train"], "rename it to 'split'"),
    (["file_name,question,answer,left", "0.png,q,a,1.png"], "the picture 1.png in 'left'"),
    (["file_name,question,answer,file_name_2", "0.png,q,a,1.png"], "file_name_2")], ids=str)
def test_a_column_that_would_be_ignored_is_refused(tmp_path, lines, message):
    table(tmp_path)
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=message): load_data(str(tmp_path))

def test_a_column_of_parquet_that_names_splits_is_refused(tmp_path):
    rows = Dataset.from_list([row(0) | dict(split="train"), row(1) | dict(split="test")])
    rows.to_parquet(tmp_path / "0.parquet")
    for streaming in (False, True):
        with pytest.raises(ValueError, match="rows are test, train"):
            load_data(str(tmp_path), streaming=streaming)

@pytest.mark.parametrize("weights", ["a=1e-9,b=1", "a=1,b=1e7"])
@pytest.mark.parametrize("streaming", [False, True])
def test_weights_that_repeat_a_subset_too_often_are_refused(tmp_path, weights, streaming):
    for n, name in enumerate("ab"): write(tmp_path / name / "train-0.parquet", [row(n)])
    with pytest.raises(ValueError, match="over 1,000 times"):
        load_data(f"{tmp_path}:{weights}", streaming=streaming)

def test_a_missing_answer_of_pandas_is_missing(tmp_path):
    table(tmp_path)
    (tmp_path / "metadata.csv").unlink(missing_ok=True)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "0.png", "question": "q", "answer": NaN}')
    with pytest.raises(ValueError, match="row 1 .*no answer"): load_data(str(tmp_path))

def test_what_is_held_out_can_be_scored():
    broken = row(0)
    broken["images"][0]["bytes"] = png(0)[:-30]
    for count in (2, 8):
        rows = Dataset.from_list([broken] + [row(n) for n in range(1, count)], features=cauldron_features())
        _, held = split_rows(rows, 0.05)
        assert images_of(held) != images_of([broken])

def test_a_stream_of_which_nothing_can_be_used_ends_after_a_few_passes(tmp_path, processor):
    rows = [row(n) | dict(texts=[dict(user="q", assistant=None, source="s")]) for n in range(6)]
    write(tmp_path / "train-0.parquet", rows)
    windows = Windows(Examples(load_data(str(tmp_path), streaming=True), processor), 4)
    with pytest.raises(ValueError, match=r"none of the rows \(\d+ were tried\) can be used"):
        next(iter(windows))
