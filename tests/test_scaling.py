"Training at scale: packed rows, several processes, and runs that are cut short and go on."
import json, os, pickle, random, resource, shutil, signal, socket, subprocess, sys, time, traceback, types
import datasets
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from nanovlm import training
from nanovlm.batches import Source, Windows
from nanovlm.cli import main
from nanovlm.data import Examples, draw, load_data, pack, stack
from nanovlm.data import split_rows
from nanovlm.processor import tiny_model
from nanovlm.model import VisionLanguageModel
from nanovlm.runs import read_lines, state_files
from nanovlm.training import TrainConfig, make_optimizers, train, training_step, unwrap_layers, wrap_layers

SMALL = dict(batch_size=4, progress=False)
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "nanovlm", "train"]

def same(a, b): return a.keys() == b.keys() and all(torch.equal(t, b[name]) for name, t in a.items())
def weights(model): return torch.cat([p.detach().flatten() for p in model.parameters()])
def without(batch, name): return {part: t for part, t in batch.items() if part != name}
def losses(lines): return [line["loss"] for line in lines]

@pytest.fixture
def command(capsys):
    "Run the command line in this process, which has imported everything already. Gives what `cli` gives."
    def run(*words):
        try: code = main([str(word) for word in words])
        except SystemExit as stop: code = stop.code
        said = capsys.readouterr()
        return types.SimpleNamespace(returncode=code or 0, stdout=said.out, stderr=said.err)
    return run

# Packing

@pytest.fixture
def samples(rows, processor):
    "Twelve images with one to five questions each, and one with none that is asked of a text alone."
    examples = Examples(rows, processor)
    seen = [draw(examples[i], i % 5 + 1) for i in range(12)]
    turn = processor.turn("is it a text?", []), processor.answer("yes")
    text = dict(prefix=processor.prefix([]), turns=[turn], pixel_values=torch.zeros(0, 3, 64, 64))
    return seen + [draw(text, 1)]

def test_a_packed_sample_has_the_loss_it_has_alone(model, samples):
    rows = pack(samples, 200)
    assert len(rows) < len(samples) / 2
    with torch.no_grad():
        for row in rows:
            whole = stack([row])
            logits = model(**without(whole, "labels"))
            start = 0
            for sample in row:
                alone = stack([[sample]])
                end = start + len(sample["ids"])
                logits_alone = model(**without(alone, "labels"))
                torch.testing.assert_close(logits[:, start:end], logits_alone, atol=1e-5, rtol=0)
                only = torch.full_like(whole["labels"], -100)
                only[:, start:end] = whole["labels"][:, start:end]
                loss, loss_alone = model(**whole | dict(labels=only)), model(**alone)
                torch.testing.assert_close(loss, loss_alone, atol=1e-5, rtol=0)
                start = end

def test_packed_and_padded_steps_learn_the_same(rows, samples):
    results = []
    config = TrainConfig(output_dir="", optimizer="adamw")
    for laid in ([[s] for s in samples], pack(samples, 200)):
        model, _ = tiny_model(rows)
        loss, norm = training_step(model, [stack(laid)], make_optimizers(model, config), 1.0, config)
        results.append(torch.tensor([loss, norm]))
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-4)

@pytest.mark.parametrize("length, squares", [(150, None), (200, 2), (1000, 3)])
def test_rows_keep_their_limits(samples, length, squares):
    rows = pack(samples, length, squares)
    assert sorted(id(s) for row in rows for s in row) == sorted(map(id, samples)) # all of them, once
    for row in rows:
        assert sum(len(s["ids"]) for s in row) <= length
        if squares: assert sum(len(s["pixel_values"]) for s in row) <= squares

def test_a_sample_too_long_for_a_row(rows, processor, samples):
    example = Examples(rows, processor)[0]
    prefix = len(example["prefix"])
    assert draw(example, 9, prefix + 5) is None
    assert len(draw(example, 9, prefix + 40)["ids"]) <= prefix + 40
    with pytest.raises(ValueError, match="room for 20"): pack(samples, 20)

# The cursor in the data

@pytest.mark.parametrize("options", [{}, dict(length=256)], ids=["padded", "packed"])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_go_on_from_any_cursor(rows, processor, options, workers):
    windows = Windows(Examples(rows, processor), 8, **options)
    whole = Source(windows, workers)
    batches, cursors = [], []
    for _ in range(9):
        cursors.append(json.loads(json.dumps(whole.cursor))) # as a file gives it back
        batches.append(next(whole)["batch"])
    for n in (1, 4, 8):
        again = Source(windows, workers, cursor=cursors[n])
        assert all(same(next(again)["batch"], b) for b in batches[n:])

