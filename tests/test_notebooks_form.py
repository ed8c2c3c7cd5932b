"Notebooks and pages keep one form: badges, links, figures with words for them, documented symbols, clean outputs."
import ast, json, re
import pytest
from conftest import CHAPTERS, NOTEBOOKS, READ, REPO, SETTINGS as S, code_cells

def cells(path): return json.loads(path.read_text())["cells"]
def prose(path): return "\n".join("".join(c["source"]) for c in cells(path) if c["cell_type"] == "markdown")
def text(path): return "\n".join("".join(c["source"]) for c in cells(path))

EXPORTED = r"#\s*\|\s*exports?\b"

@pytest.mark.parametrize("path", READ, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_badge_and_setup_cell_say_what_settings_say(path):
    source = text(path)
    place = f"https://colab.research.google.com/github/{S['user']}/{S['repo']}/blob/{S['branch']}/nbs/{path.relative_to(REPO / 'nbs')}"
    assert "".join(cells(path)[1]["source"]).startswith(f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({place})"), "the badge stands in the second cell: nbdev drops what follows the title in the first"
    assert source.count(f'!{{sys.executable}} -m pip install -q "{S["lib_name"]}[course] @ git+{S["git_url"]}"') == 1

def test_every_address_of_ours_is_the_one_in_settings():
    ours = [REPO / n for n in ("README.md", "_quarto.yml", "CONTRIBUTING.md", "nanovlm/__init__.py")] + NOTEBOOKS
    for path in ours:
        for user, repo in re.findall(r"github\.com/([\w-]+)/(nanovlm)\b", path.read_text()): assert (user, repo) == (S["user"], S["repo"]), path
        for host in re.findall(r"https://[\w-]+\.github\.io/nanovlm", path.read_text()): assert host == S["doc_host"] + S["doc_baseurl"], path

def test_quarto_says_what_settings_say():
    quarto = (REPO / "_quarto.yml").read_text()
    for line in (f"title: {S['title']}", f"site-url: {S['doc_host']}{S['doc_baseurl']}", f"repo-url: {S['git_url']}", f"repo-branch: {S['branch']}", f"description: {S['description']}"): assert line in quarto, line
    for path in NOTEBOOKS: assert str(path.relative_to(REPO / "nbs")) in quarto, f"{path} is not in the sidebar"
    assert (REPO / "nbs/_quarto.yml").is_symlink()

def test_readme_links_every_chapter():
    readme = (REPO / "README.md").read_text()
    for path in CHAPTERS: assert f"nbs/{path.name}" in readme and f"blob/{S['branch']}/nbs/{path.name}" in readme, path.name
    for target in re.findall(r"\]\(((?!https?:)[^)#]+)", readme): assert (REPO / target).exists(), target

@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_links_between_notebooks_lead_somewhere(path):
    for target in re.findall(r"\]\(((?!https?:|#)[^)#]+)", prose(path)): assert (path.parent / target).exists(), target

@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_figures_have_alternative_text(path):
    for c in cells(path):
        if any("image/png" in o.get("data", {}) for o in c.get("outputs", [])):
            alt = re.search(r'^#\| fig-alt: "(.+)"$', "".join(c["source"]), re.M) # in quotes: a colon in it would make another thing of it
            assert alt and len(alt[1]) > 20, "".join(c["source"])

@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_first_cell_is_title_and_promise_alone(path):
    "nbdev makes them the head of a page, and drops whatever else the cell holds."
    assert re.fullmatch(r"# .+\n\n> .+", "".join(cells(path)[0]["source"]))

@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_exported_symbols_are_documented_and_used(path):
    "A docstring, and a comment on the line of every parameter and field. Used means: by its notebook, or by another one that imports it."
    code = ["".join(c["source"]) for c in cells(path) if c["cell_type"] == "code"]
    pool = "\n".join("".join(c["source"]) for p in NOTEBOOKS for c in cells(p) if c["cell_type"] == "code")
    for source in code:
        if not re.match(EXPORTED, source): continue
        lines = source.splitlines()
        for node in ast.parse(source).body:
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef)): continue
            assert ast.get_docstring(node), node.name
            assert len(re.findall(rf"\b{node.name}\b", pool)) > 1, f"{node.name} is used nowhere"
            inner = node.body if isinstance(node, ast.ClassDef) else [node]
            for part in inner:
                if isinstance(part, ast.AnnAssign): assert "#" in lines[part.lineno - 1], f"{node.name}.{part.target.id}"
                if not isinstance(part, ast.FunctionDef) or part is not node and part.name.startswith("_") and part.name != "__init__": continue
                for a in part.args.args + part.args.kwonlyargs:
                    if a.arg not in ("self", "cls"): assert "#" in lines[a.lineno - 1] or "#" in lines[a.end_lineno - 1], f"{node.name}.{part.name}: {a.arg}"

@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_import_cells_hold_imports_alone(path):
    "nbdev runs cells with imports again when it builds the site."
    for c in cells(path):
        source = "".join(c["source"])
        if c["cell_type"] != "code" or "google.colab" in source or "#| export" in source: continue
        body = ast.parse(re.sub(r"^[#%!].*$", "", source, flags=re.M)).body
        kinds = {isinstance(n, (ast.Import, ast.ImportFrom)) or isinstance(n, ast.Try) and all(isinstance(x, (ast.Import, ast.ImportFrom)) for x in n.body) for n in body}
        assert len(kinds) < 2, source

@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_stored_outputs_have_no_errors_or_noise(path):
    for c in cells(path):
        for o in c.get("outputs", []): assert o["output_type"] != "error" and o.get("name") != "stderr", "".join(c["source"])
    assert "widgets" not in json.loads(path.read_text())["metadata"], "the state of progress bars is stored: delete it"

@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_chapters_are_stored_with_outputs(path):
    assert sum(bool(c.get("outputs")) for c in cells(path)) >= 8
