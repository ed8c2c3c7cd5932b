"Notebooks and pages keep one form: badges, links, words for figures, documented symbols, clean outputs."
import ast, importlib, json, re
from collections import Counter
import pytest
from conftest import CHAPTERS, NOTEBOOKS, READ, REPO, SETTINGS as S, code_cells

def cells(path): return json.loads(path.read_text())["cells"]
def source(cell): return "".join(cell["source"])
def prose(path): return "\n".join(source(c) for c in cells(path) if c["cell_type"] == "markdown")
def links(text): return re.findall(r"\]\(((?!https?:|#)[^)#]+)", text) # within the repository

by_name = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: f"{p.parent.name}-{p.stem}")
read_by_people = pytest.mark.parametrize("path", READ, ids=lambda p: f"{p.parent.name}-{p.stem}")
COLAB = f"https://colab.research.google.com/github/{S['user']}/{S['repo']}/blob/{S['branch']}"
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"

@read_by_people
def test_badge_and_setup_cell_say_what_settings_say(path):
    "The badge stands in the second cell: nbdev drops what follows the title in the first."
    address = f"{COLAB}/nbs/{path.relative_to(REPO / 'nbs')}"
    assert source(cells(path)[1]).startswith(f"[![Open in Colab]({BADGE})]({address})")
    install = f'!{{sys.executable}} -m pip install -q "{S["lib_name"]}[course] @ git+{S["git_url"]}"'
    assert "\n".join(code_cells(path)).count(install) == 1

def test_every_address_of_ours_is_the_one_in_settings():
    files = "README.md", "_quarto.yml", "CONTRIBUTING.md", "nanovlm/__init__.py"
    for path in [*(REPO / name for name in files), *NOTEBOOKS]:
        text = path.read_text()
        repositories = re.findall(r"github\.com/([\w-]+)/(nanovlm)\b", text)
        assert set(repositories) <= {(S["user"], S["repo"])}, path
        hosts = re.findall(r"https://[\w-]+\.github\.io/nanovlm", text)
        assert set(hosts) <= {S["doc_host"] + S["doc_baseurl"]}, path

def test_quarto_says_what_settings_say():
    quarto = (REPO / "_quarto.yml").read_text()
    said = {"title": "title", "repo-url": "git_url", "repo-branch": "branch", "description": "description"}
    for name, setting in said.items(): assert f"{name}: {S[setting]}" in quarto, name
    assert f"site-url: {S['doc_host']}{S['doc_baseurl']}" in quarto
    for path in NOTEBOOKS:
        assert str(path.relative_to(REPO / "nbs")) in quarto, f"{path} is not in the sidebar"
    assert (REPO / "nbs/_quarto.yml").is_symlink()

def test_old_addresses_lead_to_the_new_ones():
    "Pages that were renamed stay as redirects, which the site copies as they are."
    quarto = (REPO / "_quarto.yml").read_text()
    moved = [path for path in (REPO / "nbs").rglob("*.html") if path.parent.name != "live"]
    assert len(moved) == 6
    for path in moved:
        assert str(path.relative_to(REPO / "nbs")) in quarto, path
        target, = set(re.findall(r'(?:url=|href=")([^"]+)"', path.read_text()))
        assert path.with_name(target).with_suffix(".ipynb") in NOTEBOOKS, target

def test_readme_links_every_chapter():
    readme = (REPO / "README.md").read_text()
    for path in CHAPTERS:
        assert f"(nbs/{path.name})" in readme and f"{COLAB}/nbs/{path.name}" in readme, path.name
    for target in links(readme): assert (REPO / target).exists(), target

@by_name
def test_links_between_notebooks_lead_somewhere(path):
    for target in links(prose(path)): assert (path.parent / target).exists(), target

def test_every_reference_page_is_linked_from_what_people_read():
    "A reader meets a page where its functions are first used, not by chance."
    linked = {(path.parent / target).resolve() for path in READ for target in links(prose(path))}
    for page in (REPO / "nbs/reference").glob("*.ipynb"): assert page.resolve() in linked, page.name

