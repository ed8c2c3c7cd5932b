"What a run refuses, what it never writes, and how it goes on: settings, folders, states and streams."
import copy, dataclasses, itertools, json, math, multiprocessing, os, signal, subprocess, sys, time, warnings
from pathlib import Path
import pytest
import torch
from datasets import Dataset, interleave_datasets, load_dataset
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from nanovlm.batches import BLOCK, Lanes, Source, Windows, fingerprint
from nanovlm.data import Examples, collate, easy_vqa, from_questions, in_schema, split_rows
from nanovlm.evaluation import predict
from nanovlm.frozen import add_lora
from nanovlm.generation import generate
from nanovlm.model import VisionLanguageModel, VLMConfig
from nanovlm.processor import tiny_model
from nanovlm.runs import only_run, read_lines, state_files, stop_signals
from nanovlm.scaling import Plan
from nanovlm.training import (CHOICES, LIMITS, Learner, TrainConfig, gentle, learning_rate, make_optimizers,
                              stream_of_batches, train, training_step)

NAN, INF = math.nan, math.inf
QUIET = dict(output_dir="", progress=False)
SMALL = dict(steps=4, batch_size=4, questions=2, progress=False, save_every=2, valid_every=2)

def weights(model): return torch.cat([p.detach().flatten() for p in model.parameters()])
def same(a, b): return a.keys() == b.keys() and all(torch.equal(t, b[name]) for name, t in a.items())
def settings(folder, **changes): return TrainConfig(output_dir=str(folder), **SMALL | changes)

# Limits

NUMBERS = [(name, value) for name in LIMITS for value in (NAN, INF, -INF, -1, None, "1", True)]
BEYOND = [("max_grad_norm", 0), ("muon_factor", 0), ("lr_text", 1.5), ("warmup", 2.0), ("steps", 2.5),
          ("steps", 0),
          ("batch_size", 0), ("seed", 2**40), ("workers", 10**6), ("keep_states", 0), ("pack_squares", 0),
          ("valid_every", 0), ("optimizer", "sgd"), ("precision", "fp8"), ("tracker", "mlflow"),
          ("compile", "no"),
          ("resume", None), ("overwrite", "yes")]

@pytest.mark.parametrize("name, value", NUMBERS + BEYOND)
def test_a_setting_outside_of_its_limits_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value!r}".replace("+", r"\+")):
        TrainConfig(**{name: value})

def test_every_setting_has_limits_or_choices():
    assert {*LIMITS, *CHOICES} == {f.name for f in dataclasses.fields(TrainConfig)} - {"output_dir"}

@pytest.mark.parametrize("wrong, message", [
    (dict(lr_connector=0, lr_vision=0, lr_text=0), "nothing would learn"),
    (dict(lr_connector=0.0, lr_vision=0.0, lr_text=0.0, optimizer="adamw"), "raise one of them"),
    (dict(output_dir="", resume=True), "resume cannot work without output_dir"),
    (dict(output_dir="", resume=True, save_every=2), "resume, save_every cannot work without"),
    (dict(output_dir=5), "output_dir is 5")], ids=str)
def test_settings_that_cannot_work_together_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message): TrainConfig(**wrong)

@pytest.mark.parametrize("given", [None, 5, "easy-vqa", {}, [], iter([{}])],
                         ids="none number name row empty iterator".split())
def test_what_is_no_rows_is_refused(rows, model, processor, given):
    quiet = TrainConfig(**QUIET)
    for call in (split_rows, lambda given: Examples(given, processor),
                 lambda given: train(model, processor, given, quiet),
                 *[lambda given: train(model, processor, rows, quiet, given)] * (given is not None)):
        with pytest.raises(ValueError, match="rows is .*give a Dataset, a stream or a list"): call(given)

def test_a_list_of_rows_is_held_out_as_a_dataset_is(rows):
    for ours, known in zip(split_rows([*rows], 0.2), split_rows(rows, 0.2)):
        assert [row["texts"] for row in ours] == [row["texts"] for row in known]

@pytest.mark.parametrize("name", ["model", "processor", "config"])
def test_what_is_no_model_processor_or_config_is_refused(rows, model, processor, name):
    given = dict(model=model, processor=processor, config=TrainConfig(**QUIET)) | {name: {}}
    with pytest.raises(ValueError, match=f"{name} is of type dict"):
        train(given["model"], given["processor"], rows, given["config"])

