"The model in plain JavaScript: its numbers are Python's, and its page can be used."
import base64, functools, gzip, http.server, io, json, os, random, re, shutil, sys, threading
import pytest
import torch
from PIL import Image, ImageFilter
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from conftest import REPO, run
from test_browser import DESK, PHONE, chromium, new_page # the browser that all tests use
from nanovlm.data import easy_vqa
from nanovlm.hub import load
from nanovlm.images import load_image
from nanovlm.inside import attention_maps
from nanovlm.language import TextConfig
from nanovlm.model import VisionLanguageModel, VLMConfig
from nanovlm.processor import Processor, ask, tiny_model
from nanovlm.vision import VisionConfig

LIVE = REPO / "nbs/live"
HTML = """<!doctype html><html lang="en"><meta charset="utf-8"><title>live</title>
<link rel="icon" href="data:,"><meta name="viewport" content="width=device-width">
<main><div data-live="LIST"><p>A server is needed.</p></div></main>
<script type="module" src="live/live.js"></script>"""

def other_sizes(folder, rows):
    "Write a model of other sizes, with one key-value head, in bfloat16."
    vision = VisionConfig(hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=3,
                          image_size=72, patch_size=6)
    text = TextConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=2,
                      num_key_value_heads=1, head_dim=32, vocab_size=400, max_position_embeddings=80,
                      rope_theta=10_000.0, tie_word_embeddings=False)
    model, processor = tiny_model(rows, 0, VLMConfig(vision, text, scale_factor=3, image_token_id=5))
    model.bfloat16().save_pretrained(folder)
    processor.save_pretrained(folder)

