"Shared by all tests: no network, few threads, and models that are made once."
import os
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "MPLBACKEND": "agg"}

import asyncio, configparser, json, re, shutil, subprocess, sys
from pathlib import Path
import nbformat
import pytest
import torch
from jupyter_client import AsyncKernelManager
from nbclient import NotebookClient
from nanovlm.data import easy_vqa
from nanovlm.hub import load
from nanovlm.processor import tiny_model

REPO = Path(__file__).parent.parent
NOTEBOOKS = sorted((REPO / "nbs").rglob("*.ipynb"))
CHAPTERS = [p for p in NOTEBOOKS if re.match(r"\d\d_", p.name)]
READ = [p for p in NOTEBOOKS if p.parent.name != "reference" and p.name != "index.ipynb"] # by people, from top to bottom
TINY = REPO / "nanovlm/tiny"
parser = configparser.ConfigParser(delimiters=["="])
parser.read(REPO / "settings.ini", encoding="utf-8")
SETTINGS = parser["DEFAULT"]

def code_cells(path):
    "The sources of a notebook's code cells."
    return ["".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]

def tool(name): return os.path.join(os.path.dirname(sys.executable), name)

def run(command, **kwargs):
    "A command that must succeed; gives what it printed."
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, **kwargs)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout

def run_notebook(path, environment, python=sys.executable):
    "Execute a notebook where it lies, in a process of its own; without cells for a hub, a GPU or the reader."
    notebook, manager = nbformat.read(path, 4), AsyncKernelManager()
    manager.kernel_spec.argv[0] = str(python)
    left_out = re.compile(r"^#\| (hub|gpu|slow|eval: false)$", re.M)
    for cell in notebook.cells:
        if cell.cell_type == "code" and left_out.search(cell.source): cell.source = ""
    folder = dict(metadata=dict(path=str(path.parent)))
    async def execute():
        client = NotebookClient(notebook, km=manager, timeout=600, resources=folder)
        try: await client.async_execute(env=environment)
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
def pair(rows):
    "A tiny model with random weights, and its processor."
    model, processor = tiny_model(rows)
    return model.eval(), processor

@pytest.fixture
def model(pair): return pair[0]

@pytest.fixture
def processor(pair): return pair[1]

@pytest.fixture(scope="session")
def trained():
    "The model that comes with the package, and its processor: not to be changed."
    return load("tiny")

@pytest.fixture(scope="session")
def cli():
    "Run the command line in a process of its own."
    def run(*args, **kwargs):
        command = [sys.executable, "-m", "nanovlm", *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True, timeout=600, **kwargs)
    return run

@pytest.fixture(scope="session")
def demo(cli, tmp_path_factory):
    "The main job, cut short: it learns colours, not yet all shapes. Gives its folder and what it printed."
    folder = tmp_path_factory.mktemp("demo")
    result = cli("demo", "--output-dir", folder, "--steps", 150)
    assert result.returncode == 0, result.stderr
    return folder, result.stdout
