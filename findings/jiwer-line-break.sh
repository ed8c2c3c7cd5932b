#!/usr/bin/env bash
# jiwer 4.0.0
# One would expect: a line break parts two words as a space does; failing that, any number of breaks counts alike.
# Seen: one line break does not part words, so a text read without a fault, but broken into lines, has a
# word error rate of 100 %. Two breaks in a row (or Windows' CR LF, or a space before the break) become one
# space, and the rate is 0. With the reference in lines instead, the rate goes over 100 %.
# Whom it hits: someone who scores OCR or document transcriptions: a model that keeps the page's lines, or
# separates them by one break rather than two, gets another score for the same words.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q jiwer==4.0.0
venv/bin/python - <<'PY'
import jiwer

flat = "total due today"
for name, text, expected in (
    ("one line break", "total\ndue\ntoday", 1),
    ("two line breaks", "total\n\ndue\n\ntoday", 0),
    ("CR LF", "total\r\ndue\r\ntoday", 0),
    ("space and line break", "total \ndue \ntoday", 0),
    ("tab", "total\tdue\ttoday", 1),
):
    rate = jiwer.wer(flat, text)
    print(f"{name}: {rate:.2f}")
    assert rate == expected, name

reverse = jiwer.wer("total\ndue\ntoday", flat)
words = jiwer.process_words(flat, "total\ndue\ntoday")
print(f"reference in lines: {reverse:.2f}, words of the text in lines: {words.hypotheses}")
assert reverse == 3
assert words.hypotheses == [["total\ndue\ntoday"]]
PY