@pytest.fixture(scope="module")
def served(rows, tmp_path_factory):
    "The folder nbs on this machine, with a model of other sizes beside it; its address, and other folders."
    other = tmp_path_factory.mktemp("other")
    other_sizes(other, rows)
    folders = dict(other=other)
    lists = {"/one": [["live/tiny", "the tiny model"]],
             "/two": [["other", "another one"], ["live/tiny", "the tiny model"]],
             "/none": [["nowhere", "not there"]]}
    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
        def translate_path(self, path):
            first, _, rest = path[1:].partition("?")[0].partition("/")
            return str(folders[first] / rest) if first in folders else super().translate_path(path)
        def do_GET(self):
            name = self.path.removesuffix(".json").removesuffix(".html")
            if name not in lists: return super().do_GET()
            kind, text = "text/html", HTML.replace("LIST", f"{name[1:]}.json")
            if self.path.endswith(".json"):
                entries = [dict(folder=folder, label=label) for folder, label in lists[name]]
                kind, text = "application/json", json.dumps(entries)
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(text.encode())
    handler = functools.partial(Handler, directory=str(REPO / "nbs"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", folders
    server.shutdown()

PAGES = "index.html", "18_playground.html" # on which it answers

@pytest.fixture(scope="module")
def site(copy, served, tmp_path_factory):
    "The address of a site of these two pages alone, which takes seconds to render."
    if shutil.which("quarto"): pytest.skip("Quarto's own build is GitHub's business")
    folder = tmp_path_factory.mktemp("site") / "copy"
    shutil.copytree(copy, folder, symlinks=True)
    for path in (folder / "nbs").rglob("*.ipynb"):
        if path.with_suffix(".html").name not in PAGES: path.unlink()
    run(["make", "-o", ".venv/dev", "site", f"BIN={os.path.dirname(sys.executable)}"], cwd=folder)
    served[1]["site"] = folder / "_docs"
    return served[0] + "site/"

@pytest.fixture(scope="module")
def window(chromium):
    "One window for all tests."
    page = new_page(chromium)
    yield page
    page.context.close()

@pytest.fixture
def bare(window, served):
    "A page on which the modules are imported, and nothing shown."
    window.goto(served[0] + "live/live.css")
    window.errors.clear()
    window.add_script_tag(content=BASE64)
    for name in "vlm", "images":
        window.evaluate("async name => Object.assign(window, await import(`/live/${name}.js`))", name)
    yield window
    assert not window.errors

@pytest.fixture
def app(window, served):
    "Open the app, and wait for its first answer."
    def open(name="one", size=DESK):
        window.set_viewport_size(size)
        window.errors.clear()
        window.goto(f"{served[0]}{name}.html")
        if name != "none": said(window, "red")
        return window
    return open

def said(page, answer):
    page.wait_for_function("text => document.querySelector('.live-answer')?.textContent == text",
                           arg=answer, timeout=10_000)

def rgba(image): # a picture's bytes as a canvas holds them, written as text
    return base64.b64encode(image.convert("RGBA").tobytes()).decode()

BASE64 = """
const as_bytes = text => Uint8ClampedArray.from(atob(text), letter => letter.charCodeAt(0))
const as_text = data => btoa(Array.from(data, byte => String.fromCharCode(byte)).join(""))
const floats = data => as_text(new Uint8Array(Float32Array.from(data).buffer))"""

def floats(text, *shape):
    "What the function of the same name wrote."
    data = bytearray(base64.b64decode(text))
    return torch.frombuffer(data, dtype=torch.float32).reshape(*shape)

OPEN = """async name => {
    const answer = await fetch(`/${name}/preprocessor_config.json`)
    Object.assign(window, {model: await load(`/${name}`), settings: await answer.json()})
    window.pixels_of = (data, side) => preprocess(new ImageData(as_bytes(data), side),
                                                  model.config.vision_config.image_size, settings)
}"""
ANSWER = """([data, side, question]) => {
    const pixels = pixels_of(data, side)
    const steps = [...model.stream(model.encode(pixels), question, 6)]
    const looks = steps.map(step => step.looks.map(layer => layer.map(head => [...head])))
    return {pixels: floats(pixels), prompt: model.prompt(question), looks,
            ids: steps.map(step => step.id), logits: floats(steps.flatMap(step => [...step.logits]))}
}"""

@pytest.mark.parametrize("name", ["live/tiny", "other"])
def test_same_numbers_as_python(bare, served, name):
    model, processor = load(REPO / "nanovlm/tiny" if name == "live/tiny" else served[1]["other"])
    model = model.float().eval()
    bare.evaluate(OPEN, name)
    for row in easy_vqa("test").select(range(20)):
        image, question = load_image(processor.squares(row["images"][0])[0][0]), row["texts"][0]["user"]
        batch = processor(image, question)
        prompt = batch["input_ids"][0].tolist()
        got = bare.evaluate(ANSWER, [rgba(image), image.width, question])
        assert got["prompt"] == prompt
        assert torch.allclose(floats(got["pixels"], -1), batch["pixel_values"].flatten(), atol=1e-6)
        image_tokens = (n for n, i in enumerate(got["ids"]) if i == processor.image_token_id)
        steps = next(image_tokens, len(got["ids"])) # in one pass, Python would want a picture for a later one
        inputs = batch | dict(input_ids=torch.tensor([prompt + got["ids"][:steps]]))
        asking = slice(len(prompt) - 1, len(prompt) + steps)
        with torch.no_grad(): logits = model(**inputs)[0, asking]
        assert logits.argmax(-1).tolist()[:len(got["ids"])] == got["ids"][:steps + 1]
        compared = floats(got["logits"], len(got["ids"]), -1)[:steps + 1]
        assert (compared - logits[:len(compared)]).abs().max() <= 1e-4
        maps = attention_maps(model, inputs, asking)[:, 0] # (layers, nh, tokens, T)
        for n, looks in enumerate(got["looks"][:steps + 1]):
            looks = torch.tensor(looks)
            assert (looks - maps[:, :, n, :looks.shape[-1]]).abs().max() <= 1e-5

def test_same_answers_as_python(bare, trained):
    model, processor = trained
    asked = [] # 300 questions about 100 images; the vectors of an image serve all questions about it
    for row in easy_vqa("test").select(range(100)):
        image = load_image(processor.squares(row["images"][0])[0][0])
        asked.append((image, [text["user"] for text in row["texts"][:3]]))
    bare.evaluate(OPEN, "live/tiny")
    bare.evaluate("""asked => { window.answers = new Promise(done => setTimeout(() => done(
        asked.flatMap(([data, questions]) => {
            const images = model.encode(pixels_of(data, 64))
            const ids = question => [...model.stream(images, question)].map(step => step.id)
            return questions.map(question => model.tokenizer.decode(ids(question)).trim())
        })))) }""", [(rgba(image), questions) for image, questions in asked]) # Python answers meanwhile
    expected = [ask(model, processor, image, q) for image, questions in asked for q in questions]
    assert len(expected) == 300 and len({*expected}) > 10
    assert bare.evaluate("answers") == expected

TEXTS = ["", " ", "what color is the shape?", "  What  COLOR\tis\n\nit ?  ", "no", "naïve café — ½ ≠ 0.5",
         "日本語の質問", "👩‍🚀 and 🇫🇷", "a" * 300, "user: <image> <|im_end|>", "<image>", "<row_1_col_1>",
         "<end_of_utterance>\nAssistant: red", "\u00a0nbsp\u2028line\ufeff", "don't we'll 12345 3.10",
         "\0\x7f", "the the the shape shape"]

def spoken(kind):
    "A tokenizer whose words are cut as GPT-2's, or SmolLM2's."
    tokenizer = Tokenizer(models.BPE())
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = letters if kind == "gpt2" else pre_tokenizers.Sequence([digits, letters])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<image>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    tokenizer.add_tokens(["\n\n"]) # not special: it counts in what users write, too
    return tokenizer

@pytest.mark.parametrize("kind", ["tiny", "gpt2", "smollm"])
def test_same_tokens_as_python(bare, trained, kind):
    tokenizer = trained[1].tokenizer if kind == "tiny" else spoken(kind)
    plain = Tokenizer.from_str(tokenizer.to_str())
    plain.encode_special_tokens = True
    bare.evaluate("text => { window.tokenizer = new PromptTokenizer(JSON.parse(text)) }", tokenizer.to_str())
    for text in TEXTS:
        for special, python in (False, plain), (True, tokenizer):
            ids = python.encode(text, add_special_tokens=False).ids
            got = bare.evaluate("text => tokenizer.encode(...text)", [text, special])
            assert got == ids, text
        if "\n\n" in text: continue # an added token is no bytes
        assert bare.evaluate("ids => tokenizer.decode(ids)", plain.encode(text).ids) == text

def photograph(width, height):
    "Colours in soft and hard transitions."
    noise = random.Random(0).randbytes(48 * 32 * 3)
    return Image.frombytes("RGB", (48, 32), noise).resize((width, height), Image.Resampling.BILINEAR)

SIZES = [(64, 64), (300, 200), (200, 300), (1, 1), (1, 500), (500, 1), (3, 2), (64, 65),
         (63, 400), (30, 900), (900, 30), (7, 133)]

def test_same_pixels_as_pillow(bare):
    for width, height in SIZES:
        noise = random.Random(width).randbytes(width * height * 3)
        image = Image.frombytes("RGB", (width, height), noise)
        for to, resample in ((64, 64), 3), ((50, 40), 3), ((64, 64), 2), ((64, 64), 1):
            got = bare.evaluate("""([data, width, size, resample]) =>
                as_text(resize(new ImageData(as_bytes(data), width), ...size, resample).data)""",
                [rgba(image), width, to, resample])
            assert got == rgba(image.resize(to, resample)), (width, height, to, resample)

READ = """async () => {
    const file = document.querySelector("input").files[0], start = performance.now()
    const image = await open_image(file), opened = performance.now()
    const square = resize(image, 64, 64)
    window.ms = [opened - start, performance.now() - opened]
    return as_text(square.data)
}"""

@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_a_large_photograph_is_read_as_by_python(bare, kind):
    file = io.BytesIO()
    photograph(3000, 2000).save(file, kind, **dict(compress_level=1) if kind == "png" else dict(quality=90))
    bare.evaluate("document.body.innerHTML = '<input type=file>'")
    bare.set_input_files("input", dict(name=f"p.{kind}", mimeType=f"image/{kind}", buffer=file.getvalue()))
    got = bare.evaluate(READ)
    print(kind, "decoded and resized in ms:", bare.evaluate("ms"))
    assert got == rgba(load_image(file.getvalue()).resize((64, 64), 3))

def test_transparent_and_turned(bare):
    clear = Image.frombytes("RGBA", (90, 70), random.Random(0).randbytes(90 * 70 * 4))
    turned = photograph(90, 70)
    exif = Image.Exif()
    exif[0x0112] = 6 # to be turned by a quarter
    bare.evaluate("document.body.innerHTML = '<input type=file>'")
    for image, levels in (clear, 2), (turned, 0): # where glass is laid on white, rounding differs
        file = io.BytesIO()
        image.save(file, "png", **dict(exif=exif) if image is turned else {})
        bare.set_input_files("input", dict(name="p.png", mimeType="image/png", buffer=file.getvalue()))
        expected = load_image(file.getvalue()).resize((64, 64), 3).convert("RGBA").tobytes()
        got = base64.b64decode(bare.evaluate(READ))
        assert max(abs(a - b) for a, b in zip(got, expected)) <= levels

def stamp(page, color, shape, x, y):
    "Choose a colour and a shape, and click on the board."
    for value in (color, shape): page.locator(f"[value={value}]").check()
    page.locator(".live-frame canvas").first.click(position=dict(x=x, y=y))

def test_draw_and_ask_by_mouse(app):
    page = app()
    stamp(page, "blue", "triangle", 90, 150)
    said(page, "blue")
    page.get_by_label("choose a question").select_option("what shape is in the image?")
    said(page, "triangle")
    page.wait_for_function("document.querySelector('.live-note').textContent.includes('were kept')")
    token = page.locator(".live-tokens button")
    assert token.count() == 2
    token.first.hover()
    assert "of its attention" in page.inner_text(".live-seen")
    before = page.inner_text(".live-seen")
    page.get_by_label("head", exact=True).select_option("1")
    assert page.inner_text(".live-seen") != before
    page.get_by_role("button", name="ask").click() # of the same picture: the shade stays
    page.wait_for_function("document.querySelector('[aria-pressed=true]')")
    assert shaded(page)
    stamp(page, "red", "circle", 150, 90)
    said(page, "circle")
    page.get_by_label("choose a question").select_option("what color is the shape?")
    said(page, "red")
    page.get_by_role("button", name="clear").click()
    page.locator("[value=pen]").check()
    page.locator("[value=green]").check()
    page.get_by_label("question", exact=True).fill("what color is the shape?")
    page.mouse.move(*middle(page, 80, 60))
    page.mouse.down()
    for x, y in (140, 60), (140, 130), (80, 130), (80, 60), (110, 90), (130, 120):
        page.mouse.move(*middle(page, x, y), steps=6)
    page.mouse.up()
    said(page, "green")
    assert not page.errors

def shaded(page):
    "Tell whether a token's attention lies over the picture."
    return page.evaluate("""() => {
        const {data} = document.querySelectorAll("canvas")[1].getContext("2d").getImageData(0, 0, 256, 256)
        return data.some(byte => byte > 0)
    }""")

def middle(page, x, y):
    box = page.locator(".live-frame").bounding_box()
    return box["x"] + x, box["y"] + y

def test_draw_and_ask_by_keyboard(app):
    page = app()
    def press(*keys):
        for key in keys: page.keyboard.press(key)
    press("Tab", *["ArrowDown"] * 3, "ArrowRight", "Tab", "ArrowRight") # the board; shape: rectangle
    assert page.evaluate("document.activeElement.value") == "rectangle"
    press("Tab", *["ArrowLeft"] * 2) # colour: teal
    assert page.evaluate("document.activeElement.value") == "teal"
    press("Shift+Tab", "Shift+Tab", "Enter")
    said(page, "teal")
    press("Tab", "ArrowLeft", "Tab", *["ArrowRight"] * 2, "Shift+Tab", "Shift+Tab", "Enter") # a red circle
    said(page, "red")
    for _ in range(8):
        press("Tab")
        if page.evaluate("document.activeElement.type") == "text": break
    press("Control+a")
    page.keyboard.type("what shape is in the image?")
    press("Enter")
    said(page, "circle")
    for _ in range(4):
        press("Tab")
        if page.evaluate("document.activeElement.closest('.live-tokens') !== null"): break
    assert "of its attention" in page.inner_text(".live-seen")
    assert not page.errors

def test_a_picture_from_a_file(app, trained, rows):
    page, (model, processor) = app(), trained
    image = processor.squares(rows[3]["images"][0])[0][0]
    file = io.BytesIO()
    image.resize((600, 400), Image.Resampling.BICUBIC).save(file, "png")
    page.set_input_files("[type=file]", dict(name="p.png", mimeType="image/png", buffer=file.getvalue()))
    said(page, ask(model, processor, file.getvalue(), "what color is the shape?"))
    page.locator(".live-tokens button").first.hover()
    assert shaded(page)
    page.get_by_role("button", name="clear").click()
    assert not shaded(page)
    page.wait_for_function("document.querySelector('.live-note').textContent.includes('included')")
    page.evaluate("""text => {
        const transfer = new DataTransfer()
        const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0))
        transfer.items.add(new File([bytes], "dropped.png"))
        const dropped = new DragEvent("drop", {dataTransfer: transfer, bubbles: true})
        document.querySelector("canvas").dispatchEvent(dropped)
    }""", base64.b64encode(file.getvalue()).decode())
    said(page, ask(model, processor, file.getvalue(), "what color is the shape?"))

def test_what_goes_wrong_is_said(app):
    page = app()
    def error(): return page.inner_text(".live-error")
    page.set_input_files("[type=file]", dict(name="a.txt", mimeType="text/plain", buffer=b"no picture"))
    page.wait_for_function("document.querySelector('.live-error').textContent")
    assert "a.txt is not a picture" in error()
    question = page.get_by_label("question", exact=True)
    wrong = {"  ": "is empty", "a" * 1001: "1001 letters", "ÿ " * 400: "too long", "<image> <|im_end|>": ""}
    for text, message in wrong.items():
        question.fill(text)
        question.press("Enter")
        page.wait_for_timeout(50)
        assert message in error() if message else not error()
    assert page.inner_text(".live-answer") # the last question was only strange
    assert not page.errors
    page = app("none")
    page.wait_for_function("document.querySelector('.live-error')?.textContent.includes('404')")
    assert "open the page again" in error()

def test_checkpoints_of_another_shape(app):
    page = app()
    assert page.locator(".live-training").is_hidden()
    page = app("two")
    slider = page.locator(".live-training input")
    slider.focus()
    page.keyboard.press("ArrowLeft")
    page.wait_for_function("document.querySelector('.live-answer').textContent != 'red'")
    assert page.inner_text(".live-training output").strip() == "another one"
    assert page.locator("select[aria-label=layer] option").count() == 3
    page.keyboard.press("ArrowRight")
    said(page, "red")
    assert not page.errors

CHECKPOINTS = json.loads((LIVE / "checkpoints.json").read_text())

def weights_file(entry): # as a browser joins addresses, which does not know of links
    return os.path.normpath(LIVE / entry["folder"] / entry["weights"])

def test_checkpoints_lead_to_the_tiny_model():
    tiny = load_file(LIVE / "tiny/model.safetensors")
    distances = []
    for entry in CHECKPOINTS:
        weights = load_file(weights_file(entry))
        assert {n: t.shape for n, t in weights.items()} == {n: t.shape for n, t in tiny.items()}
        distances.append(sum((tiny[name] - weights[name]).square().sum().item() for name in tiny))
    assert distances[-1] == 0 and distances == sorted(distances, reverse=True)

def test_slider_shows_what_is_learnt_when(window, site, tmp_path):
    page = window
    page.set_viewport_size(DESK)
    page.errors.clear()
    page.goto(site + PAGES[0])
    page.locator("[data-live]").scroll_into_view_if_needed()
    said(page, "red")
    drawn = page.evaluate("document.querySelector('canvas').toDataURL().split(',')[1]")
    answers = []
    for n, entry in enumerate(CHECKPOINTS):
        shutil.copytree(LIVE / entry["folder"], tmp_path, dirs_exist_ok=True)
        shutil.copy(weights_file(entry), tmp_path / "model.safetensors")
        model, processor = load(tmp_path)
        answer = ask(model.float(), processor, base64.b64decode(drawn), "what color is the shape?")
        slider = page.locator(".live-training input")
        slider.fill(str(n))
        said(page, answer.strip() or "(nothing)")
        assert slider.get_attribute("aria-valuetext") == entry["label"]
        answers.append(answer)
    assert answers[0] != "red" and answers[-1] == "red"
    assert not page.errors

@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_answers_on_the_site(window, site, name, scheme):
    page, asked_for = window, []
    page.set_viewport_size(DESK)
    page.emulate_media(color_scheme=scheme)
    page.errors.clear()
    page.on("request", note := lambda request: asked_for.append(request.url))
    page.goto(site + name)
    page.locator("[data-live]").scroll_into_view_if_needed()
    said(page, "red")
    page.locator(".live-tokens button").first.hover()
    assert shaded(page)
    page.set_viewport_size(PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    for part in ".live-answer", ".live-form input", ".live-tokens button": # can be read
        text, ground = page.evaluate(COLOURS, part)
        assert abs(brightness(text) - brightness(ground)) > 150, part
    page.remove_listener("request", note)
    page.emulate_media(color_scheme="light")
    elsewhere = [url for url in asked_for if not url.startswith((site, "data:"))]
    assert all(map(AS_ON_EVERY_PAGE.search, elsewhere))
    assert len([url for url in asked_for if "/live/" in url and "safetensors" in url]) == 1
    assert not page.errors

def test_page_to_send_to_a_friend(window, served):
    page = window
    page.errors.clear()
    page.set_viewport_size(PHONE)
    page.goto(served[0] + "live/")
    said(page, "red")
    assert page.locator(".live-training").is_hidden()
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    assert not page.errors

AS_ON_EVERY_PAGE = re.compile("/katex|fonts.googleapis|colab-badge")
COLOURS = """part => {
    let element = document.querySelector(part)
    const text = getComputedStyle(element).color
    const ground = element => getComputedStyle(element).backgroundColor
    while (ground(element) == "rgba(0, 0, 0, 0)") element = element.parentElement
    return [text, ground(element)]
}"""

def brightness(color): return sum(map(int, re.findall(r"\d+", color)[:3])) / 3

def test_fits_a_phone(app):
    page = app("two", PHONE)
    page.locator(".live-tokens button").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    small = page.evaluate("""[...document.querySelectorAll(".live-choice span, button, select")]
        .filter(e => e.offsetParent && e.getBoundingClientRect().height < 24).map(e => e.outerHTML)""")
    assert not small, "too small for a finger"

def test_can_be_read_and_is_light():
    source = (LIVE / "vlm.js").read_text()
    assert len(source.splitlines()) <= 200
    assert max(map(len, source.splitlines())) <= 110
    assert len(gzip.compress(source.encode())) <= 6000
    names = "config.json", "tokenizer.json", "preprocessor_config.json", "model.safetensors"
    files = [file for file in LIVE.glob("*.*") if file.is_file()] + [LIVE / "tiny" / name for name in names]
    assert sum(len(gzip.compress(file.read_bytes())) for file in files) <= 1.3e6
    assert max(file.stat().st_size for file in LIVE.glob("training/*")) <= 600_000

def test_a_page_opened_as_a_file_says_why_nothing_happens(chromium, tmp_path):
    shutil.copytree(LIVE, tmp_path / "live")
    (tmp_path / "page.html").write_text(HTML)
    page = chromium.new_page()
    page.goto((tmp_path / "page.html").as_uri())
    page.wait_for_timeout(200)
    assert "A server is needed" in page.inner_text("main")
    page.close()
