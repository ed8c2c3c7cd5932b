"Every page of the site, and the playground in JupyterLab, in a real browser."
import functools, html, http.server, json, os, re, shutil, signal, socket, subprocess, sys, threading, time
import urllib.request
from importlib.metadata import distribution
from pathlib import Path
import pytest
from playwright.sync_api import sync_playwright
from conftest import NOTEBOOKS, REPO
from nanovlm.scenes import scene_model

PAGES = [p.relative_to(REPO / "nbs").with_suffix(".html").as_posix() for p in NOTEBOOKS]
DESK, PHONE = dict(width=1280, height=900), dict(width=375, height=800) # sizes of the window
BADGE = '<svg xmlns="http://www.w3.org/2000/svg" width="117" height="20"/>'
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update"]

@pytest.fixture(scope="module")
def chromium():
    names = "chromium", "chromium-browser", "google-chrome"
    path = next(filter(None, map(shutil.which, names)), None)
    assert path, "no Chromium or Chrome on the PATH: install one (apt-get install chromium)"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()

@pytest.fixture(scope="module")
def address(site):
    "The site, served on this machine."
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    handler = functools.partial(Quiet, directory=str(site))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()

ELSEWHERE = re.compile(r"^(?!http://127\.0\.0\.1|data:|blob:)") # the browser itself fetches the rest

def offline(route):
    """What pages load from elsewhere: KaTeX, the themes' fonts, and Colab's badge. Anything else fails.

    KaTeX comes from a PyPI package here, without its style."""
    url = route.request.url
    if "/katex" in url:
        name = url.rsplit("/", 1)[1]
        file = distribution("sphinxcontrib-katex").locate_file(f"sphinxcontrib/{name}")
        if Path(file).exists(): return route.fulfill(path=file)
        return route.fulfill(body="", content_type="text/css")
    if "fonts.googleapis" in url: return route.fulfill(body="", content_type="text/css") # a system font instead
    if "colab-badge" in url: return route.fulfill(body=BADGE, content_type="image/svg+xml")
    route.abort()

def new_page(chromium):
    "A page in a browser window of its own, which keeps all that went wrong on it."
    page = chromium.new_context(viewport=DESK).new_page()
    page.errors = errors = []
    page.route(ELSEWHERE, offline)
    page.on("console", lambda m: m.type == "error" and errors.append(m.text))
    page.on("pageerror", lambda e: errors.append(str(e)))
    page.on("requestfailed", lambda r: errors.append(f"{r.url}: {r.failure}"))
    page.on("response", lambda r: r.status >= 400 and errors.append(f"{r.url}: {r.status}"))
    return page

@pytest.fixture
def page(chromium):
    page = new_page(chromium)
    yield page
    page.context.close()

@pytest.fixture(scope="module")
def reader(chromium):
    "One window for all pages: a new one takes as long as a page."
    page = new_page(chromium)
    yield page
    page.context.close()

def markdown(name):
    notebook = json.loads((REPO / "nbs" / name).with_suffix(".ipynb").read_text())
    return "\n".join("".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "markdown")

def has_math(text):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S) # without code
    return re.search(r"(?<![\\$`\w])\$[^$\s][^$\n]*\$|\$\$", text)

IDLE = "new Promise(done => requestAnimationFrame(() => requestIdleCallback(done, {timeout: 5000})))"
IMAGES = "all => all.map(i => [i.naturalWidth, i.alt, i.src.slice(0, 60)])"
TEXT = """() => {
    const main = document.querySelector("main").cloneNode(true)
    main.querySelectorAll("pre, code").forEach(e => e.remove())
    return main.textContent
}"""
TOO_WIDE = """[...document.querySelectorAll("main *")]
    .filter(e => e.getBoundingClientRect().right > 376)
    .map(e => e.tagName + " " + e.className + " " + e.textContent.slice(0, 60)).slice(0, 5)"""

