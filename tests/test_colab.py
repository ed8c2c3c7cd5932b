"A notebook alone in an empty folder, in an environment like Colab's, without nanovlm."
import os, shutil, subprocess, sys, sysconfig
import pytest
from conftest import REPO, run, run_notebook
from nanovlm.scenes import scene_model

OLD_WIDGETS = ["ipywidgets==7.7.1", "ipython_genutils", "widgetsnbextension==3.6.6",
               "jupyterlab-widgets==1.1.8"] # as Colab has them
GITHUB = "https://github.com/nanovlm/nanovlm"

def git(folder, *words):
    identity = "-c", "user.name=t", "-c", "user.email=t@t"
    run(["git", *identity, *words], cwd=folder)

@pytest.fixture(scope="module")
def colab(copy, tmp_path_factory):
    """A Python like Colab's, and an environment in which git takes a mirror of the repository for GitHub.

    Its packages are those of the tests, except nanovlm and ipywidgets; it has the module google.colab."""
    home = tmp_path_factory.mktemp("colab")
    run([sys.executable, "-m", "venv", "--without-pip", home / "env"])
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = home / f"env/lib/{version}/site-packages"
    (site / "google/colab").mkdir(parents=True)
    (site / "google/colab/__init__.py").touch()
    run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, *OLD_WIDGETS])
    packages = sysconfig.get_path("purelib") # as a path: addsitedir would find the installed nanovlm
    (site / "tests.pth").write_text(f"import sys; sys.path.append({packages!r}); import google.colab\n")
    mirror = home / "nanovlm"
    built = shutil.ignore_patterns("_docs", "_proc", "runs", "build")
    shutil.copytree(copy, mirror, ignore=built, symlinks=True)
    git(mirror, "init", "-q", "-b", "main")
    git(mirror, "add", "-A")
    git(mirror, "commit", "-qm", "all")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= dict(OMP_NUM_THREADS="2", PIP_NO_BUILD_ISOLATION="1", PIP_DISABLE_PIP_VERSION_CHECK="1")
    environment |= dict(GIT_CONFIG_COUNT="1", GIT_CONFIG_KEY_0=f"url.file://{mirror}.insteadOf",
                        GIT_CONFIG_VALUE_0=GITHUB)
    return home / "env/bin/python", environment

def test_nothing_is_there_at_first(colab, tmp_path):
    python, environment = colab
    code = ("import ipywidgets, sys; print(ipywidgets.__version__, 'google.colab' in sys.modules); "
            "import nanovlm")
    found = subprocess.run([python, "-c", code], cwd=tmp_path, env=environment, capture_output=True,
                           text=True)
    assert found.stdout.startswith("7.7.1 True") and "No module named 'nanovlm'" in found.stderr

@pytest.mark.parametrize("name", ["01_patches", "18_playground"])
def test_notebook_installs_what_it_needs_and_runs(colab, tmp_path, name):
    python, environment = colab
    shutil.copy(REPO / f"nbs/{name}.ipynb", tmp_path)
    if name == "18_playground": scene_model(str(tmp_path / "runs/scenes"), steps=20) # it would train for longer
    run_notebook(tmp_path / f"{name}.ipynb", environment, python)
    code = "import nanovlm; print(nanovlm.__file__)"
    package = run([python, "-c", code], cwd=tmp_path, env=environment)
    assert package.startswith(str(python.parent.parent)), f"not installed by the notebook: {package}"