def test_the_order_does_not_depend_on_the_number_of_workers(rows, processor):
    windows = Windows(Examples(rows, processor), 8)
    one, three = Source(windows), Source(windows, workers=3)
    assert all(same(next(one)["batch"], next(three)["batch"]) for _ in range(7))

def test_an_epoch_shows_every_row_once(rows, processor):
    examples = Examples(rows.select(range(24)), processor)
    source = Source(Windows(examples, 8, questions=1))
    shown = [p.sum().item() for _ in range(3) for p in next(source)["batch"]["pixel_values"]]
    there = [examples[i]["pixel_values"].sum().item() for i in range(24)]
    assert sorted(shown) == pytest.approx(sorted(there))

@pytest.fixture
def cauldron(tmp_path, rows):
    """A folder in The Cauldron's layout, of two subsets in two files each, with images inside.

    Each subset has one row without images, and one that is broken.
    """
    def inside(row):
        images = [dict(bytes=open(i["path"], "rb").read(), path=None) for i in row["images"]]
        return dict(images=images, texts=row["texts"])
    text = dict(images=[], texts=[dict(user="is this a text?", assistant="yes", source="text")])
    broken = dict(images=[dict(bytes=b"broken", path=None)], texts=rows[0]["texts"])
    for subset, first, count in (("shapes", 0, 40), ("colours", 40, 20)):
        folder = tmp_path / "cauldron" / subset
        folder.mkdir(parents=True)
        for file in (0, 1):
            part = [inside(rows[i]) for i in range(first + file, first + count, 2)]
            if file: part += [text, broken]
            data = Dataset.from_list(part, features=rows.features)
            data.to_parquet(folder / f"train-0000{file}-of-00002.parquet")
    return tmp_path / "cauldron"

@pytest.fixture
def no_sleep(monkeypatch):
    "datasets waits five seconds at the end of every pass over a stream."
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)