@by_name
def test_figures_have_alternative_text(path):
    for cell in cells(path):
        if not any("image/png" in output.get("data", {}) for output in cell.get("outputs", [])): continue
        alt = re.search(r'^#\| fig-alt: "(.+)"$', source(cell), re.M) # in quotes: a colon would make it something else
        assert alt and len(alt[1]) > 20, source(cell)

@by_name
def test_first_cell_is_title_and_promise_alone(path):
    "nbdev makes them the head of a page, and drops whatever else the cell holds."
    assert re.fullmatch(r"# .+\n\n> .+", source(cells(path)[0]))

EXPORTED = re.compile(r"#\s*\|\s*exports?\b")

def exported_symbols():
    "(notebook, lines of the cell, function or class) for all that is exported."
    for path in NOTEBOOKS:
        for text in code_cells(path):
            if not EXPORTED.match(text): continue
            for node in ast.parse(text).body:
                if isinstance(node, (ast.FunctionDef, ast.ClassDef)): yield path, text.splitlines(), node

def test_exported_symbols_are_used():
    "By their notebook, or by another one."
    words = Counter(re.findall(r"\w+", "\n".join(text for path in NOTEBOOKS for text in code_cells(path))))
    for path, _, node in exported_symbols():
        assert words[node.name] > 1, f"{path.stem}: {node.name} is used nowhere"

@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_a_chapter_names_what_it_exports(path):
    "All of it, or, where helpers stay unnamed, at least what other notebooks import."
    line = re.search(r"\*Exports:\*(.*)\(module `nanovlm\.(\w+)`\)", prose(path))
    named, module = {*re.findall(r"`(\w+)`", line[1])}, line[2]
    exported = {*importlib.import_module(f"nanovlm.{module}").__all__}
    assert named <= exported, f"not exported: {named - exported}"
    imports = re.findall(rf"from nanovlm\.{module} import (\([^)]*\)|.*)",
                         "\n".join(text for other in READ for text in code_cells(other)))
    used = {word for names in imports for word in re.findall(r"\w+", names)}
    needed = exported & used if re.search("helpers|what", line[1]) else exported
    assert needed <= named, f"exported and not named: {needed - named}"

def test_exported_symbols_are_documented():
    "A docstring, and a comment on the line of every parameter and field."
    def commented(*numbers): return any("#" in lines[n - 1] for n in numbers)
    for path, lines, node in exported_symbols():
        assert ast.get_docstring(node), f"{path.stem}: {node.name}"
        is_class = isinstance(node, ast.ClassDef)
        for part in node.body if is_class else [node]:
            if isinstance(part, ast.AnnAssign): assert commented(part.lineno), f"{node.name}.{part.target.id}"
            if not isinstance(part, ast.FunctionDef): continue
            if is_class and part.name.startswith("_") and part.name != "__init__": continue
            for a in part.args.args + part.args.kwonlyargs:
                if a.arg in ("self", "cls"): continue
                assert commented(a.lineno, a.end_lineno), f"{node.name}.{part.name}: {a.arg}"

@by_name
def test_import_cells_hold_imports_alone(path):
    "nbdev runs cells with imports again when it builds the site."
    def imports(node):
        if isinstance(node, ast.Try): return all(map(imports, node.body))
        return isinstance(node, (ast.Import, ast.ImportFrom))
    for text in code_cells(path):
        if "google.colab" in text or "#| export" in text: continue
        body = ast.parse(re.sub(r"^[#%!].*$", "", text, flags=re.M)).body
        assert len({imports(node) for node in body}) < 2, text

@by_name
def test_stored_outputs_have_no_errors_or_noise(path):
    for cell in cells(path):
        for output in cell.get("outputs", []):
            assert output["output_type"] != "error" and output.get("name") != "stderr", source(cell)
    metadata = json.loads(path.read_text())["metadata"]
    assert "widgets" not in metadata, "the state of progress bars is stored: delete it"

@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_chapters_are_stored_with_outputs(path):
    assert sum(bool(cell.get("outputs")) for cell in cells(path)) >= 8

@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_a_chapter_is_named_after_its_module(path):
    "Chapter 14 alone has the name of the place where it is run."
    found = re.findall(r"^#\| default_exp (\w+)$", "\n".join(code_cells(path)), re.M)
    assert found == ["recipe" if path.stem == "14_colab" else path.stem[3:]]
