"The command line as a user meets it: in a process of its own, with mistakes."
import io, json, shlex
from dataclasses import fields
import pytest
from datasets import Dataset
from PIL import Image
from nanovlm import ask
from nanovlm.cli import main
from nanovlm.demo import DemoConfig, demo as run_demo, is_demo
from nanovlm.training import TrainConfig

@pytest.fixture
def image(tmp_path):
    Image.new("RGB", (64, 64), "white").save(tmp_path / "image.png")
    return tmp_path / "image.png"

FIGURES = ["exact_match", "by_type", "blind_exact_match", "majority", "train_seconds", "parameters",
           "peak_memory_mb", "seed", "versions"]
FILES = ["loss.svg", "answers.png", "history.jsonl", "model.safetensors", "config.json", "tokenizer.json"]
NAMESPACES = ["http://www.w3.org", "http://purl.org", "http://creativecommons.org", "https://matplotlib.org"] # of SVG

def test_demo_writes_everything(demo):
    folder, printed = demo
    metrics = json.loads((folder / "metrics.json").read_text())
    for name in FIGURES: assert name in metrics, name
    for name in FILES: assert (folder / name).stat().st_size > 0
    assert metrics["count"] == 9673 and set(metrics["by_type"]) == {"yes/no", "color", "shape"}
    assert metrics["exact_match"] > 0.72 # trained for seconds: colours, but not yet shapes
    assert metrics["by_type"]["color"]["accuracy"] > 0.9
    assert metrics["blind_exact_match"] < 0.7 and metrics["other_image_exact_match"] < 0.7
    assert 0.37 < metrics["majority"] < 0.38 and 0.66 < metrics["question_only"] < 0.68
    assert "3,800 images to learn from" in metrics["data"]
    assert f"{metrics['exact_match']:.2%}" in printed and "nanovlm ask" in printed
    page = (folder / "index.html").read_text()
    for name in NAMESPACES: page = page.replace(name, "")
    assert "data:image/png;base64," in page and "<svg" in page and "http" not in page

def test_a_demo_takes_the_place_of_a_demo_alone(demo, tmp_path):
    assert is_demo(demo[0]) and not is_demo(tmp_path)
    trained = tmp_path / "model.safetensors"
    trained.write_text("trained for weeks")
    with pytest.raises(ValueError, match="holds a trained model.*overwrite"):
        run_demo(DemoConfig(str(tmp_path), steps=1))
    assert trained.read_text() == "trained for weeks"

def test_the_line_the_demo_ends_with_works(cli, demo):
    words = shlex.split(demo[1].strip().splitlines()[-1])
    result = cli(*words[1:])
    assert result.returncode == 0 and len(result.stdout.split()) == 1, result.stderr

def test_interactive_prompt(cli, image):
    result = cli("ask", "tiny", image, input="what color is the shape?\n<|im_end|>\nis there a circle?\n\n")
    assert result.returncode == 0, result.stderr
    answers = result.stdout.splitlines()[1:]
    assert "special token '<|im_end|>'" in result.stdout and len(answers) >= 3

def test_a_dialogue_goes_on(cli, image, trained):
    "Until it is too long, which is told and loses nothing."
    model, processor = trained
    asked = ["what shape is it?", "is it red?"]
    typed = [*asked, "why " * 600, asked[0], "\n"]
    result = cli("ask", "tiny", image, "--dialogue", input="\n".join(typed))
    first = ask(model, processor, image, asked[0])
    second = ask(model, processor, image, asked[1], history=[(asked[0], first)])
    assert result.returncode == 0, result.stderr
    said = result.stdout.replace("> ", "").splitlines()[1:]
    assert said[:2] == [first, second] and "2 earlier turns included" in said[2] and said[3]