@pytest.mark.parametrize("readers", [1, 2, 5])
def test_a_stream_is_shared_out_and_goes_on(cauldron, processor, readers, no_sleep):
    "One or two readers of two files have files of their own; of five, each takes windows in turn."
    rows = load_data(f"{cauldron}:shapes", streaming=True)
    assert rows.num_shards == 2
    count, seen = len(list(rows)), []
    for reader in range(readers):
        options = dict(batch_size=8, questions=1, reader=reader, readers=readers)
        examples = Examples(rows, processor)
        source = iter(Windows(examples, **options))
        items = [next(source) for _ in range(6)] # beyond the first pass
        again = iter(Windows(examples, **options, cursor=items[3]["cursor"]))
        assert same(next(again)["batch"], items[4]["batch"])
        for item in items[:count // 8 // readers]: # the first pass
            seen += [round(p.sum().item(), 2) for p in item["batch"]["pixel_values"]]
    assert len({*seen}) == len(seen) >= 30 # nobody sees another's rows

def test_a_folder_in_the_cauldrons_layout_trains_without_code(command, cauldron, tmp_path, no_sleep):
    short = ["--batch-size", 4, "--no-progress"]
    result = command("train", "--data", f"{cauldron}:shapes=2,colours", "--output-dir", tmp_path / "run",
                     "--steps", 6, "--pack", 256, *short)
    assert result.returncode == 0, result.stderr
    assert "skipped" in result.stdout and "best validation loss" in result.stdout
    streamed = command("train", "--data", f"{cauldron}:shapes", "--streaming", "--valid-rows", 20,
                       "--output-dir", tmp_path / "other", "--steps", 4, *short)
    assert streamed.returncode == 0, streamed.stderr

@pytest.mark.parametrize("wanted, message", [
    ("shape", "did you mean 'shapes'"), ("shapes=much", "not a number"),
    ("shapes=0,colours=0", "nothing to draw from"), ("shapes=-1,colours", "nothing to draw from")])
def test_a_mixture_that_cannot_be_is_refused(cauldron, wanted, message):
    with pytest.raises(ValueError, match=message): load_data(f"{cauldron}:{wanted}")

def test_a_folder_without_data_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no Parquet file"): load_data(f"{tmp_path}:any")
    (tmp_path / "odd").mkdir()
    Dataset.from_list([dict(text="no images")]).to_parquet(tmp_path / "odd" / "train-0.parquet")
    with pytest.raises(ValueError, match="columns"): load_data(str(tmp_path))

def test_weights_of_a_mixture_hold(cauldron):
    mixture = [(len(row["images"]), row["texts"]) for row in load_data(f"{cauldron}:shapes=1,colours=3")]
    colours = {row["texts"][0]["user"] for row in load_data(f"{cauldron}:colours")}
    assert len(mixture) > 100 and len(colours) > 1

@pytest.mark.parametrize("streaming", [False, True])
def test_turns_that_are_rated_low_are_left_out(tmp_path, rows, streaming):
    written = []
    others = "image_correspondence", "visual_dependency", "formatting"
    for i in range(1, 6):
        texts = [dict(user=f"good {i}", assistant="a"), dict(user=f"rated {i}", assistant="b")]
        ratings = {f"{name}_ratings": [5, 5] for name in others}
        written.append(dict(images=[], texts=texts, source="fine", relevance_ratings=[5, i], **ratings))
    (tmp_path / "subset").mkdir()
    data = Dataset.from_list(written).cast_column("images", rows.features["images"])
    data.to_parquet(tmp_path / "subset" / "train-00000.parquet")
    found = list(load_data(str(tmp_path), streaming=streaming, min_rating=4))
    asked = [t["user"] for row in found for t in row["texts"]]
    assert [question for question in asked if "rated" in question] == ["rated 4", "rated 5"]
    assert len(found) == 5 and found[0]["texts"][0]["source"] == "fine"

# Runs that are cut short

def forked(job):
    """Run a function in a fork of this process. Gives its process id.

    It has one thread, for OpenMP's threads do not survive a fork.
    """
    child = os.fork()
    if child: return child
    try:
        torch.set_num_threads(1)
        sys.stdout = sys.stderr = open(os.devnull, "w")
        job()
        os._exit(0)
    except BaseException:
        traceback.print_exc(file=sys.__stderr__)
        os._exit(1)

def long_run(rows, folder, callback=None, **changes):
    model, processor = tiny_model(rows)
    options = SMALL | dict(steps=60, save_every=3, valid_every=20, pack=256, resume=True) | changes
    config = TrainConfig(output_dir=str(folder), **options)
    train(model, processor, rows.select(range(64)), config, rows.select(range(64, 72)), callback)
    torch.save(weights(model), folder / "end.pt")

def finish(job): assert os.waitpid(forked(job), 0)[1] == 0

def test_killed_at_any_moment_a_run_ends_with_the_same_weights(rows, tmp_path):
    "SIGKILL at 20 random moments, against a run that nobody disturbed: every loss and weight, bit for bit."
    undisturbed, killed = tmp_path / "a", tmp_path / "b"
    moments = random.Random(1)
    started = time.time()
    finish(lambda: long_run(rows, undisturbed))
    whole = time.time() - started
    kills = 0
    while kills < 20:
        child = forked(lambda: long_run(rows, killed, overwrite=True)) # where it comes to its end, it starts again
        time.sleep(moments.uniform(0.05, 0.3) * whole)
        ended, _ = os.waitpid(child, os.WNOHANG)
        if ended: # it came to its end: start again, there are more moments to try
            assert torch.equal(torch.load(killed / "end.pt"), torch.load(undisturbed / "end.pt"))
            for file in state_files(killed): file.unlink()
            continue
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        kills += 1
    finish(lambda: long_run(rows, killed, overwrite=True))
    assert torch.equal(torch.load(killed / "end.pt"), torch.load(undisturbed / "end.pt"))
    def history(folder):
        lines = read_lines(folder / "history.jsonl")
        return [(line["step"], line["loss"], line.get("valid_loss")) for line in lines]
    assert history(undisturbed) == history(killed) and len(history(killed)) == 60
    assert len(state_files(killed)) == 2 and not [*killed.glob("states/.*")]

def test_the_order_to_stop_saves_and_ends_well(tmp_path, command):
    flags = ["--output-dir", str(tmp_path), "--batch-size", "4", "--no-progress", "--steps"]
    start = [sys.executable, "-m", "nanovlm", "train", *flags, "500"]
    process = subprocess.Popen(start, stdout=subprocess.PIPE, text=True)
    while len(read_lines(tmp_path / "history.jsonl")) < 3:
        assert process.poll() is None, "it ended before it was told to"
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "told to stop" in said
    done = read_lines(tmp_path / "history.jsonl")[-1]["step"]
    assert [f.name for f in state_files(tmp_path)] == [f"step-{done:08d}.safetensors"]
    changed = command("train", *flags, 500, "--resume", "--batch-size", 8, "--lr-text", 0.001)
    assert changed.returncode == 2 and "batch_size is 8 and was 4" in changed.stderr
    assert "lr_text is 0.001 and was 0.002" in changed.stderr
    assert "steps" in command("train", *flags, done + 2, "--resume").stderr

def test_a_full_disk_leaves_the_old_state(rows, tmp_path):
    def until_full(history): # called after the first state was saved: from then on, files can be no larger
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
    def job():
        try: long_run(rows, tmp_path, until_full, steps=6, valid_every=3)
        except OSError as e: (tmp_path / "said").write_text(str(e))
    finish(job)
    assert "make room" in (tmp_path / "said").read_text()
    assert [f.name for f in state_files(tmp_path)] == ["step-00000003.safetensors"]
    finish(lambda: long_run(rows, tmp_path, steps=6, valid_every=3))
    assert [line["step"] for line in read_lines(tmp_path / "history.jsonl")] == [1, 2, 3, 4, 5, 6]

def test_a_new_run_does_not_trample_on_an_old_one(rows, tmp_path):
    finish(lambda: long_run(rows, tmp_path, steps=3))
    with pytest.raises(ValueError, match="step-00000003.safetensors.*resume"):
        long_run(rows, tmp_path, resume=False)

def test_pixels_that_are_no_numbers_stop_the_run(rows, tmp_path):
    model, processor = tiny_model(rows)
    before, real = weights(model), processor.pixels
    processor.pixels = lambda images: (real(images)[0] * float("nan"), real(images)[1])
    complaint = r"step 1: the loss is nan; pixel_values holds.*bad_batch_0.safetensors"
    with pytest.raises(ValueError, match=complaint):
        train(model, processor, rows, TrainConfig(output_dir=str(tmp_path), steps=3, **SMALL))
    assert torch.equal(weights(model), before) # nothing has changed
    assert load_file(tmp_path / "bad_batch_0.safetensors")["0.pixel_values"].isnan().all()

class Deadly(list):
    def __getitem__(self, i):
        if torch.utils.data.get_worker_info() and i == 7: os._exit(9)
        return super().__getitem__(i)

def test_a_worker_that_dies_is_reported(rows):
    model, processor = tiny_model(rows)
    with pytest.raises(ChildProcessError, match="prepares batches has died"):
        train(model, processor, Deadly(rows), TrainConfig(output_dir="", steps=60, workers=2, **SMALL))

# Several processes, and less memory

def test_two_processes_learn_what_one_does(tmp_path, command):
    "Fifty steps at the same global batch: each of two takes one batch per step, or one takes two."
    common = ["--steps", "50", "--batch-size", "8", "--no-progress", "--optimizer", "adamw",
              "--valid-every", "25", "--valid-share", "0.01"]
    torchrun = [*TORCHRUN, *common, "--output-dir", str(tmp_path / "two")]
    two = subprocess.run(torchrun, capture_output=True, text=True, timeout=300)
    assert two.returncode == 0, two.stderr[-3000:]
    one = command("train", *common, "--accumulate", 2, "--output-dir", tmp_path / "one")
    assert one.returncode == 0, one.stderr
    a, b = [read_lines(tmp_path / name / "history.jsonl") for name in ("one", "two")]
    assert len(a) == len(b) == 50
    assert losses(a) == pytest.approx(losses(b), abs=1e-5)
    assert a[-1]["valid_loss"] == pytest.approx(b[-1]["valid_loss"], abs=1e-4)
    assert a[-1]["loss"] < a[0]["loss"] / 2

def together(*words):
    "Run a command in two forks, as torchrun does in two processes that import everything first."
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    def job(rank):
        os.environ |= dict(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        main(list(words))
        torch.distributed.destroy_process_group()
    children = [forked(lambda: job(rank)) for rank in range(2)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]

def test_processes_that_share_a_model_learn_the_same(cauldron, tmp_path):
    "FSDP2 against whole copies, with batches of one row, some without an image, and stopped half-way."
    common = ["--data", f"{cauldron}:shapes", "--steps", "12", "--batch-size", "1", "--no-progress",
              "--valid-every", "6", "--save-every", "6", "--optimizer", "adamw"]
    def run(name, *more):
        together("train", *common, "--output-dir", str(tmp_path / name), *more)
        return read_lines(tmp_path / name / "history.jsonl")
    copies, shared = run("copies"), run("shared", "--shard")
    images_per_sample = {round(line["images_per_s"] / line["samples_per_s"], 2) for line in shared}
    assert images_per_sample == {0.5, 1} # of two samples, two have an image or one
    assert losses(copies) == pytest.approx(losses(shared), abs=1e-5)
    assert copies[-1]["valid_loss"] == pytest.approx(shared[-1]["valid_loss"], abs=1e-5)
    (tmp_path / "shared" / "states" / "step-00000012.safetensors").unlink()
    assert losses(run("shared", "--shard", "--resume")) == losses(shared)
    models = [VisionLanguageModel.from_pretrained(tmp_path / name) for name in ("copies", "shared")]
    one, other = [model.state_dict() for model in models]
    for name in one: torch.testing.assert_close(one[name], other[name], atol=1e-4, rtol=0)

compiler = pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on a CPU")

@pytest.mark.parametrize("switch, atol, rtol", [
    ("checkpointing", 0, 0), pytest.param("compile", 1e-5, 1e-4, marks=compiler)])
def test_switches_of_speed_and_memory_change_no_gradient(model, samples, switch, atol, rtol, monkeypatch):
    monkeypatch.setattr(training, "WIDE", 64) # so wide is this model
    batch, grads = stack(pack(samples, 200)), []
    for config in (None, TrainConfig(), TrainConfig(**{switch: True})):
        if config: wrap_layers(model, config)
        model.zero_grad()
        model(**batch).backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.equal(grads[0], grads[1]) # what is cheap is computed twice, and the same
    torch.testing.assert_close(*grads[1:], atol=atol, rtol=rtol)
    unwrap_layers(model)
    assert not any("forward" in vars(m) for m in model.modules())

@pytest.mark.parametrize("options", [
    dict(precision="fp16"), dict(checkpointing=True, pack=256), dict(workers=2)], ids=str)
def test_it_learns_in_every_way(rows, options):
    model, processor = tiny_model(rows)
    config = TrainConfig(output_dir="", steps=6, **SMALL, **options)
    history = train(model, processor, rows.select(range(16)), config)
    assert history[-1]["loss"] < history[0]["loss"] and torch.isfinite(weights(model)).all()

def test_trackers_are_told(rows, monkeypatch, tmp_path):
    started, lines = [], []
    def init(**settings):
        started.append(settings)
        return types.SimpleNamespace(log=lambda line, step: lines.append((step, line)))
    monkeypatch.setitem(sys.modules, "trackio", types.SimpleNamespace(init=init))
    model, processor = tiny_model(rows)
    config = TrainConfig(output_dir=str(tmp_path), steps=2, tracker="trackio", **SMALL)
    train(model, processor, rows, config)
    assert [settings["config"]["steps"] for settings in started] == [2]
    assert [step for step, _ in lines] == [1, 2]
    assert "loss" in lines[0][1] and "step" not in lines[0][1] # which trackers keep for themselves
    with pytest.raises(ValueError, match="pip install wandb"):
        train(model, processor, rows, TrainConfig(output_dir="", steps=2, tracker="wandb", **SMALL))

def test_what_prepares_batches_can_be_sent_to_another_process(rows, processor):
    "Where processes are not forked (macOS, Windows, Python 3.14), a worker gets a pickled copy."
    windows = Windows(Examples(rows, processor), 8)
    copy = pickle.loads(pickle.dumps(windows))
    assert same(next(iter(copy))["batch"], next(iter(windows))["batch"])

@pytest.mark.parametrize("readers", [1, 2])
def test_no_reader_of_a_stream_learns_from_a_row_that_is_held_out(cauldron, readers, no_sleep):
    def name(row): return repr((row["texts"], [i["bytes"] for i in row["images"]]))
    rows = load_data(f"{cauldron}:shapes", streaming=True)
    learnt, held = split_rows(rows, share=0.3, most=1000)
    read = [name(row) for r in range(readers) for row in learnt.shard(readers, r)]
    apart = [name(row) for row in held]
    assert 3 < len(held) < 25 and not {*read} & {*apart}
    assert sorted(read + apart) == sorted(map(name, rows))
