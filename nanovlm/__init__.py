"""A vision-language model, built chapter by chapter: https://nanovlm.github.io/nanovlm

nanovlm/ (numbers are chapters; a module imports only from those above it)
  images.py       open an image from anywhere, or say what is wrong with it
  weights.py      find a checkpoint; read and write its config and tensors (by hand: chapter 3)
  checking.py     what the exercises are checked with
  plots.py        every figure of the course
  runs.py         what a long run needs: several processes, a log, states in files

  patches.py      1   cut an image into patches, embed them
  attention.py    2   every patch looks at every other
  vision.py       3   the vision encoder (SigLIP), and preprocessing
  rope.py         4   rotary position embedding
  kv_cache.py     5   causal attention, and its cache
  language.py     6   the decoder (SmolLM2), its head and the loss
  generation.py   7   greedy and sampled decoding: temperature, top-k, top-p
  connector.py    8   pixel shuffle and one linear layer
  model.py        9   the vision-language model: images spliced into text
  fast.py             one token with fewer operations
  quantise.py    19   weights in int8 and int4, packed
  processor.py   10   tokenizer, prompt, image tiles, label mask; ask a question
  sources.py          data sets of others in one schema: easy-VQA, a folder, mixtures
  data.py        11   rows become batches: collate, pack, hold rows out
  batches.py          endless shuffled batches, from several workers, that go on where they stopped
  frozen.py           train less: LoRA, and features of a frozen encoder kept
  training.py    12   the training loop: optimizers, schedule, validation, resume
  evaluation.py  13   accuracy, intervals, what the model scores without looking
  survey.py           what a data set holds, before anything is trained; a contact sheet
  recipe.py      14   two pretrained towers joined (14_colab: the full recipe)
  inside.py      15   attention maps, occlusion, ablation, logit lens
  scaling.py     16   count operations and bytes; the memory planner
  hub.py         17   open any known format (nanoVLM's, too); publish a model
  scenes.py           drawn pictures with known answers, for chapter 15
  playground.py  18   the app in a notebook

  demo.py             make demo: train, test, write a page
  bench.py            make bench: this package beside transformers
  cli.py              the nanovlm command
  tiny/               the tiny model, trained by the demo with seed 0
  exercises/          the checkers of each chapter's exercises
"""
__version__ = "0.1.0"

import os
from importlib import import_module

# Large tensors in huge pages: training the tiny model on a CPU spends less time on fresh memory
# (Linux; read by torch at its first allocation).
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

_home = dict(load="hub", join="recipe", VLMConfig="model", VisionLanguageModel="model",
             Processor="processor",
             generate="generation", ask="processor", TrainConfig="training", train="training",
             evaluate="evaluation")
__all__ = list(_home)

def __getattr__(name):
    "Import a public name when it is first used, so that `import nanovlm` is quick."
    if name not in _home: raise AttributeError(f"module 'nanovlm' has no attribute {name!r}")
    return getattr(import_module(f"nanovlm.{_home[name]}"), name)

def __dir__(): return sorted([*globals(), *__all__])
