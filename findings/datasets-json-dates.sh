#!/usr/bin/env bash
# datasets 5.2.0 with pyarrow 26.0.1
# One would expect: a JSON-lines answer of "2018-03-25", loaded with a column type of string, stays that text.
# Seen: if every answer of the file is such a date, the text comes back as "2018-03-25 00:00:00", also when
# the features say string, also deep inside a conversation, streamed or not. One other answer among them
# and all keep their text. Without features the column turns into datetime objects.
# Whom it hits: someone who trains or scores on document questions ("date of this receipt?"): the model
# learns an answer that no annotator wrote, and exact match counts the right one as wrong.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q datasets==5.2.0 pyarrow==26.0.1
export HF_HOME="$work/hf" HF_HUB_OFFLINE=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1
venv/bin/python - <<'PY'
import json
from datasets import Features, List, Value, load_dataset

def load(rows, features=None, streaming=False):
    name = f"{abs(hash(str(rows)))}.jsonl"
    with open(name, "w") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows)
    return list(load_dataset("json", data_files=name, split="train", features=features, streaming=streaming))

text = Features({"answer": Value("string")})
turns = Features({"turns": List({"content": Value("string")})})
dates = [{"answer": "2018-03-25"}, {"answer": "2019-01-02"}]
nested = [{"turns": [{"content": row["answer"]}]} for row in dates]

plain = load(dates)[0]["answer"]
as_text = [load(dates, text, streaming)[0]["answer"] for streaming in (False, True)]
inside = load(nested, turns)[0]["turns"][0]["content"]
mixed = load(dates + [{"answer": "unknown"}], text)[0]["answer"]

print("no features:", repr(plain))
print("features say string, in memory and streamed:", as_text)
print("inside a conversation:", repr(inside), " among other answers:", repr(mixed))
assert type(plain).__name__ == "datetime"
assert as_text == ["2018-03-25 00:00:00"] * 2
assert inside == "2018-03-25 00:00:00"
assert mixed == "2018-03-25"
PY
