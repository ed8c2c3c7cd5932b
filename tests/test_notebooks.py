"Notebooks are the source: they export the package, are clean, and run from the built wheel alone."
import os, shutil, subprocess, sys, zipfile
from concurrent.futures import ThreadPoolExecutor
import pytest
from conftest import NOTEBOOKS, REPO, run, run_notebook, tool

def test_export_leaves_no_difference(copy):
    before = {p.name: p.read_text() for p in (copy / "nanovlm").glob("*.py")}
    run([tool("nbdev_export")], cwd=copy)
    after = {p.name: p.read_text() for p in (copy / "nanovlm").glob("*.py")}
    assert before.keys() == after.keys()
    for name in before: assert before[name] == after[name], f"nanovlm/{name} is not what the notebooks export: run nbdev_export"

def test_clean_leaves_no_difference(copy):
    before = {p: p.read_text() for p in (copy / "nbs").rglob("*.ipynb")}
    run([tool("nbdev_clean")], cwd=copy)
    for path, source in before.items(): assert source == path.read_text(), f"{path.name} is not clean: run nbdev_clean"

@pytest.fixture(scope="module")
def wheel(copy, tmp_path_factory):
    "The package, built as a wheel and unpacked into an empty folder."
    out = tmp_path_factory.mktemp("wheel")
    run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(out), str(copy)])
    file, = out.glob("*.whl")
    zipfile.ZipFile(file).extractall(out / "site")
    return out / "site"

def test_wheel_asks_for_what_settings_name(wheel):
    metadata, = wheel.glob("*.dist-info/METADATA")
    for need in ("torch>=2.9", "transformers>=4.57", "datasets", "pillow", "matplotlib", "tqdm", "ipywidgets", "tyro"): assert f"Requires-Dist: {need}" in metadata.read_text(), need

READ = [p for p in NOTEBOOKS if p.parent.name != "reference" and p.name != "index.ipynb"] # chapters, capstone, solutions, labs
FIRST = "15_inside", "16_scaling", "12_training", "13_evaluation", "capstone", "14_colab", "17_hub", "07_generation", "18_playground" # the long ones, so that none is left over at the end

@pytest.fixture(scope="module")
def results(wheel, tmp_path_factory):
    "Every notebook that people read, copied alone into an empty folder and run there; two at a time, a thread each. Chapter 18 finds the model that chapter 15 has trained, as it does for a reader."
    runs = tmp_path_factory.mktemp("runs")
    def run_alone(path):
        folder = tmp_path_factory.mktemp(path.stem)
        if path.stem in ("15_inside", "18_playground"): (folder / "runs").symlink_to(runs)
        shutil.copy(path, folder)
        environment = os.environ | dict(PYTHONPATH=str(wheel), OMP_NUM_THREADS="1")
        where = subprocess.run([sys.executable, "-c", "import nanovlm; print(nanovlm.__file__)"], cwd=folder, env=environment, capture_output=True, text=True).stdout
        assert where.startswith(str(wheel)), f"not the wheel's package: {where}"
        run_notebook(folder / path.name, environment)
    order = sorted(READ, key=lambda p: FIRST.index(p.stem) if p.stem in FIRST else len(FIRST))
    with ThreadPoolExecutor(2) as pool: yield {path: pool.submit(run_alone, path) for path in order}

@pytest.mark.parametrize("path", READ, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_notebook_runs_with_the_wheel_alone(results, path):
    results[path].result()

def test_nbdev_test_passes_on_the_reference_notebooks():
    run([tool("nbdev_test"), "--path", "nbs/reference", "--n_workers", "1"], cwd=REPO)
