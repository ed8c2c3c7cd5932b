"Other people's folders: which rows are learnt, which are held out, and what their texts say."
import io, pickle
import datasets
import pytest
from datasets import Dataset
from PIL import Image
from nanovlm.data import cauldron_features, easy_vqa, load_data, split_rows

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
