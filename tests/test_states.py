"A run goes on from a whole state of its own, stops when it is told to, and writes where it may."
import json, os, signal
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from nanovlm.runs import is_line, only_run, read_lines, state_files, stop_signals
from nanovlm.training import TrainConfig, good_cursor, train

NAME = "connector.modality_projection.proj.weight"

@pytest.fixture
def run(rows, pair, tmp_path):
    "Train a tiny model for some steps in a folder that is the same each time."
    def go(**settings):
        settings = dict(steps=2, batch_size=4, save_every=1, progress=False) | settings
        return train(*pair, rows.select(range(8)), TrainConfig(output_dir=str(tmp_path / "run"), **settings))
    return go

def change_state(file, tensors=None, **entries):
    "Write a state again, with some of its tensors or entries changed; None = left out."
    with safe_open(file, "pt") as state: metadata = json.loads(state.metadata()["metadata"]) | entries
    tensors = load_file(file) | (tensors or {})
    save_file(tensors, file, dict(metadata=json.dumps({k: v for k, v in metadata.items() if v is not None})))

BROKEN = { # entries of a state that no run has written, and what the message names
    "step alone": (dict(line=dict(step=2)), "line is"), "no step": (dict(line=dict(seconds=1.0)), "line is"),
    "seconds": (dict(line=dict(step=2, seconds="x")), "line is"), "empty": (dict(line={}), "line is"),
    "no seconds": (dict(line=dict(step=2, seconds=None)), "line is"),
    "left out": (dict(line=None), "line is"),
    "another step": (dict(line=dict(step=1, seconds=1.0)), "line is"),
    "a place": (dict(cursors=[dict(turn=0, cursors=[[{}, 0]])]), "cursors is"),
    "no settings": (dict(settings={}), "no settings"),
    "whole numbers": (dict(tensors={f"model.{NAME}": torch.ones(64, 256).int()}), "int32"),
    "half": (dict(tensors={f"model.{NAME}": torch.ones(64, 256).half()}), "float16"),
    "a whole mean": (dict(tensors={f"optimizer.{NAME}.mean": torch.ones(64, 256).int()}), "int32")}

@pytest.mark.parametrize("case", BROKEN)
def test_a_state_that_no_run_has_written_is_refused(run, tmp_path, case):
    run()
    changes, words = BROKEN[case]
    file = state_files(tmp_path / "run")[-1]
    change_state(file, **changes)
    with pytest.raises(ValueError, match=f"{file.name}.*{words}") as refused: run(resume=True, steps=4)
    assert "\n" not in str(refused.value)
    file.unlink()
    assert len(run(resume=True, steps=4)) == 4

def test_a_folder_in_a_state_s_place_is_named(run, tmp_path):
    run()
    file = state_files(tmp_path / "run")[-1]
    file.unlink()
    file.mkdir()
    with pytest.raises(ValueError, match=f"{file.name} is not a state"): run(resume=True)

CURSORS = [([None], False, True), ([[3, 0]], False, True), ([[{"epoch": 0}, 0]], True, True),
           ([[{}, 0]], False, False), ([[3, 0]], True, False), ([["x", 0]], False, False)]

@pytest.mark.parametrize("cursors, streamed, good", CURSORS, ids=str)
def test_a_cursor_is_of_the_kind_that_its_rows_have(cursors, streamed, good):
    assert good_cursor(dict(turn=0, cursors=cursors), 0, streamed) is good

# The log

LINES = [(dict(step=1, loss=2.5, seconds=1.0), True), (dict(step=1, valid_loss=1), True),
         (dict(step=1), True), (dict(step=1, valid_loss="x"), False),
         (dict(step=1, loss=None), False), (dict(loss=1.0), False),
         (dict(step=1, seconds=[]), False), ([], False)]

@pytest.mark.parametrize("line, good", LINES, ids=str)
def test_a_line_has_numbers_where_they_belong(line, good): assert is_line(line) is good

def test_a_line_with_a_text_for_a_loss_is_left_out(run, tmp_path):
    run()
    file = tmp_path / "run" / "history.jsonl"
    first, second = file.read_text().splitlines()
    file.write_text(json.dumps(json.loads(first) | dict(valid_loss="x")) + "\n" + second + "\n")
    assert [line["step"] for line in run(resume=True, steps=4)] == [2, 3, 4]
    assert all(isinstance(line.get("valid_loss", 0), (int, float)) for line in read_lines(file))

# The folder

@pytest.mark.parametrize("name", ["history.jsonl", "model.safetensors"])
def test_a_folder_where_a_file_is_to_be_written_is_named(run, tmp_path, name):
    (tmp_path / "run" / name).mkdir(parents=True)
    with pytest.raises(ValueError, match=f"{name} is a folder|holds a trained model"): run()

@pytest.mark.parametrize("folder", ["/", "//", "a\0b"])
def test_a_folder_that_is_not_for_a_run_is_refused(folder):
    with pytest.raises(ValueError, match="output_dir is .*give the name of a folder"):
        with only_run(folder): pass

def test_a_folder_that_holds_other_things_is_fine(run, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    run()
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"

def test_all_files_of_a_run_have_one_mode(run, tmp_path):
    run()
    files = [f for f in (tmp_path / "run").rglob("*") if f.is_file()]
    assert len(files) > 6 and len({f.stat().st_mode for f in files}) == 1

# Signals

def test_a_closed_terminal_is_noted():
    old = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with stop_signals() as came:
            os.kill(os.getpid(), signal.SIGHUP)
            assert came == [signal.SIGHUP]
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    finally: signal.signal(signal.SIGHUP, old)

def test_nohup_stays_as_it_is():
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals() as came:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not came
    finally: signal.signal(signal.SIGHUP, old)