def test_evaluate(cli, tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,question,answer\na.png,what color is the shape?,red\n")
    result = cli("evaluate", "tiny", "--data", tmp_path)
    assert result.returncode == 0, result.stderr
    assert "exact match" in result.stdout and "blank image" in result.stdout

def test_an_evaluation_asks_each_question_once(capsys, tmp_path):
    "Weights are for training: a question that comes again would narrow the interval."
    for n, name in enumerate("ab"):
        file = io.BytesIO()
        Image.new("RGB", (8, 8), (n, 0, 0)).save(file, "png")
        row = dict(images=[dict(bytes=file.getvalue(), path=None)],
                   texts=[dict(user="what?", assistant="x", source="s")])
        (tmp_path / name).mkdir()
        Dataset.from_list([row]).to_parquet(tmp_path / name / "test-0.parquet")
    main(["evaluate", "tiny", "--data", f"{tmp_path}:a=5,b=1"])
    assert "2 questions" in capsys.readouterr().out

@pytest.fixture
def colors(tmp_path):
    "Twelve plain images and a question about each; one file is broken."
    lines = ["file_name,question,answer"]
    for n, color in enumerate(["red", "green", "blue"] * 4):
        Image.new("RGB", (64, 64), color).save(tmp_path / f"{n}.png")
        lines.append(f"{n}.png,what colour?,{color}")
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    (tmp_path / "3.png").write_text("broken")
    return tmp_path

def test_train_on_a_folder(cli, colors):
    options = "--data", colors, "--valid-share", 0.2, "--no-progress"
    result = cli("train", *options, "--output-dir", colors / "run", "--steps", 30, "--batch-size", 4)
    assert result.returncode == 0, result.stderr
    assert "1 row" in result.stdout and "3.png" in result.stdout
    line = json.loads((colors / "run/history.jsonl").read_text().splitlines()[-1])
    assert line["tflops"] > 0 # the command measures the work of each step
    again = cli("train", *options, "--model", colors / "run", "--output-dir", colors / "more", "--steps", 5)
    assert again.returncode == 0, again.stderr
    assert cli("ask", colors / "more", colors / "0.png", "what colour?").stdout.strip()

MISTAKES = {
    "no command": ([], "train"),
    "an unknown flag": (["train", "--colour", "red"], "--colour"),
    "a value of the wrong type": (["train", "--steps", "many"], "'many'"),
    "a value that cannot work": (["train", "--steps", "0"], "nanovlm: steps is 0: it must be a whole number"),
    "a plan that cannot be": (["plan", "--rows", "0"], "nanovlm: rows is 0: it must be a whole number"),
    "a data folder that is not there": (["train", "--data", "/no/such/folder"], "/no/such/folder"),
    "a checkpoint that is not there": (["ask", "/no/such/model", "IMAGE", "what is it?"], "/no/such/model"),
    "a hub name without network": (["ask", "owner/model", "IMAGE", "what is it?"], "owner/model"),
    "an image that is not there": (["ask", "tiny", "/no/such.png", "what is it?"], "/no/such.png"),
    "a file that is no image": (["ask", "tiny", "TEXT", "what is it?"], "text.png"),
    "an empty question": (["ask", "tiny", "IMAGE", " "], "question is empty"),
    "a special token in the question": (["ask", "tiny", "IMAGE", "what is <|im_end|>?"], "'<|im_end|>'"),
    "more marks than images": (["ask", "tiny", "IMAGE", "is <image> like <image>?"], "for 1 image(s)"),
    "metrics for choices": ("evaluate tiny --choices --data FOLDER --metric vqa".split(), "'vqa'"),
    "choices of what": (["evaluate", "tiny", "--choices"], "--data"),
    "a rating that is none": (["train", "--min-rating", "9"], "min_rating is 9"),
    "a share that is none": (["train", "--valid-share", "1.5"], "1.5"),
    "a seed that is none": (["ask", "tiny", "IMAGE", "what is it?", "--seed", "-3"], "seed is -3"),
    "a temperature without an end": (["ask", "tiny", "IMAGE", "what is it?", "--temperature", "inf"], "inf"),
    "a folder for an image": (["ask", "tiny", "FOLDER", "what is it?"], "is a folder"),
    "an image for a checkpoint": (["ask", "IMAGE", "IMAGE", "what is it?"], "is a file"),
    "no image": (["ask", "tiny"], "IMAGE"),
    "a misspelt command": (["trian"], "trian"),
    "a number in letters": (["train", "--steps", "1e3"], "--steps: '1e3' is no whole number"),
    "sampling at temperature 0": (["ask", "tiny", "IMAGE", "what?", "--top-k", "5"], "--temperature"),
    "a factor for no towers": (["train", "--scale-factor", "4", "--output-dir", ""], "scale_factor is 4"),
    "a dialogue of choices": ("evaluate tiny --choices --data FOLDER --turns dialogue".split(), "'dialogue'"),
    "more squares than tokens": ("plan --squares 1000 --rows 1 --tokens 64".split(), "room for 1"),
    "half a square": (["plan", "--squares", "0.5"], "--squares: '0.5'"),
    "a long path": (["train", "--data", f"/no/such/{'folder/' * 30}"], f"/no/such/{'folder/' * 29}folder"),
    "no data to look at": (["data", "/no/such/folder"], "/no/such/folder"),
    "a split without a name": (["data", "easy-vqa", "--split", ""], "split is empty"),
    "a subset of what has none": (["data", "easy-vqa:shapes"], "no subsets: leave ':shapes' out"),
    "a rating of what has none": (["train", "--min-rating", "3"], "easy-vqa has no ratings"),
    "a path that cannot be": (["data", "/" + "such" * 99], "File name too long; check the path"),
    "nothing to look at": (["data", "easy-vqa", "--limit", "0"], "limit is 0"),
    "a prompt longer than the context": (["ask", "tiny", "IMAGE", "why? " * 600], "context is 512"),
    "a negative temperature": (["ask", "tiny", "IMAGE", "what is it?", "--temperature", "-1"], "temperature"),
    "a folder that is no checkpoint": (["evaluate", "FOLDER"], "config.json is missing"),
}

@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(capsys, image, mistake):
    words, complaint = MISTAKES[mistake]
    text = image.with_name("text.png")
    text.write_text("hello")
    stand_for = dict(IMAGE=image, TEXT=text, FOLDER=image.parent)
    with pytest.raises(SystemExit) as stop: main([str(stand_for.get(word, word)) for word in words])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and complaint in said
    assert len(said.strip().splitlines()) == 1, said

def test_a_mistake_in_a_process_of_its_own(cli):
    result = cli("train", "--steps", "0")
    assert result.returncode == 2 and result.stderr.startswith("nanovlm: steps is 0") and not result.stdout

def test_help_tells_every_flag(cli):
    text = cli("train", "--help").stdout
    for field in fields(TrainConfig): assert f"--{field.name.replace('_', '-')}" in text
