"""Run notebooks from top to bottom, two at a time: `python run_notebooks.py FILE …` prints a line for each.

Every notebook has a process of its own, in its own folder. The processes are forked from this one, which has
imported the heavy packages already: that saves some seconds of each, and is all that they share."""
import json, os, re, sys, time
import datasets, ipywidgets, matplotlib.pyplot, torch, tyro
from execnb.nbio import read_nb
from execnb.shell import CaptureShell
from transformers import (AutoModelForImageTextToText, AutoProcessor, Idefics3ForConditionalGeneration,
                          LlamaForCausalLM, SiglipVisionModel, pipeline)

LEFT_OUT = re.compile(r"^#\| (hub|gpu|slow|eval: false)$", re.M) # needs a hub, a GPU, minutes, or the reader
SECONDS = 600 # that a cell may take

def run(path):
    "Execute the cells. The first exception ends the notebook, and comes back as text."
    os.chdir(os.path.dirname(path))
    shell = CaptureShell(timeout=SECONDS)
    try: shell.run_all(read_nb(path), exc_stop=True, preproc=lambda cell: bool(LEFT_OUT.search(cell.source)))
    except Exception: return shell.prettytb(path)

def fork(path):
    "Run a notebook in a child; gives its process id. What went wrong is written beside the notebook."
    child = os.fork()
    if child: return child
    error = run(path)
    if error:
        with open(path + ".error", "w") as file: file.write(error)
    sys.exit(bool(error))

def main(paths):
    waiting, running = [*paths], {}
    while waiting or running:
        while waiting and len(running) < 2:
            path = os.path.abspath(waiting.pop(0))
            running[fork(path)] = path, time.perf_counter()
        child, status, used = os.wait3(0)
        path, start = running.pop(child)
        error = None
        if status:
            error = f"killed by signal {status}"
            if os.path.exists(path + ".error"): error = open(path + ".error").read()
        seconds, cpu = time.perf_counter() - start, used.ru_utime + used.ru_stime
        line = dict(path=path, error=error, seconds=round(seconds, 1), cpu=round(cpu, 1))
        print(json.dumps(line), flush=True)

if __name__ == "__main__": main(sys.argv[1:])
