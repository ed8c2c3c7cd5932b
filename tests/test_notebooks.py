"Notebooks are the source: they export the package, are clean, and run from the built wheel alone."
import os, shutil, subprocess, sys, zipfile
from concurrent.futures import ThreadPoolExecutor
import pytest
from conftest import NOTEBOOKS, READ, run, run_notebook, tool

def test_export_leaves_no_difference(copy):
    before = {p.name: p.read_text() for p in (copy / "nanovlm").glob("*.py")}
    run([tool("nbdev_export")], cwd=copy)
    after = {p.name: p.read_text() for p in (copy / "nanovlm").glob("*.py")}
    different = [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
    assert not different, f"{different} are not what the notebooks export: run nbdev_export"

def test_clean_leaves_no_difference(copy):
    before = {p: p.read_text() for p in (copy / "nbs").rglob("*.ipynb")}
    run([tool("nbdev_clean")], cwd=copy)
    unclean = [path.name for path, text in before.items() if path.read_text() != text]
    assert not unclean, f"{unclean} are not clean: run nbdev_clean"

@pytest.fixture(scope="module")
def wheel(copy, tmp_path_factory):
    "The package, built as a wheel and unpacked into an empty folder."
    out = tmp_path_factory.mktemp("wheel")
    run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", out, copy])
    file, = out.glob("*.whl")
    zipfile.ZipFile(file).extractall(out / "site")
    return out / "site"

NEEDS = ["torch>=2.9", "transformers>=4.57", "datasets", "pillow", "matplotlib", "tqdm", "ipywidgets", "tyro"]

def test_wheel_asks_for_what_settings_name(wheel):
    metadata, = wheel.glob("*.dist-info/METADATA")
    for need in NEEDS: assert f"Requires-Dist: {need}" in metadata.read_text(), need

def test_wheel_holds_the_tiny_model(wheel):
    for name in ("config.json", "model.safetensors", "tokenizer.json"): assert (wheel / "nanovlm/tiny" / name).exists()
