"The checks against transformers once more, with its oldest version, which `make .venv/dev` lays beside it."
import os, subprocess, sys
from conftest import REPO

# These ask nothing of transformers, or what smaller ones ask, too.
LEFT_OUT = ("real or no_second_copy or stays_half or killed or (SmolVLM and (three or four)) or 360M "
            "or model_of_the_package")

def test_transformers_4():
    overlay = REPO / ".venv/transformers-4"
    assert overlay.is_dir(), f"{overlay} is missing: make .venv/dev"
    def python(*args):
        environment = os.environ | {"PYTHONPATH": str(overlay)}
        return subprocess.run([sys.executable, *args], cwd=REPO, env=environment, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, timeout=900)
    code = "import torch, transformers, datasets; print(transformers.__version__, torch.__file__)"
    version = python("-c", code).stdout
    assert version.startswith("4.57.") and str(overlay) not in version, version # the overlay brings no torch
    files = [f"tests/test_{name}.py" for name in ("parity", "shapes", "checkpoint", "tiles", "hub")]
    result = python("-m", "pytest", "-q", "--tb=short", "-k", f"not ({LEFT_OUT})", *files)
    assert result.returncode == 0, result.stdout[-8000:]
