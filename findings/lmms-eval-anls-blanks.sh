#!/usr/bin/env bash
# lmms-eval 0.7.3 (its ANLS metric for document questions)
# One would expect: blanks and line breaks around an answer change nothing, as the metric collapses them first.
# Seen: they raise the score. The edits are counted on the collapsed text, but divided by the length of the
# raw one, so a wrong answer passes the threshold once enough blanks follow it, and an answer of blanks only
# comes near full marks. A nearly right answer gains too.
# Whom it hits: someone who compares models of which one pads its output or ends it with line breaks, or who
# uses the score as a reward. (Only the metric's file is used: the decorators that list it would need torch.)
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q numpy==2.4.6 sacrebleu==2.6.0
venv/bin/pip install -q --no-deps lmms-eval==0.7.3
venv/bin/python - <<'PY'
import sys, types

registry = types.ModuleType("lmms_eval.api.registry")
registry.register_metric = registry.register_aggregation = lambda *_, **__: lambda function: function
sys.modules[registry.__name__] = registry
from lmms_eval.api.metrics import anls

def score(gold, answer):
    return round(anls([gold], [answer])["anls"], 3)

for gold, answer, seen in (
    ("paris", "paris", 1),
    ("paris", "  paris\n", 1),
    ("1995", "1964", 0.5),
    ("1995", "1964" + "\n" * 4, 0.75),
    ("1995", "1964" + " " * 36, 0.95),
    ("paris", "london", 0),
    ("paris", "london" + "\n" * 14, 0.7),
    ("paris", "", 0),
    ("paris", " " * 50, 0.9),
):
    print(f"{gold!r} against {answer.strip()!r} of {len(answer)} characters: {score(gold, answer)}")
    assert score(gold, answer) == seen, (gold, answer)
PY
