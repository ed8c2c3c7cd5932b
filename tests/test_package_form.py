"The package keeps its promises: one order of imports, a model of readable size, lines that fit, a quick import."
import ast, io, subprocess, sys, tokenize
from pathlib import Path
import pytest
from conftest import NOTEBOOKS, REPO, SETTINGS, code_cells

ORDER = """images weights checking plots runs
           patches attention vision rope kv_cache language generation connector model processor data
           batches frozen training evaluation recipe inside scaling hub
           scenes playground demo bench cli""".split() # a module imports from earlier ones alone
MODEL = ORDER[ORDER.index("patches"):ORDER.index("processor")]
WIDTH, USUAL = 110, 90 # columns of code that no line exceeds; that nine tenths of them keep to

def module(name): return REPO / f"nanovlm/{name}.py"

def own_imports(tree):
    "Modules of the package that a module imports, at its top and within functions."
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            yield from [node.module] if node.module else [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "nanovlm": yield from [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nanovlm."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            yield from [a.name.partition(".")[2] or "__init__" for a in node.names if a.name.split(".")[0] == "nanovlm"]

def test_every_module_has_its_place_in_the_order():
    files = {path.stem for path in (REPO / "nanovlm").glob("*.py")} - {"__init__", "__main__", "_modidx"}
    assert files == set(ORDER)

@pytest.mark.parametrize("name", ORDER)
def test_a_module_imports_from_earlier_ones_alone(name):
    for other in own_imports(ast.parse(module(name).read_text())):
        assert other in ORDER[:ORDER.index(name)], f"{name} imports {other}, which comes later"

@pytest.mark.parametrize("name", ORDER)
def test_no_function_imports_from_the_package(name):
    "A lazy import hides a forward reference, and keeps types out of signatures."
    for node in ast.walk(ast.parse(module(name).read_text())):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)): assert not [*own_imports(node)], node.name

def test_the_order_notices_what_it_should():
    for source in ("from nanovlm.cli import main", "from .cli import main", "import nanovlm.cli", "from nanovlm import cli",
                   "from . import cli", "def f():\n    from nanovlm.cli import main"):
        assert [*own_imports(ast.parse(source))] == ["cli"], source

def code_tokens(path):
    "Names, operators, numbers and strings; comments and docstrings aside."
    source, aside = path.read_text(), set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)): continue
        if ast.get_docstring(node, clean=False) is not None: aside.add(node.body[0].lineno)
    counted = tokenize.NAME, tokenize.OP, tokenize.NUMBER, tokenize.STRING
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return sum(t.type in counted and not (t.type == tokenize.STRING and t.start[0] in aside) for t in tokens)

def test_the_model_can_be_read_in_an_evening():
    sizes = {name: code_tokens(module(name)) for name in MODEL}
    assert sum(sizes.values()) <= 6_000, sizes

def test_the_package_stays_small():
    sizes = {name: code_tokens(module(name)) for name in ORDER if name not in ("plots", "playground")}
    assert sum(sizes.values()) <= 36_000, sizes

def code_widths(source):
    "Columns of each line, a comment behind the code aside. Lines for the notebook itself (%, !) are not Python."
    source = "\n".join("pass" if line.lstrip().startswith(("!", "%")) else line for line in source.split("\n"))
    behind = {t.start[0]: t.start[1] for t in tokenize.generate_tokens(io.StringIO(source).readline)
              if t.type == tokenize.COMMENT and t.line[:t.start[1]].strip()}
    return [len(line[:behind.get(n)].rstrip()) for n, line in enumerate(source.split("\n"), 1)
            if not line.startswith("#|")]

PYTHON = [*(REPO / "tests").glob("*.py"), *(REPO / "nanovlm").rglob("*.py"), REPO / "setup.py"]

@pytest.mark.parametrize("path", [p for p in PYTHON if p.name != "_modidx.py"], ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_no_line_of_code_is_too_wide(path):
    lines = [line for line in path.read_text().split("\n")]
    for line, width in zip(lines, code_widths(path.read_text())):
        exported = line.startswith(("__all__", "# %%", "# AUTO")) # nbdev's own
        assert width <= WIDTH or exported, line

@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_no_cell_is_too_wide(path):
    for source in code_cells(path): assert max(code_widths(source), default=0) <= WIDTH, source

def test_most_lines_are_short():
    widths = [w for name in ORDER for w in code_widths(module(name).read_text()) if w]
    assert sum(w <= USUAL for w in widths) / len(widths) >= 0.9

def test_model_modules_import_torch_and_the_standard_library_alone():
    for name in MODEL:
        for node in ast.walk(ast.parse(module(name).read_text())):
            if isinstance(node, ast.Import): names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom): names = ["nanovlm" if node.level else node.module]
            else: names = []
            for other in names: assert other.split(".")[0] in {"torch", "nanovlm"} | sys.stdlib_module_names, (name, other)

def test_import_is_quick():
    code = "import torch, time, sys; t = time.process_time(); import nanovlm; print(time.process_time() - t, " \
           "any(m in sys.modules for m in ('transformers', 'datasets', 'matplotlib')))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, heavy = run.stdout.split()
    assert float(seconds) <= 0.2 and heavy == "False"

@pytest.mark.parametrize("name", ["cli", "bench"])
def test_a_command_starts_without_the_heavy_packages(name):
    "`nanovlm --help` waits for torch, and not for transformers or datasets."
    code = f"import sys, nanovlm.{name}; print([m for m in ('transformers', 'datasets') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"

def test_public_surface():
    import nanovlm
    names = "load join VLMConfig VisionLanguageModel Processor generate ask TrainConfig train evaluate".split()
    assert nanovlm.__all__ == names and set(names) <= set(dir(nanovlm))
    for name in names: assert callable(getattr(nanovlm, name))
    with pytest.raises(AttributeError, match="'teleport'"): nanovlm.teleport

def test_the_map_names_every_module():
    import nanovlm
    for text in (nanovlm.__doc__, (REPO / "README.md").read_text()):
        for name in ORDER: assert f"{name}.py" in text, name

def test_versions_agree():
    import nanovlm
    assert nanovlm.__version__ == SETTINGS["version"]
