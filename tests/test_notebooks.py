"Notebooks are the source: they export the package, are clean, and run from the built wheel alone."
import os, shutil, subprocess, sys, zipfile
from concurrent.futures import ThreadPoolExecutor
import pytest
from conftest import CHAPTERS, NOTEBOOKS, REPO, run, tool

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

RUN = """
import json, sys, nbformat
from nbclient import NotebookClient
nb = nbformat.read(sys.argv[1], 4)
for c in nb.cells:
    if c.cell_type == "code": c.outputs = []
    if c.cell_type == "code" and any(line.strip() in ("#| hub", "#| gpu", "#| slow", "#| eval: false") for line in c.source.splitlines()): c.source = ""
NotebookClient(nb, timeout=600, kernel_name="python3").execute()
"""

READ = [p for p in NOTEBOOKS if p.parent.name != "reference" and p.name != "index.ipynb"] # chapters, capstone, solutions, labs
LONG = {name: n for n, name in enumerate(("16_scaling", "12_training", "13_evaluation", "15_inside", "18_playground", "capstone", "14_colab"))} # these come first, so that none is left over at the end

@pytest.fixture(scope="module")
def results(wheel, tmp_path_factory):
    "Every notebook that people read, copied alone into an empty folder and run there; two at a time, a thread each."
    def run_alone(path):
        folder = tmp_path_factory.mktemp(path.stem)
        shutil.copy(path, folder)
        environment = os.environ | dict(PYTHONPATH=str(wheel), OMP_NUM_THREADS="1")
        where = subprocess.run([sys.executable, "-c", "import nanovlm; print(nanovlm.__file__)"], cwd=folder, env=environment, capture_output=True, text=True).stdout
        assert where.startswith(str(wheel)), f"not the wheel's package: {where}"
        return subprocess.run([sys.executable, "-c", RUN, path.name], cwd=folder, env=environment, capture_output=True, text=True)
    order = sorted(READ, key=lambda p: LONG.get(p.stem, len(LONG)))
    with ThreadPoolExecutor(2) as pool: return dict(zip(order, pool.map(run_alone, order)))

@pytest.mark.parametrize("path", READ, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_notebook_runs_with_the_wheel_alone(results, path):
    assert results[path].returncode == 0, results[path].stderr[-4000:]

def test_nbdev_test_passes_on_the_reference_notebooks():
    run([tool("nbdev_test"), "--path", "nbs/reference", "--n_workers", "1"], cwd=REPO)
