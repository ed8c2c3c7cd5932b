"A vision-language model, built chapter by chapter: https://nanovlm.github.io/nanovlm"
__version__ = "0.1.0"

import os
from importlib import import_module

# Large tensors in huge pages: training the tiny model on a CPU spends less time on fresh memory (Linux; read by torch at its first allocation).
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

_home = {"VLMConfig": "model", "VisionLanguageModel": "model", "Processor": "processor", "ask": "processor", "generate": "generation",
         "TrainConfig": "training", "train": "training", "evaluate": "evaluation"}
__all__ = list(_home)

def __getattr__(name):
    "Import a public name when it is first used, so that `import nanovlm` is quick."
    if name not in _home: raise AttributeError(f"module 'nanovlm' has no attribute {name!r}")
    return getattr(import_module(f"nanovlm.{_home[name]}"), name)

def __dir__(): return sorted([*globals(), *__all__])
