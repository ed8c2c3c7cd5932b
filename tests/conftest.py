"Shared by all tests: no network, few threads, and a model that was really trained, made once."
import os
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "MPLBACKEND": "agg"}

import asyncio, re, shutil, subprocess, sys
from pathlib import Path
import nbformat
import pytest
import torch
from jupyter_client import AsyncKernelManager
from nbclient import NotebookClient
from nanovlm.data import easy_vqa
from nanovlm.demo import tiny_model

REPO = Path(__file__).parent.parent
NOTEBOOKS = sorted((REPO / "nbs").rglob("*.ipynb"))
CHAPTERS = [p for p in NOTEBOOKS if re.match(r"\d\d_", p.name)]

def tool(name): return os.path.join(os.path.dirname(sys.executable), name)

def run(command, **kwargs):
    "A command that must succeed; gives what it printed."
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, **kwargs)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout

def run_notebook(path, environment, python=sys.executable):
    "Execute a notebook where it lies, in a process of its own. Cells that need a hub or a GPU, that are slow, or that the reader is to fill in are left out."
    notebook, manager = nbformat.read(path, 4), AsyncKernelManager()
    manager.kernel_spec.argv[0] = str(python)
    for cell in notebook.cells:
        if cell.cell_type == "code" and re.search(r"^#\| (hub|gpu|slow|eval: false)$", cell.source, re.M): cell.source = ""
    async def execute():
        try: await NotebookClient(notebook, km=manager, timeout=600, resources=dict(metadata=dict(path=str(path.parent)))).async_execute(env=environment)
        finally: await manager.shutdown_kernel(now=True)
    asyncio.run(execute())

@pytest.fixture(scope="session")
def copy(tmp_path_factory):
    "What git would commit, somewhere else."
    folder = tmp_path_factory.mktemp("copy")
    for name in run(["git", "ls-files", "-co", "--exclude-standard"], cwd=REPO).splitlines():
        if not (REPO / name).exists(): continue # deleted, not yet committed
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(REPO / name, folder / name, follow_symlinks=False)
    return folder

@pytest.fixture(scope="session")
def site(copy):
    "The folder of the rendered pages."
    if shutil.which("quarto"): pytest.skip("Quarto's own build is GitHub's business")
    run(["make", "-o", ".venv/dev", "site", f"BIN={os.path.dirname(sys.executable)}"], cwd=copy)
    return copy / "_docs"

@pytest.fixture(autouse=True)
def seeded(): torch.manual_seed(0)

@pytest.fixture(scope="session")
def rows():
    "200 images of easy-VQA and their questions."
    return easy_vqa("train").select(range(200))

@pytest.fixture
def tiny(rows):
    "A tiny model with random weights, and its processor."
    model, processor = tiny_model(rows)
    return model.eval(), processor

@pytest.fixture
def model(tiny): return tiny[0]

@pytest.fixture
def processor(tiny): return tiny[1]

@pytest.fixture(scope="session")
def cli():
    "Run the command line in a process of its own."
    def run(*args, **kwargs):
        return subprocess.run([sys.executable, "-c", "from nanovlm.cli import main; main()", *map(str, args)], capture_output=True, text=True, timeout=600, **kwargs)
    return run

@pytest.fixture(scope="session")
def demo(cli, tmp_path_factory):
    "The main job, cut short: it learns colours, not yet all shapes. Gives its folder and what it printed."
    if "NANOVLM_DEMO" in os.environ: return Path(os.environ["NANOVLM_DEMO"]), "" # made by the tests that started these
    folder = tmp_path_factory.mktemp("demo")
    result = cli("demo", "--output-dir", folder, "--steps", 150)
    assert result.returncode == 0, result.stderr
    return folder, result.stdout
