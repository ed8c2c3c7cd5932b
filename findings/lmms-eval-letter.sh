#!/usr/bin/env bash
# lmms-eval 0.7.3 (its shared reader of multiple-choice answers)
# One would expect: after "the answer is B" the letter is B, whatever is said next, and "Answer: C" is C.
# Seen: any later capital letter takes its place, even the first letter of a word: "the answer is B, as the
# Dog barks" is read as D. A reply that begins with the article "A" is read as choice A, above a plain
# "the answer is B"; and reasons that name another letter outweigh "Answer: C". Small letters are not read.
# Whom it hits: someone who scores a chatty model: its letters depend on the words of its explanations.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q --no-deps lmms-eval==0.7.3
venv/bin/python - <<'PY'
import runpy, sysconfig

path = sysconfig.get_path("purelib") + "/lmms_eval/tasks/_task_utils/mcq_extract.py"
extract = runpy.run_path(path)["extract_mcq_answer"]

for reply, seen in (
    ("The answer is B", "B"),
    ("The answer is B, as the dog barks", "B"),
    ("The answer is B, as the Dog barks", "D"),
    ("The answer is B because it is on Christmas Day", "D"),
    ("A closer look shows that the answer is B", "A"),
    ("A man rides a horse", "A"),
    ("Answer: C because A is too small", "A"),
    ("The correct option is (d)", ""),
):
    print(f"{reply!r}: {extract(reply, ['A', 'B', 'C', 'D'])!r}")
    assert extract(reply, ["A", "B", "C", "D"]) == seen, reply
PY
