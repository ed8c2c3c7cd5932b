#!/usr/bin/env bash
# math-verify 0.9.0
# One would expect: two clock times are compared whole, or not understood and so counted as different.
# Seen: only the hour is read, so 10:30 equals 10:45 and 10:30 pm. Likewise a ratio 3:4 equals 3:5, and
# 1e3 equals 1e5, as only what stands before the letter is read. A range is read as a subtraction: 14-16
# equals -2.
# Whom it hits: someone who scores or rewards clock reading, chart ratios or scientific notation with it:
# wrong answers earn full marks.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q math-verify==0.9.0 latex2sympy2_extended==1.11.0
venv/bin/python - <<'PY'
from math_verify import parse, verify

def same(gold, answer):
    return verify(parse(gold), parse(answer))

for gold, answer, seen in (
    ("10:30", "10:45", True),
    ("10:30 am", "10:30 pm", True),
    ("10:30", "11:30", False),
    ("3:4", "3:5", True),
    ("3:4", "3/4", False),
    ("1e3", "1e5", True),
    ("1e3", "1000", False),
    ("14-16", "-2", True),
):
    print(f"{gold} against {answer}: {same(gold, answer)}, read as {parse(gold)[0]} and {parse(answer)[0]}")
    assert same(gold, answer) is seen, (gold, answer)
PY
