"Notebooks are the source: they export the package, are clean, and run from the built wheel alone."
import json, os, shutil, sys, zipfile
import pytest
from conftest import READ, REPO, run, tool

def test_export_leaves_no_difference(copy):
    before = {p.name: p.read_text() for p in (copy / "nanovlm").glob("*.py")}
    run([tool("nbdev_export")], cwd=copy)
    after = {p.name: p.read_text() for p in (copy / "nanovlm").glob("*.py")}
    different = [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
    assert not different, f"{different} are not what the notebooks export: run nbdev_export"

def test_clean_leaves_no_difference(copy):
    before = {p: p.read_text() for p in (copy / "nbs").rglob("*.ipynb")}
    run([tool("nbdev_clean")], cwd=copy)
    unclean = [path.name for path, text in before.items() if path.read_text() != text]
    assert not unclean, f"{unclean} are not clean: run nbdev_clean"

@pytest.fixture(scope="module")
def wheel(copy, tmp_path_factory):
    "The package, built as a wheel and unpacked into an empty folder."
    out = tmp_path_factory.mktemp("wheel")
    run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", out, copy])
    file, = out.glob("*.whl")
    zipfile.ZipFile(file).extractall(out / "site")
    return out / "site"

NEEDS = ["torch>=2.9", "transformers>=4.57", "datasets", "pillow", "matplotlib", "tqdm", "ipywidgets", "tyro"]

def test_wheel_asks_for_what_settings_name(wheel):
    metadata, = wheel.glob("*.dist-info/METADATA")
    for need in NEEDS: assert f"Requires-Dist: {need}" in metadata.read_text(), need

def test_wheel_holds_the_tiny_model(wheel):
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (wheel / "nanovlm/tiny" / name).exists()

# The long ones first, so that none is left over at the end; chapter 18 last: chapter 15 trains its model.
FIRST = ["15_inside", "16_scaling", "12_training", "13_evaluation", "capstone", "14_colab", "17_hub"]

def turn(path):
    return path.stem == "18_playground", FIRST.index(path.stem) if path.stem in FIRST else len(FIRST)

@pytest.fixture(scope="module")
def results(wheel, tmp_path_factory):
    "What became of every notebook that people read: alone in an empty folder, with the wheel's package."
    environment = os.environ | dict(PYTHONPATH=str(wheel), OMP_NUM_THREADS="1")
    home, copies = tmp_path_factory.mktemp("alone"), []
    (home / "runs").mkdir()
    code = "import nanovlm; print(nanovlm.__file__)"
    package = run([sys.executable, "-c", code], cwd=home, env=environment)
    assert package.startswith(str(wheel)), f"not the wheel's package: {package}"
    for path in sorted(READ, key=turn):
        folder = home / f"{path.parent.name}-{path.stem}"
        folder.mkdir()
        if path.stem in ("15_inside", "18_playground"): (folder / "runs").symlink_to(home / "runs")
        copies.append(shutil.copy(path, folder))
    printed = run([sys.executable, REPO / "tests/run_notebooks.py", *copies], env=environment)
    print(printed) # with the time that each took
    lines = [json.loads(line) for line in printed.splitlines() if line.startswith('{"path"')]
    return {os.path.basename(os.path.dirname(line["path"])): line["error"] for line in lines}

@pytest.mark.parametrize("path", READ, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_notebook_runs_with_the_wheel_alone(results, path):
    error = results[f"{path.parent.name}-{path.stem}"]
    assert error is None, error

def test_a_notebook_that_fails_is_noticed(tmp_path):
    "An exception, and a process that is killed; what runs beside them goes on."
    code = dict(cell_type="code", id="a", metadata={}, execution_count=None, outputs=[])
    ends = {"fails": "1/0", "killed": "import os; os.kill(os.getpid(), 9)", "runs": "1"}
    for name, line in ends.items():
        (tmp_path / name).mkdir()
        notebook = dict(nbformat=4, nbformat_minor=5, metadata={}, cells=[dict(code, source=[line])])
        (tmp_path / name / "a.ipynb").write_text(json.dumps(notebook))
    paths = [tmp_path / name / "a.ipynb" for name in ends]
    printed = run([sys.executable, REPO / "tests/run_notebooks.py", *paths])
    errors = {line["path"].split("/")[-2]: line["error"] for line in map(json.loads, printed.splitlines())}
    assert errors["runs"] is None
    assert "ZeroDivisionError" in errors["fails"] and "signal 9" in errors["killed"]

def test_nbdev_test_passes_on_the_reference_notebooks():
    run([tool("nbdev_test"), "--path", "nbs/reference", "--n_workers", "1"], cwd=REPO)
