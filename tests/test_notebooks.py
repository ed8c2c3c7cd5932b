"Notebooks are the source: they export the package, are clean, and run from the built wheel alone."
import os, re, shutil, subprocess, sys, zipfile
from concurrent.futures import ThreadPoolExecutor
import pytest
from conftest import REPO

CHAPTERS = sorted(p for p in (REPO / "nbs").glob("*.ipynb") if re.match(r"\d\d_", p.name))

@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    "What git would commit, somewhere else."
    folder = tmp_path_factory.mktemp("copy")
    files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=REPO, capture_output=True, text=True, check=True).stdout.splitlines()
    for name in files:
        if not (REPO / name).exists(): continue # deleted, not yet committed
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(REPO / name, folder / name, follow_symlinks=False)
    return folder

def run(command, **kwargs):
    result = subprocess.run(command, capture_output=True, text=True, **kwargs)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout

def tool(name): return os.path.join(os.path.dirname(sys.executable), name)

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

@pytest.mark.skipif(shutil.which("quarto") is not None, reason="Quarto's own build is GitHub's business")
def test_site_builds(copy):
    run(["make", "-o", ".venv/dev", "site", f"BIN={os.path.dirname(sys.executable)}"], cwd=copy)
    for path in CHAPTERS:
        page = (copy / f"_docs/{path.stem}.html").read_text()
        assert page.count("<img") >= 2 and "<h1" in page, path.stem

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
    if c.cell_type == "code" and any(line.strip() in ("#| hub", "#| gpu", "#| slow") for line in c.source.splitlines()): c.source = ""
NotebookClient(nb, timeout=600, kernel_name="python3").execute()
"""

@pytest.fixture(scope="module")
def results(wheel, tmp_path_factory):
    "Every chapter, copied alone into an empty folder and run there; two at a time, a thread each. The last ones take longest and come first."
    def run_alone(path):
        folder = tmp_path_factory.mktemp(path.stem)
        shutil.copy(path, folder)
        environment = os.environ | dict(PYTHONPATH=str(wheel), OMP_NUM_THREADS="1")
        where = subprocess.run([sys.executable, "-c", "import nanovlm; print(nanovlm.__file__)"], cwd=folder, env=environment, capture_output=True, text=True).stdout
        assert where.startswith(str(wheel)), f"not the wheel's package: {where}"
        return subprocess.run([sys.executable, "-c", RUN, path.name], cwd=folder, env=environment, capture_output=True, text=True)
    with ThreadPoolExecutor(2) as pool: return dict(zip(CHAPTERS[::-1], pool.map(run_alone, CHAPTERS[::-1])))

@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_chapter_runs_with_the_wheel_alone(results, path):
    assert results[path].returncode == 0, results[path].stderr[-4000:]

def test_nbdev_test_passes_on_the_reference_notebooks():
    run([tool("nbdev_test"), "--path", "nbs/reference", "--n_workers", "1"], cwd=REPO)
