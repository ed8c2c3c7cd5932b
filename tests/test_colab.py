"A notebook alone in an empty folder, in an environment like Colab's: no nanovlm, the google.colab module, an older ipywidgets."
import os, shutil, subprocess, sys, sysconfig
import pytest
from conftest import REPO, run, run_notebook

COLAB_WIDGETS = ["ipywidgets==7.7.1", "ipython_genutils", "widgetsnbextension==3.6.6", "jupyterlab-widgets==1.1.8"]

@pytest.fixture(scope="module")
def colab(copy, tmp_path_factory):
    "A Python whose packages are those of the tests, but for nanovlm and ipywidgets; and a mirror of the repository that git takes for GitHub."
    home = tmp_path_factory.mktemp("colab")
    run([sys.executable, "-m", "venv", "--without-pip", home / "env"])
    site = home / f"env/lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    (site / "google/colab").mkdir(parents=True)
    (site / "google/colab/__init__.py").touch()
    run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, *COLAB_WIDGETS])
    (site / "tests.pth").write_text(f"import sys; sys.path.append({sysconfig.get_path('purelib')!r}); import google.colab\n") # not addsitedir: that would find the installed nanovlm
    mirror = home / "nanovlm"
    shutil.copytree(copy, mirror, ignore=shutil.ignore_patterns("_docs", "_proc", "runs", "build"), symlinks=True)
    for command in (["init", "-q", "-b", "main"], ["add", "-A"], ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "all"]): run(["git", *command], cwd=mirror)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | dict(OMP_NUM_THREADS="2", PIP_NO_BUILD_ISOLATION="1", PIP_DISABLE_PIP_VERSION_CHECK="1",
        GIT_CONFIG_COUNT="1", GIT_CONFIG_KEY_0=f"url.file://{mirror}.insteadOf", GIT_CONFIG_VALUE_0="https://github.com/nanovlm/nanovlm")
    return home / "env/bin/python", environment

def test_nothing_is_there_at_first(colab, tmp_path):
    python, environment = colab
    said = subprocess.run([python, "-c", "import ipywidgets, sys; print(ipywidgets.__version__, 'google.colab' in sys.modules); import nanovlm"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert said.stdout.startswith("7.7.1 True") and "No module named 'nanovlm'" in said.stderr

@pytest.mark.parametrize("name", ["01_patches", "18_playground"])
def test_notebook_installs_what_it_needs_and_runs(colab, tmp_path, name):
    from nanovlm.scenes import scene_model
    python, environment = colab
    shutil.copy(REPO / f"nbs/{name}.ipynb", tmp_path)
    if name == "18_playground": scene_model(str(tmp_path / "runs/scenes"), steps=20) # the notebook would train it for longer
    run_notebook(tmp_path / f"{name}.ipynb", environment, python)
    where = run([python, "-c", "import nanovlm; print(nanovlm.__file__)"], cwd=tmp_path, env=environment)
    assert where.startswith(str(python.parent.parent)), f"not installed by the notebook: {where}"
