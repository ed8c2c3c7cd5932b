#!/usr/bin/env bash
# docling-core 2.104.0
# One would expect: a page's DocTags that end too early keep the words that were there, or lose that element whole.
# Seen: an unfinished paragraph or table stays in the document as an element with its box, but with no words
# or cells. An unfinished list goes as a whole, its finished items too. No error, and no warning.
# Whom it hits: someone who trains or scores a small document model whose output is cut at a token limit:
# the element counts look right, while the text score loses words that the model did produce.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q docling-core==2.104.0 pillow==12.3.0
venv/bin/python - <<'PY'
from PIL import Image
from docling_core.types.doc.document import DoclingDocument, DocTagsDocument

BOX = "<loc_0><loc_0><loc_250><loc_250>"
page = Image.new("RGB", (500, 500), "white")

def read(tags):
    pair = DocTagsDocument.from_doctags_and_image_pairs([tags.replace("BOX", BOX)], [page])
    document = DoclingDocument.load_from_doctags(pair)
    return document.export_to_markdown(), [item.label.value for item, _ in document.iterate_items()]

whole = "<doctag><text>BOXfirst</text><text>BOXsecond</text></doctag>"
table = "<doctag><otsl>BOX<fcel>a<fcel>b<nl></otsl></doctag>"
items = "<doctag><unordered_list><list_item>BOXone</list_item><list_item>BOXtwo</list_item></unordered_list></doctag>"

for name, tags, seen in (
    ("whole paragraphs", whole, ("first\n\nsecond", ["text", "text"])),
    ("cut after the last word", whole.split("</text></doctag>")[0], ("first", ["text", "text"])),
    ("whole table", table, ("| a   | b   |\n|-----|-----|", ["table"])),
    ("table cut after its row", table.split("</otsl>")[0], ("", ["table"])),
    ("whole list", items, ("- one\n- two", ["list_item", "list_item"])),
    ("list cut in its second item", items.split("wo</list")[0], ("", [])),
):
    print(f"{name}: {read(tags)}")
    assert read(tags) == seen, name
PY