@pytest.mark.parametrize("name", PAGES)
def test_page_is_whole_and_fits_a_phone(reader, address, site, name):
    page = reader
    page.errors.clear()
    page.set_viewport_size(DESK)
    page.goto(address + name, wait_until="load")
    page.evaluate(IDLE)
    assert not page.errors
    assert (site / name).stat().st_size <= 1.5e6, "the page is larger than 1.5 MB"
    images = page.eval_on_selector_all("main img", IMAGES)
    assert all(width > 0 and alt.strip() for width, alt, _ in images), images
    code = page.locator("main pre.sourceCode").count()
    coloured = page.locator("main pre.sourceCode code span[class]").count()
    assert not code or coloured > code, "code is not highlighted"
    if has_math(markdown(name)):
        assert page.locator("main .katex").count(), "math is not rendered"
        assert not page.locator(".katex-error").count(), "math has an error"
    text = page.evaluate(TEXT)
    for raw in ("<details>", "```", ":::"): assert raw not in text, f"{raw} was not rendered"
    if not name.startswith("reference/") and name != "index.html":
        badge = page.locator(f'main a[href$="/nbs/{name[:-5]}.ipynb"] img[src*="colab-badge"]')
        assert badge.count() == 1, "no badge to open it in Colab"
    page.set_viewport_size(PHONE)
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= 375, f"{width} pixels wide: {page.evaluate(TOO_WIDE)}"
    assert not page.errors, "errors that came late"

MOVED = {"08_pixel_shuffle": "08_connector", "09_vlm": "09_model", "17_sharing": "17_hub"}

@pytest.mark.parametrize("old", MOVED)
def test_an_old_address_leads_to_the_new_one(page, address, old):
    page.goto(f"{address}{old}.html")
    page.wait_for_url(f"**/{MOVED[old]}.html")

def test_links_lead_somewhere(site):
    text = {p.relative_to(site).as_posix(): p.read_text() for p in site.rglob("*.html")}
    ids = {name: set(map(html.unescape, re.findall(r'\bid="([^"]*)"', t))) | {""} for name, t in text.items()}
    broken = set()
    for name, t in text.items():
        for target in map(html.unescape, re.findall(r'<a\b[^>]*?\bhref="([^"]*)"', t)):
            if re.match(r"[a-z]+:", target): continue
            path, _, anchor = target.partition("#")
            file = (site / name).parent.joinpath(path).resolve() if path else site / name
            if file.is_dir(): file = file / "index.html"
            key = file.relative_to(site.resolve()).as_posix() if file.exists() else None
            if key is None or key in ids and anchor not in ids[key]: broken.add((name, target))
    assert not broken

def test_search_finds_rope(page, address):
    page.goto(address + "index.html", wait_until="load")
    box = page.locator("#quarto-search input, #quarto-search button").first
    box.click()
    page.keyboard.type("RoPE")
    option = page.locator("[role=option]", has_text="Rotary")
    page.get_by_role("link", name=re.compile("Rotary")).or_(option).first.wait_for(timeout=10_000)
    assert not page.errors

@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(page, address, scheme):
    page.emulate_media(color_scheme=scheme)
    page.goto(address + "04_rope.html", wait_until="load")
    def brightness():
        color = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(map(int, re.findall(r"\d+", color)[:3])) / 3
    before = brightness()
    assert (before > 128) == (scheme == "light")
    page.locator(".quarto-color-scheme-toggle").first.click()
    page.wait_for_timeout(300)
    assert (brightness() > 128) != (before > 128), "the switch changes nothing"

def test_landing_page_shows_a_card_when_shared(page, address):
    page.goto(address + "index.html")
    image = page.get_attribute('meta[property="og:image"]', "content")
    assert image and page.get_attribute('meta[name="twitter:card"]', "content") == "summary_large_image"
    assert (REPO / "nbs" / image[image.index("images/"):]).exists()

def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]

