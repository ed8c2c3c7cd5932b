"The package keeps its promises: one order of imports, a model of readable size, short lines, a quick import."
import ast, io, re, subprocess, sys, tokenize
from pathlib import Path
import pytest
from conftest import NOTEBOOKS, REPO, SETTINGS, code_cells

ORDER = """images weights checking plots runs
           patches attention vision rope kv_cache language generation connector model fast quantise processor
           sources data batches frozen training evaluation survey recipe inside scaling hub
           scenes playground demo bench cli""".split() # a module imports from earlier ones alone
MODEL = ORDER[ORDER.index("patches"):ORDER.index("fast")]
WIDTH, USUAL = 110, 90 # columns of code that no line exceeds; that nine tenths of them keep to

def module(name): return REPO / f"nanovlm/{name}.py"

def own_imports(tree):
    "Modules of the package that a module imports, at its top and within functions."
    for node in ast.walk(tree):
        if isinstance(node, ast.Import): names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = ".".join(filter(None, ["nanovlm" if node.level else None, node.module]))
            names = [f"{origin}.{alias.name}" for alias in node.names]
        else: continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == "nanovlm": yield rest.split(".")[0] or "__init__"

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
    ways = ["from nanovlm.cli import main", "from .cli import main", "import nanovlm.cli",
            "from nanovlm import cli", "from . import cli"]
    for source in [*ways, *(f"def f():\n    {way}" for way in ways)]:
        assert [*own_imports(ast.parse(source))] == ["cli"], source

def code_tokens(source):
    "Names, operators, numbers and strings (an f-string is one); docstrings and nbdev's __all__ aside."
    aside, count, depth = set(), 0, 0
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            if ast.get_docstring(node, clean=False) is not None: aside.add(node.body[0].lineno)
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            aside |= set(range(node.lineno, node.end_lineno + 1))
    counted = tokenize.NAME, tokenize.OP, tokenize.NUMBER, tokenize.STRING
    for t in tokenize.generate_tokens(io.StringIO(source).readline):
        if t.start[0] in aside: continue
        name = tokenize.tok_name[t.type]
        if name == "FSTRING_START": # Python 3.12 takes f-strings apart
            count += depth == 0
            depth += 1
        elif name == "FSTRING_END": depth -= 1
        elif depth == 0: count += t.type in counted
    return count

def test_tokens_are_counted_as_the_rule_says():
    assert code_tokens('"A docstring."\nx = f"{1 + 1} {x}" # a comment\n') == 3
    assert code_tokens('__all__ = ["a",\n           "b"]\ndef f(a):\n    "Doc."\n    return a\n') == 8

def test_the_model_can_be_read_in_an_evening():
    sizes = {name: code_tokens(module(name).read_text()) for name in MODEL}
    assert sum(sizes.values()) <= 6_000, sizes

def test_the_package_stays_small():
    aside = "plots", "playground", "checking" # figures, widgets, and what the exercises are checked with
    sizes = {name: code_tokens(module(name).read_text()) for name in ORDER if name not in aside}
    assert sum(sizes.values()) <= 70_000, sizes # a third of it reads the files, rows and replies of others

def code_widths(source):
    "Columns of each line, a comment behind the code aside; lines for nbdev (#|) count 0."
    lines = ["" if line.startswith("#|") else re.sub(r"^(\s*)[!%].*", r"\1pass", line)
             for line in source.split("\n")]
    behind = {t.start[0]: t.start[1] for t in tokenize.generate_tokens(io.StringIO("\n".join(lines)).readline)
              if t.type == tokenize.COMMENT and t.line[:t.start[1]].strip()}
    return [len(line[:behind.get(n)].rstrip()) for n, line in enumerate(lines, 1)]

PYTHON = [*(REPO / "tests").glob("*.py"), *(REPO / "nanovlm").rglob("*.py"), *(REPO / ".ci").glob("*.py")]
PYTHON = [path for path in PYTHON if path.name != "_modidx.py"] # nbdev's own

def span(statement): return range(statement.lineno, statement.end_lineno + 1)

def written_by_nbdev(source):
    "Lines of an exported module: __all__, and the promise of its page as docstring."
    body = ast.parse(source).body
    names = [getattr(node.targets[0], "id", "") if isinstance(node, ast.Assign) else "" for node in body]
    if "__all__" not in names: return set()
    return {*span(body[0]), *span(body[names.index("__all__")])}

@pytest.mark.parametrize("path", PYTHON, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_no_line_of_code_is_too_wide(path):
    text = path.read_text()
    aside = written_by_nbdev(text) if path.parent.name in ("nanovlm", "exercises") else set()
    for n, (line, width) in enumerate(zip(text.split("\n"), code_widths(text)), 1):
        assert width <= WIDTH or n in aside, line

@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_no_cell_is_too_wide(path):
    for source in code_cells(path): assert max(code_widths(source), default=0) <= WIDTH, source

def test_most_lines_are_short():
    widths = []
    for name in ORDER:
        text = module(name).read_text()
        aside = written_by_nbdev(text)
        widths += [w for n, w in enumerate(code_widths(text), 1) if w and n not in aside]
    assert sum(w <= USUAL for w in widths) >= 0.9 * len(widths), sum(w > USUAL for w in widths)

def test_model_modules_import_torch_and_the_standard_library_alone():
    for name in MODEL:
        for node in ast.walk(ast.parse(module(name).read_text())):
            if isinstance(node, ast.Import): names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom): names = ["nanovlm" if node.level else node.module]
            else: names = []
            known = {"torch", "nanovlm"} | sys.stdlib_module_names
            for other in names: assert other.split(".")[0] in known, f"{name} imports {other}"

def test_import_is_quick():
    code = ("import torch, time, sys; start = time.process_time(); import nanovlm; "
            "heavy = {'transformers', 'datasets', 'matplotlib'} & {*sys.modules}; "
            "print(time.process_time() - start, *heavy)")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, *heavy = run.stdout.split()
    assert float(seconds) <= 0.2 and not heavy

@pytest.mark.parametrize("name", ["cli", "bench"])
def test_a_command_starts_without_the_heavy_packages(name):
    "`nanovlm --help` waits for torch, and not for transformers, datasets or matplotlib."
    heavy = "transformers", "datasets", "matplotlib"
    code = f"import sys, nanovlm.{name}; print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"

def test_public_surface():
    import nanovlm
    names = ["load", "join", "VLMConfig", "VisionLanguageModel", "Processor", "generate", "ask",
             "TrainConfig", "train", "evaluate"]
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
