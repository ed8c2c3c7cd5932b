#!/usr/bin/env bash
# datasets 5.2.0 (its "webdataset" loader)
# One would expect: a tar in which only some samples have a caption file gives those captions, and None elsewhere.
# Seen: it depends on where the first caption stands. From the sixth sample on, the column never appears
# and its captions are gone without a message. Among the first five it is an error. Only when all of the
# first five have the file may later ones lack it, and then they are None.
# Whom it hits: someone who trains on image shards in which captions, boxes or masks are optional.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q datasets==5.2.0
export HF_HOME="$work/hf" HF_HUB_OFFLINE=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1
venv/bin/python - <<'PY'
import io, tarfile
from datasets import load_dataset

def rows(captioned, streaming):
    """Eight samples with a text each, and a caption for those that are named."""
    name = f"{''.join(map(str, captioned))}.tar"
    with tarfile.open(name, "w") as tar:
        for sample in range(8):
            for ending in ["question.txt"] + ["caption.txt"] * (sample in captioned):
                member = tarfile.TarInfo(f"{sample}.{ending}")
                member.size = 2
                tar.addfile(member, io.BytesIO(b"ok"))
    try:
        read = load_dataset("webdataset", data_files=name, split="train", streaming=streaming)
        return [row.get("caption.txt", "no column") for row in read]
    except ValueError as error:
        return str(error)

for streaming in (False, True):
    late = rows([5, 6, 7], streaming)
    early = rows([1, 2], streaming)
    first_five = rows([0, 1, 2, 3, 4], streaming)
    print("streamed:" if streaming else "in memory:")
    print("  captions from the sixth sample on:", late)
    print("  captions in two of the first five:", early)
    print("  captions in all of the first five:", first_five)
    assert late == ["no column"] * 8
    assert isinstance(early, str)
    assert first_five == ["ok"] * 5 + [None] * 3
PY