def is_up(url):
    try: urllib.request.urlopen(url, timeout=5)
    except OSError: return False
    return True

@pytest.fixture(scope="module")
def lab(copy, tmp_path_factory):
    "`make lab`: its address, and the page that it opened in a browser (here a script that keeps it)."
    home, port = tmp_path_factory.mktemp("jupyter"), free_port()
    settings = {"ServerApp": dict(port=port, port_retries=0, allow_root=True),
                "IdentityProvider": dict(token=""),
                "LabApp": dict(news_url=None, check_for_updates_class="jupyterlab.NeverCheckForUpdate")}
    (home / "jupyter_server_config.json").write_text(json.dumps(settings))
    keep = home / "keep.sh"
    keep.write_text(f'#!/bin/sh\ncp "${{1#file://}}" {home}/opened.html\n')
    keep.chmod(0o755)
    folders = "CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR"
    environment = os.environ | {f"JUPYTER_{name}": str(home) for name in folders}
    environment |= {f"JUPYTERLAB_{name}_DIR": str(home) for name in ("SETTINGS", "WORKSPACES")}
    environment |= dict(PYTHONPATH=str(copy), BROWSER=f"{keep} %s")
    command = ["make", "-o", ".venv/course", "lab", f"BIN={os.path.dirname(sys.executable)}"]
    log = home / "log"
    process = subprocess.Popen(command, cwd=copy, env=environment, stdout=log.open("w"),
                               stderr=subprocess.STDOUT, start_new_session=True)
    try: # while it starts, a model learns for a moment; the notebook would train one for longer
        scene_model(str(copy / "nbs/runs/scenes"), steps=30)
        for _ in range(240):
            assert process.poll() is None, log.read_text()
            if is_up(f"http://127.0.0.1:{port}/api"): break
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/lab/tree/", home / "opened.html"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()

def test_make_lab_opens_the_landing_page(lab):
    _, opened = lab
    for _ in range(60):
        if opened.exists() and opened.read_text(): break
        time.sleep(0.5)
    assert "/lab/tree/index.ipynb" in opened.read_text()

def test_playground_in_jupyterlab(page, lab, tmp_path):
    page.goto(lab[0] + "18_playground.ipynb", wait_until="load")
    page.get_by_text(re.compile(r"\| Idle")).first.wait_for(timeout=120_000)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.locator(".lm-Menu-itemLabel", has_text=re.compile("^Run All( Cells)?$")).click()
    send = page.get_by_role("button", name="ask", exact=True)
    app = page.locator(".jp-OutputArea-output .widget-vbox").filter(has=send).last
    question = app.locator(".widget-text input")
    question.wait_for(timeout=180_000)
    page.get_by_text(re.compile(r"\| Idle")).first.wait_for(timeout=180_000)
    question.scroll_into_view_if_needed()
    question.fill("what color is the square?")
    app.get_by_role("button", name="ask", exact=True).click()
    app.locator("p[aria-live]").wait_for(timeout=60_000)
    overlay = app.locator("img.widget-image").nth(1)
    overlay.wait_for(timeout=60_000)
    def until(condition, what): # asked again and again, since the app may replace its pictures
        for _ in range(300):
            if condition(): return
            page.wait_for_timeout(200)
        raise AssertionError(what)
    until(lambda: overlay.evaluate("image => image.naturalWidth") > 0, "the overlay does not appear")
    before = overlay.get_attribute("src")
    app.locator(".widget-toggle-buttons button").nth(1).click() # another token of the answer
    until(lambda: overlay.get_attribute("src") != before, "another token has the same overlay")
    question.fill("")
    question.press("Enter") # the keyboard asks, too; and what goes wrong is said in the app
    app.locator("p[role=alert]").wait_for(timeout=60_000)
    assert "the question is empty" in app.inner_text()
    page.screenshot(path=os.environ.get("NANOVLM_SCREENSHOT", str(tmp_path / "playground.png")))