@pytest.mark.parametrize("ids, message", [
    ([[1, 2]], "input_ids is .*give a tensor"), (torch.tensor([1, 2]), r"input_ids is tensor\(.1, 2"),
    (torch.ones(1, 2), "input_ids is .*whole numbers"), (torch.tensor([[1, 600]]), r"holds \[600\]"),
    (torch.tensor([[-1, 2]]), r"holds \[-1\], and the model knows tokens 0 to")], ids=str)
def test_what_are_no_tokens_is_refused(model, ids, message):
    with pytest.raises(ValueError, match=message): generate(model, ids)

def test_training_warns_of_nothing(rows, model, processor, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, processor, rows, settings(tmp_path), rows)

@pytest.mark.parametrize("change, message", [
    (dict(shift=32), "shift is 32.*64 pixels.*below half"), (dict(shift=1000), "shift is 1000"),
    (dict(lora=33), "lora is 33.*smallest side.*is 32")], ids=str)
def test_settings_that_do_not_fit_the_model_are_refused(rows, model, processor, change, message):
    before = weights(model)
    with pytest.raises(ValueError, match=message):
        train(model, processor, rows, TrainConfig(**QUIET, **change))
    assert torch.equal(weights(model), before)

def test_the_largest_settings_that_fit_do_work(rows, model, processor):
    config = TrainConfig(**QUIET, steps=1, batch_size=2, shift=31, lora=32)
    assert math.isfinite(train(model, processor, rows.select(range(4)), config)[0]["loss"])

@pytest.mark.parametrize("name, value", [
    *[(name, value) for name in ("rows", "tokens", "squares", "labelled", "lora", "mfu", "samples")
      for value in (NAN, INF, -1, "3", True)],
    ("squares", 0), ("labelled", 300), ("tokens", 513), ("lora", 33), ("mfu", 1.5), ("mfu", 0), ("rows", 2.5),
    ("checkpointing", "no"), ("gpu", None)])
def test_a_plan_outside_of_its_limits_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value!r}"): Plan(VLMConfig.tiny(), **{name: value})

# Numbers that are not finite

def spoil(value):
    "A gradient of a parameter becomes `value`, under a loss that stays finite."
    def hook(grad): return torch.full_like(grad, value)
    return hook

@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("part",
                         ["text_model.embed_tokens.weight", "connector.modality_projection.proj.weight"])
def test_a_gradient_that_is_not_finite_changes_nothing(rows, model, processor, tmp_path, optimizer,
                                                       value, part):
    before = weights(model)
    dict(model.named_parameters())[part].register_hook(spoil(value))
    config = settings(tmp_path, optimizer=optimizer, save_every=1, valid_every=1)
    with pytest.raises(ValueError, match=r"step 1: the length of the gradient is (nan|inf).*bad_batch_0"):
        train(model, processor, rows.select(range(8)), config)
    assert torch.equal(weights(model), before) and not state_files(tmp_path)
    assert not (tmp_path / "model.safetensors").exists() and not any(
        p.grad is not None for p in model.parameters())

@pytest.mark.parametrize("part",
                         ["text_model.embed_tokens.weight", "connector.modality_projection.proj.weight"])
def test_float16_leaves_such_a_step_out_and_halves_its_factor(rows, model, processor, part):
    "Of both optimizers: the other one's gradients are NaN after clipping, too."
    before, batch = weights(model), collate([Examples(rows, processor)[0]])
    hook = dict(model.named_parameters())[part].register_hook(spoil(NAN))
    config = TrainConfig(**QUIET, precision="fp16")
    optimizers, scaler = make_optimizers(model, config), torch.amp.GradScaler("cpu", init_scale=4.0)
    for _ in range(2): training_step(model, [batch], optimizers, 1.0, config, scaler=scaler)
    assert torch.equal(weights(model), before) and scaler.get_scale() == 1.0
    with pytest.raises(FloatingPointError, match="length of the gradient is nan"): # it was not the factor
        training_step(model, [batch], optimizers, 1.0, config, scaler=scaler)
    hook.remove()
    training_step(model, [batch], optimizers, 1.0, config, scaler=scaler)
    assert torch.isfinite(weights(model)).all() and not torch.equal(weights(model), before)

