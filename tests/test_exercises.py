"Every chapter has exercises of one form; every checker accepts a solution and refuses wrong answers."
import ast, importlib, json, re
import pytest
from conftest import CHAPTERS, REPO

HEADING = re.compile(r"^##+ Exercise (\d+)\.(\d+): (.+)$", re.M)
KIND = re.compile(r"^\*(Predict|Implement|Break it|Measure|Extend) · difficulty [123] of 3 · \d+ minutes\*$",
                  re.M)

def cells(path): return json.loads(path.read_text())["cells"]
def source(cell): return "".join(cell["source"])
def code(path): return [source(c) for c in cells(path) if c["cell_type"] == "code"]
def solution(path): return REPO / f"nbs/solutions/{path.stem[3:]}.ipynb"

def section(path, title):
    "The text and the code cells from a second-level heading to the next one."
    text, code, inside = "", [], False
    for cell in cells(path):
        if cell["cell_type"] == "code":
            if inside: code.append(cell)
            continue
        for part in re.split(r"^(?=## )", source(cell), flags=re.M): # a heading may stand in the middle of a cell
            if part.startswith("## "): inside = part.splitlines()[0] == f"## {title}"
            if inside: text += part + "\n"
    return text, code

def stubs(path):
    sources = map(source, section(path, "Exercises")[1])
    return [text for text in sources if text.startswith("#| eval: false")]

def checkers(text): return set(re.findall(r"\bcheck_\w+", text))

chapters = pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)

@chapters
def test_exercises_have_their_form(path):
    text, _ = section(path, "Exercises")
    numbers = [(int(chapter), int(n)) for chapter, n, _ in HEADING.findall(text)]
    assert numbers == [(int(path.stem[:2]), n) for n in range(1, len(numbers) + 1)] and 3 <= len(numbers) <= 6
    for exercise in re.split(r"^### Exercise ", text, flags=re.M)[1:]:
        assert len(KIND.findall(exercise)) == 1, exercise[:80]
        hints = re.findall(r"<details><summary>(.+?)</summary>\n\n", exercise)
        assert hints == ["Hint 1", "Hint 2"] and exercise.count("\n\n</details>") == 2, exercise[:80]
    assert len({kind for kind in KIND.findall(text)}) >= 3, "exercises of three kinds at least"
    assert f"solutions/{path.stem[3:]}.ipynb" in text

@chapters
def test_each_exercise_ends_in_its_one_line_check(path):
    found = stubs(path)
    assert len(found) == len(HEADING.findall(section(path, "Exercises")[0]))
    for stub in found: assert re.match(r"check_\w+\(.*\)$", stub.splitlines()[-1]) and "..." in stub, stub

@chapters
def test_questions_have_evidence_and_a_folded_answer(path):
    text, code = section(path, "Check yourself")
    questions = len(re.findall(r"^\*\*\d\.\*\*", text, re.M))
    answers = text.count("<details><summary>Answer</summary>\n\n")
    assert questions == answers and 2 <= questions <= 4
    evidence = [c for c in code if "import" not in source(c).split("\n")[0]]
    silent = [source(c) for c in evidence if not c["outputs"]]
    assert len(evidence) >= questions and not silent, silent

@chapters
def test_chapter_and_solutions_have_the_same_exercises(path):
    def titles(path):
        text = "\n".join(source(c) for c in cells(path) if c["cell_type"] == "markdown")
        return [title for _, _, title in HEADING.findall(text)]

    assert titles(path) == titles(solution(path))

@chapters
def test_each_checker_is_used_accepts_a_solution_and_refuses_two_answers(path):
    "That it does so is shown when the notebook of solutions runs; here, that nothing is left out."
    exports = [text for text in code(solution(path)) if text.startswith("#| exports")]
    functions = [n for text in exports for n in ast.parse(text).body if isinstance(n, ast.FunctionDef)]
    exported = {n.name for n in functions if n.name.startswith("check_")}
    assert exported == checkers("\n".join(stubs(path)))
    exercises = importlib.import_module(f"nanovlm.exercises.{path.stem[3:]}")
    calls, refused = [], []
    for text in code(solution(path)):
        if text.startswith("#|") or text.lstrip().startswith(("from", "import", "# Colab")): continue
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name): continue
            if node.func.id == "refuses": refused.append(node.args[0].id)
            elif node.func.id == "refuses_all":
                checker, table = (arg.id for arg in node.args)
                refused += [checker] * len(getattr(exercises, table))
            elif node.func.id.startswith("check_"): calls.append(node.func.id)
    for name in exported:
        assert name in calls, f"no solution is shown to {name}"
        assert refused.count(name) >= 2, f"{name} is shown only {refused.count(name)} wrong answers"

def test_solutions_belong_to_chapters():
    assert {p.name for p in (REPO / "nbs/solutions").glob("*.ipynb")} == {solution(p).name for p in CHAPTERS}

LABS = sorted((REPO / "nbs/labs").glob("*.ipynb"))
PARTS = ["The symptom", "The hunt", "Write the failing test", "A test that catches it", "The fix",
         "What it bought", "How to keep it out"]

def test_there_are_eight_labs_or_more(): assert len(LABS) >= 8

@pytest.mark.parametrize("path", LABS, ids=lambda p: p.stem)
def test_lab_goes_from_symptom_to_gain(path):
    "That the test catches the bug is shown when the notebook runs: `catches` fails otherwise."
    text = "\n".join(source(c) for c in cells(path) if c["cell_type"] == "markdown")
    assert re.findall(r"^## (.+)$", text, re.M) == PARTS
    stubs = [t for t in code(path) if t.startswith("#| eval: false")]
    assert len(stubs) == 1 and re.match(r"catches\(test_\w+, \w+, .+\)$", stubs[0].splitlines()[-1])
    assert text.count("<details><summary>Hint") == 3
    shown = "\n".join(t for t in code(path) if not t.startswith("#|"))
    assert re.search(r"^(print\()?catches\(", shown, re.M), "a test that catches the bug"
    assert "refuses(lambda test: catches(" in shown, "a weak test that does not"
