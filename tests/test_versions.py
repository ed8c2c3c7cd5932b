"The checks against transformers once more, with the oldest version allowed; `make .venv/dev` lays it beside the newer one."
import os, subprocess, sys
from conftest import REPO

def test_transformers_4(demo):
    overlay = REPO / ".venv/transformers-4"
    assert overlay.is_dir(), f"{overlay} is missing: make .venv/dev"
    def python(*args): return subprocess.run([sys.executable, *args], cwd=REPO, env=os.environ | {"PYTHONPATH": str(overlay), "NANOVLM_DEMO": str(demo[0])}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900)
    version = python("-c", "import torch, transformers, datasets; print(transformers.__version__, torch.__file__)").stdout
    assert version.startswith("4.57.") and str(overlay) not in version, version # the overlay brings no torch of its own
    left_out = "real or no_second_copy or stays_half or killed or (SmolVLM and (three or four)) or 360M" # these ask nothing of transformers, or what smaller ones ask
    result = python("-m", "pytest", "-q", "--tb=short", "-k", f"not ({left_out})", *(f"tests/test_{name}.py" for name in ("parity", "shapes", "checkpoint", "tiles", "hub")))
    assert result.returncode == 0, result.stdout[-8000:]