@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("valid", [False, True])
def test_weights_that_are_not_finite_are_not_written(rows, model, processor, tmp_path, value, valid):
    "They come to be after the loss was computed, as those of a step that is too long do."
    def overflow(*_):
        with torch.no_grad(): model.connector.modality_projection.proj.weight[0, 0] = value
    original = torch.optim.AdamW.step
    config = settings(tmp_path, optimizer="adamw", valid_every=1, save_every=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", lambda self, *a,
                      **k: (original(self, *a, **k), overflow())[0])
        with pytest.raises(ValueError, match="not finite|validation loss is nan"):
            train(model, processor, rows.select(range(8)), config,
                  rows.select(range(8, 12)) if valid else None)
    assert not state_files(tmp_path) and not (tmp_path / "model.safetensors").exists()

# Signals

@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_first_signal_is_noted_and_a_second_works(number):
    with pytest.raises(BaseException) as ended:
        old = signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(SystemExit(9)))
        try:
            with stop_signals() as came:
                os.kill(os.getpid(), number)
                assert came == [number]
                os.kill(os.getpid(), number)
        finally: signal.signal(signal.SIGTERM, old)
    assert ended.type is (KeyboardInterrupt if number == signal.SIGINT else SystemExit)

@pytest.mark.parametrize("workers", [0, 2])
def test_ctrl_c_saves_and_ends_well(rows, tmp_path, workers):
    "As a terminal sends it: to the run and to the processes that prepare its batches."
    words = ["--output-dir", str(tmp_path), "--batch-size", "4", "--no-progress", "--steps", "500",
             "--workers", str(workers)]
    process = subprocess.Popen([sys.executable, "-m", "nanovlm", "train", *words], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, start_new_session=True)
    while len(read_lines(tmp_path / "history.jsonl")) < 3:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    said, complained = process.communicate(timeout=60)
    assert process.returncode == 0 and "told to stop" in said and "Traceback" not in complained
    done = read_lines(tmp_path / "history.jsonl")[-1]["step"]
    assert [f.name for f in state_files(tmp_path)] == [f"step-{done:08d}.safetensors"]

# The folder

@pytest.fixture
def run(rows, tmp_path):
    "Trains a fresh model in a folder: function of settings -> model and history."
    def run(data=None, valid=None, about=None, seed=0, **changes):
        model, processor = tiny_model(rows, seed)
        data = rows.select(range(16)) if data is None else data
        history = train(model, processor, data, settings(tmp_path / "run", **changes), valid, about=about)
        return model, history
    return run

