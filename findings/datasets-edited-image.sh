#!/usr/bin/env bash
# datasets 5.2.0 with Pillow 13.0.0
# One would expect: a picture that was opened and then made smaller in place goes into the data set small.
# Seen: when the picture was opened from a file, the data set stores the file again, at its full size;
# a picture read from memory, or one changed by a call that returns a copy, is stored as it is.
# Inside map() the same edit has no effect either, with no message.
# Whom it hits: someone who shrinks or masks training images with thumbnail() or paste().
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q datasets==5.2.0 pillow==13.0.0
export HF_HOME="$work/hf" HF_HUB_OFFLINE=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1
venv/bin/python - <<'PY'
import io
from datasets import Dataset, Features, Image as ImageColumn
from PIL import Image

column = Features({"image": ImageColumn()})

def stored(picture):
    return Dataset.from_dict({"image": [picture]}, features=column)[0]["image"]

Image.new("RGB", (64, 64), "red").save("red.png")

from_file = Image.open("red.png")
from_file.thumbnail((8, 8))

from_memory = Image.open(io.BytesIO(open("red.png", "rb").read()))
from_memory.thumbnail((8, 8))

painted = Image.open("red.png")
painted.paste("blue", (0, 0, 64, 64))

def shrink(row):
    row["image"].thumbnail((8, 8))
    return row

mapped = Dataset.from_dict({"image": ["red.png"]}, features=column).map(shrink)[0]["image"]
copied = stored(Image.open("red.png").resize((8, 8)))

print("before:", from_file.size, " stored, from a file:", stored(from_file).size)
print("stored, from memory:", stored(from_memory).size, " stored, resized copy:", copied.size)
print("shrunk inside map():", mapped.size, " painted blue, stored:", stored(painted).getpixel((0, 0)))
assert from_file.size == (8, 8) and stored(from_file).size == (64, 64)
assert stored(from_memory).size == copied.size == (8, 8)
assert mapped.size == (64, 64)
assert stored(painted).getpixel((0, 0)) == (255, 0, 0)
PY