@pytest.mark.parametrize("left", ["model.safetensors", "config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("resume", [False, True])
def test_a_trained_model_is_not_overwritten_unasked(run, tmp_path, left, resume):
    (tmp_path / "run").mkdir()
    file = tmp_path / "run" / left
    file.write_text("trained for weeks")
    with pytest.raises(ValueError, match=f"holds a trained model .{left}.*overwrite"): run(resume=resume)
    assert file.read_text() == "trained for weeks"
    run(resume=resume, overwrite=True)

def test_metrics_go_when_weights_go(run, tmp_path):
    run()
    for name in ("metrics.json", "index.html", "loss.svg", "answers.png"):
        (tmp_path / "run" / name).write_text("{}")
    (tmp_path / "run" / "notes.txt").write_text("mine")
    run(overwrite=True)
    assert {f.name for f in (tmp_path / "run").iterdir()} & {
        "metrics.json", "index.html", "notes.txt"} == {"notes.txt"}

def test_a_page_of_somebody_elses_stays(run, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "index.html").write_text("my site")
    run()
    assert (tmp_path / "run" / "index.html").read_text() == "my site"

def test_overwriting_a_run_drops_its_states_and_history(run, tmp_path):
    run(steps=6)
    with pytest.raises(ValueError, match="holds the states of a run.*resume.*overwrite"): run()
    run(steps=2, overwrite=True)
    assert [f.name for f in state_files(tmp_path / "run")] == ["step-00000002.safetensors"]
    assert len(read_lines(tmp_path / "run" / "history.jsonl")) == 2

def hold(folder, ready):
    with only_run(Path(folder)):
        ready.set()
        time.sleep(60)

def test_a_second_run_in_a_folder_is_refused_until_the_first_is_gone(run, tmp_path):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    other = context.Process(target=hold, args=(str(tmp_path / "run"), ready))
    other.start()
    assert ready.wait(60)
    with pytest.raises(ValueError, match=f"another run writes to.*{other.pid}.*machine.*choose another"):
        run()
    assert not (tmp_path / "run" / "history.jsonl").exists()
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    run()
    assert not (tmp_path / "run" / "run.lock").exists()

def test_a_folder_that_cannot_be_is_refused(rows, model, processor, tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match="nothing can be written to.*choose another"):
            train(model, processor, rows, settings(folder))

# Going on

def test_a_finished_run_can_be_made_longer(run):
    _, short = run(steps=4)
    _, whole = run(steps=8, resume=True)
    assert [line["step"] for line in whole] == [*range(1, 9)] and whole[:4] == short
    assert [line["lr"] for line in whole[4:]] == [learning_rate(step, TrainConfig(steps=8))
                                                  for step in range(4, 8)]
    assert whole[4]["lr"] > whole[3]["lr"]
    with pytest.raises(ValueError, match="steps is 6 and was 8.*longer, not shorter"):
        run(steps=6, resume=True)

def test_a_run_that_is_finished_comes_back_with_its_history(run, tmp_path):
    one, short = run()
    (tmp_path / "run" / "history.jsonl").unlink()
    again, history = run(resume=True)
    assert history == short[-1:] and torch.equal(weights(one), weights(again))

OTHERS = [("data", dict(data="other rows")), ("data", dict(data="other texts")),
          ("rows is", dict(data="fewer rows")),
          ("valid_data", dict(valid="others")), ("min_rating is 3 and was 1", dict(about=dict(min_rating=3))),
          ("batch_size is 5", dict(batch_size=5)), ("lr_text", dict(lr_text=1e-4))]

@pytest.mark.parametrize("name, change", OTHERS, ids=[str(c) for _, c in OTHERS])
def test_going_on_with_anything_else_is_refused_by_name(run, rows, name, change):
    changed = rows.select(range(16)).map(lambda row,
                                         i: dict(texts=row["texts"][:-1] if i == 11 else row["texts"]),
                                         with_indices=True, features=rows.features)
    data = {"other rows": rows.select(range(16, 32)), "other texts": changed,
            "fewer rows": rows.select(range(15))}
    parts = dict(data=data.get(change.get("data")), valid=rows.select(range(40, 44)),
                 about=dict(min_rating=1))
    run(valid=rows.select(range(32, 36)), about=dict(min_rating=1))
    valid = parts["valid"] if "valid" in change else rows.select(range(32, 36))
    others = {k: v for k, v in change.items() if k not in ("data", "valid", "about")}
    with pytest.raises(ValueError, match=f"of a run with other settings.*{name}"):
        run(data=parts["data"], valid=valid, about=change.get("about", parts["about"]), steps=6,
            resume=True, **others)

def test_another_tokenizer_or_model_is_refused_by_name(run, rows, tmp_path):
    run()
    model, processor = tiny_model(rows.select(range(3)))
    other = [dict(row, texts=[dict(t, user=t["user"] + " zyx wvu") for t in row["texts"]])
             for row in rows.select(range(9))]
    config = settings(tmp_path / "run", resume=True, steps=6)
    with pytest.raises(ValueError, match="tokenizer is"):
        train(model, tiny_model(other)[1], rows.select(range(16)), config)
    text = dataclasses.replace(model.config.text_config, rope_theta=5_000.0)
    with pytest.raises(ValueError, match="model is"):
        train(VisionLanguageModel(dataclasses.replace(model.config, text_config=text)), tiny_model(rows)[1],
              rows.select(range(16)), config)

def change_state(file, tensors=None, **entries):
    "Write a state again, with some of its tensors or entries changed; None = left out."
    with safe_open(file, "pt") as state: metadata = json.loads(state.metadata()["metadata"])
    stored = {n: t for n, t in (load_file(file) | (tensors or {})).items() if t is not None}
    metadata = {n: v for n, v in (metadata | entries).items() if v != "left out"}
    save_file(stored, file, dict(metadata=json.dumps(metadata)))

NAME = "connector.modality_projection.proj.weight"
BROKEN = [("step is -3", dict(step=-3)), ("step is 2.5", dict(step=2.5)),
          ("step is None", dict(step="left out")),
          ("step is 99", dict(step=99)), ("best is nan", dict(best=NAN)), ("best is low", dict(best="low")),
          ("cursors is", dict(cursors=[])), ("cursors is", dict(cursors=[dict(turn=3, cursors=[None])])),
          ("cursors is", dict(cursors=[dict(turn=0, cursors=[[-2, 0]])])), ("scaler is", dict(scaler=[])),
          ("line is", dict(line="x")), ("no settings", dict(settings="left out")),
          ("written with", dict(tensors={f"optimizer.{NAME}.mean": None})),
          ("written with", dict(tensors={"random": None})),
          ("mean.*shape", dict(tensors={f"optimizer.{NAME}.mean": torch.zeros(3, 2)})),
          ("not finite", dict(tensors={f"optimizer.{NAME}.mean": torch.full((64, 256), NAN)})),
          ("not finite", dict(tensors={f"model.{NAME}": torch.full((64, 256), INF)})),
          ("another model", dict(tensors={f"model.{NAME}": torch.zeros(3, 2)})),
          ("random state", dict(tensors={"random": torch.zeros(7, dtype=torch.uint8)}))]

@pytest.mark.parametrize("message, changes", BROKEN, ids=[f"{n} {m}" for n, (m, _) in enumerate(BROKEN)])
def test_a_state_that_cannot_be_right_is_refused(run, tmp_path, message, changes):
    run()
    file = state_files(tmp_path / "run")[-1]
    with safe_open(file, "pt") as state:
        assert len(load_file(file)) == json.loads(state.metadata()["metadata"])["tensors"]
    change_state(file, **changes)
    with pytest.raises(ValueError, match=f"{file.name}.*{message}|{message}.*{file.name}") as refused:
        run(resume=True, steps=6)
    assert "\n" not in str(refused.value)
    file.unlink() # as the message says
    assert len(run(resume=True, steps=6)[1]) == 6

def test_what_an_optimizer_knew_is_whole_or_not_there(run, tmp_path):
    run(optimizer="adamw")
    file = state_files(tmp_path / "run")[-1]
    count = len(load_file(file)) - 1
    names = {f"optimizer.{NAME}.exp_avg": None}
    change_state(file, names)
    with safe_open(file, "pt") as state: metadata = json.loads(state.metadata()["metadata"])
    save_file(load_file(file), file, dict(metadata=json.dumps(metadata | dict(tensors=count))))
    with pytest.raises(ValueError, match="exp_avg_sq.*proj.weight.*keeps"):
        run(optimizer="adamw", resume=True, steps=6)

@pytest.mark.parametrize("text", [
    "", "not json\n", '{"loss": 1}\n', "[1]\n", "7\n", '{"step": "two"}\n', "\x00\n", '{"step": 2, "lo',
    "\n\n"])
def test_a_history_with_bad_lines_is_mended(run, tmp_path, text):
    _, whole = run()
    file = tmp_path / "run" / "history.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text(lines[0] + text + "".join(lines[1:] if text.endswith("\n") or not text else []))
    _, again = run(resume=True, steps=6)
    assert again[-1]["step"] == 6 and again[0] == whole[0] and whole[-1] in again
    assert all(json.loads(line)["step"] for line in file.read_text().splitlines())

def test_a_history_that_is_no_text_is_mended(run, tmp_path):
    run()
    (tmp_path / "run" / "history.jsonl").write_bytes(b"\xff\xfe\n" * 3)
    assert [line["step"] for line in run(resume=True, steps=6)[1]] == [4, 5, 6]

# Streams

@pytest.fixture(scope="module")
def folder(rows, tmp_path_factory):
    "Parquet files of 1, 3 and 2 shards: few, many, other; and one of 30 rows."
    folder = tmp_path_factory.mktemp("stream")
    plain = [dict(images=[dict(bytes=Path(i["path"]).read_bytes(), path=None) for i in row["images"]],
                  texts=row["texts"])
             for row in rows]
    for name, files, count in (("few", 1, 30), ("many", 3, 5000), ("other", 2, 300)):
        for file in range(files):
            part = [dict(plain[i % 200], texts=[dict(plain[i % 200]["texts"][0], source=f"{name} {i}")])
                    for i in range(file, count, files)]
            Dataset.from_list(part, features=rows.features).to_parquet(folder / f"{name}-{file}.parquet")
    return folder

def stream(folder, kind):
    "A stream of a kind: plain, filtered, or a mixture."
    def load(name):
        return load_dataset("parquet", data_files=f"{folder}/{name}-*.parquet", split="train", streaming=True)
    if kind == "mixture":
        return interleave_datasets([load("many"), load("other")], [0.7, 0.3], seed=0,
                                   stopping_strategy="all_exhausted")
    rows = load("few" if kind == "few" else "many")
    return rows.filter(lambda row: int(
        row["texts"][0]["source"].split()[1]) % 7 > 0) if kind == "filtered" else rows

@pytest.fixture(autouse=True)
def no_sleep(monkeypatch): monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)

@pytest.mark.parametrize("options", [{}, dict(length=256)], ids=["padded", "packed"])
@pytest.mark.parametrize("kind, workers", [("plain", 0), ("filtered", 0), ("mixture", 0), ("few", 0),
                                           ("plain", 2), ("few", 2)])
def test_a_stream_goes_on_bit_for_bit(folder, processor, kind, options, workers):
    def source(cursor=None):
        windows = Windows(Examples(stream(folder, kind), processor), 8, questions=1, **options)
        return Source(windows, workers, cursor=cursor)
    whole = source()
    batches, cursors = [], []
    for _ in range(9):
        cursors.append(json.loads(json.dumps(whole.cursor)))
        batches.append(next(whole)["batch"])
    for n in (1, 4, 7):
        again = source(cursors[n])
        assert all(same(next(again)["batch"], b) for b in batches[n:])

def test_a_stream_goes_on_in_constant_time(folder, processor):
    "After 400 windows of ten, the fourth thousand of rows: as many are read as by a new run."
    rows = in_schema(stream(folder, "plain"), "many")
    def read_rows(cursor=None):
        taken = []
        take = Lanes.take
        with pytest.MonkeyPatch.context() as patch:
            def counted(self, count):
                got = take(self, count)
                taken.append(len(got))
                return got
            patch.setattr(Lanes, "take", counted)
            windows = iter(Windows(Examples(stream(folder, "plain"), processor), 10, questions=1,
                                   cursor=cursor))
            first = next(windows)
            return windows, first, sum(taken)
    windows, item, count = read_rows()
    *_, item = itertools.islice(windows, 399)
    following = next(windows)
    _, first, count_later = read_rows(json.loads(json.dumps(item["cursor"])))
    assert same(first["batch"], following["batch"])
    assert count == count_later == BLOCK

def test_a_stream_shows_every_row_once_in_an_epoch(folder, processor):
    windows = Windows(Examples(stream(folder, "plain"), processor), 50, questions=1)
    epoch = [examples for _, examples, *_ in itertools.islice(windows.streamed_windows(), 100)]
    assert sum(map(len, epoch)) == 5000
    lanes = Lanes(stream(folder, "plain"), [2, 0, 1])
    sources = [row["texts"][0]["source"] for row in lanes.take(10**6)]
    assert len({*sources}) == len(sources) == 5000

@pytest.mark.parametrize("readers", [2, 3])
def test_readers_of_fewer_rows_than_a_window_take_turns(folder, processor, readers):
    for reader in range(readers):
        windows = iter(Windows(Examples(stream(folder, "few"), processor), 64, reader=reader,
                               readers=readers))
        assert [next(windows)["samples"] for _ in range(3)] == [30, 30, 30]

def test_workers_that_are_spawned_read_the_same(folder, processor):
    "As they are on macOS and Windows: each gets a pickled copy of the stream."
    def batches():
        windows = Windows(Examples(in_schema(stream(folder, "few"), "few"), processor), 8, questions=1)
        source = Source(windows, workers=1)
        return [next(source)["batch"] for _ in range(3)]
    usual = multiprocessing.get_start_method()
    here = batches()
    multiprocessing.set_start_method("spawn", force=True)
    try: assert all(map(same, batches(), here))
    finally: multiprocessing.set_start_method(usual, force=True)

def test_a_run_on_few_rows_with_two_workers(folder, model, processor):
    config = TrainConfig(**QUIET, steps=3, batch_size=64, workers=2)
    assert [line["samples"] for line in train(model, processor, stream(folder, "few"), config)] == [
        30, 30, 30]

def test_a_reader_whose_shards_are_empty_reads_the_others(folder, processor):
    rows = stream(folder, "plain").filter(lambda row: int(row["texts"][0]["source"].split()[1]) % 3 == 0)
    for reader in range(3):
        windows = iter(Windows(Examples(rows, processor), 8, questions=1, reader=reader, readers=3))
        item = next(windows)
        again = iter(Windows(Examples(rows, processor), 8, questions=1, reader=reader, readers=3,
                             cursor=item["cursor"]))
        assert same(next(again)["batch"], next(windows)["batch"])

def test_a_stream_without_rows_is_refused(folder, processor):
    rows = stream(folder, "plain").filter(lambda row: False)
    for readers in (1, 5):
        with pytest.raises(ValueError, match="no rows"):
            next(iter(Windows(Examples(rows, processor), 8, readers=readers)))

def test_a_streamed_run_goes_on_as_if_nothing_had_happened(folder, rows, tmp_path):
    def learn(name, steps, **changes):
        model, processor = tiny_model(rows)
        history = train(model, processor, stream(folder, "plain"),
                        settings(tmp_path / name, steps=6, **changes))
        return weights(model), [line["loss"] for line in history]
    whole = learn("whole", 6)
    learn("cut", 6)
    state_files(tmp_path / "cut")[-1].unlink()
    again = learn("cut", 6, resume=True)
    assert torch.equal(again[0], whole[0]) and again[1] == whole[1]
    with pytest.raises(ValueError, match="data is"):
        model, processor = tiny_model(rows)
        train(model, processor, stream(folder, "few"), settings(tmp_path / "cut", steps=6, resume=True))

def test_fingerprints_tell_data_apart(rows):
    some = rows.select(range(50))
    assert fingerprint(some) == fingerprint(list(some)) == fingerprint(rows.select(range(50)))
    others = [rows.select(range(1, 51)), rows.select(range(49)),
              list(some)[:-1] + [dict(some[49], images=[])], []]
    assert len({fingerprint(some), *map(fingerprint, others)}) == 5
    assert fingerprint(some.to_iterable_dataset()) != fingerprint(others[0].to_iterable_dataset())
    assert fingerprint([dict(images=None, texts=None)])

# Fine-tuning

def test_at_gentle_rates_a_trained_model_learns_and_does_not_forget(trained, rows):
    "Twenty pictures, a question in new words, fifty steps; at the default rates 13 % of the old are left."
    model, processor = copy.deepcopy(trained[0]), trained[1]
    asked = []
    for row in rows:
        shape = next((t["assistant"] for t in row["texts"] if t["source"] == "shape"), None)
        if shape: asked.append((row["images"][0]["path"], "tell me the form", shape, "new"))
    config = gentle(TrainConfig(output_dir="", steps=50, progress=False))
    train(model, processor, from_questions(asked[:20]), config)
    def score(data):
        answers = predict(model, processor, data)
        return sum(p["right"] for p in answers) / len(answers)
    assert score(easy_vqa("test").select(range(100))) > 0.95 and score(from_questions(asked[20:80])) > 0.95

def test_gentle_rates_are_a_part_of_the_defaults_and_chosen_ones_stay(capsys):
    config = gentle(TrainConfig(lr_connector=1e-3, steps=50))
    defaults = TrainConfig()
    assert config.lr_connector == 1e-3 and config.steps == 50
    assert config.lr_vision < defaults.lr_vision / 2 and config.lr_text < defaults.lr_text / 2
    said = capsys.readouterr().out
    assert "lr_vision" in said and "lr_connector" not in said and said.count("\n") == 1
    kept = gentle(config)
    assert kept == config and not capsys.readouterr().out
