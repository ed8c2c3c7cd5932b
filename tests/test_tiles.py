"Large images cut into tiles: the same pixels and the same prompt as transformers' own processors."
import pytest
import torch
from PIL import Image
from tokenizers import AddedToken
from transformers import AutoProcessor
from nanovlm.processor import WHOLE, Processor, ask, cut_tiles

SIZES = [(40, 30), (64, 64), (65, 64), (64, 65), (200, 130), (130, 200),
         (500, 20), (20, 500), (193, 192), (1, 90), (97, 55)]

@pytest.fixture
def tiling(processor, tmp_path):
    "Our processor with tiles of 64 pixels, and transformers' from the folder that it saved."
    tokenizer, names = processor.tokenizer, [f"<row_{r}_col_{c}>" for r in range(1, 7) for c in range(1, 7)]
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in names])
    ours = Processor(tokenizer, image_seq_len=16, max_length=4096, image_size=64, resample=1,
                     longest_edge=256)
    ours.save_pretrained(tmp_path)
    return ours, AutoProcessor.from_pretrained(tmp_path), tmp_path

def theirs_on(processor, images, question):
    content = [*[{"type": "image"}] * len(images), {"type": "text", "text": question}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return processor(text=text, images=images, return_tensors="pt")

@pytest.mark.parametrize("size", SIZES, ids=str)
def test_one_image(tiling, size):
    ours, theirs, _ = tiling
    image = Image.effect_noise(size, 90).convert("RGB")
    expected, batch = theirs_on(theirs, [image], "what is it?"), ours([image], "what is it?")
    assert batch["input_ids"].tolist() == expected["input_ids"].tolist()
    assert int((batch["input_ids"] == ours.image_token_id).sum()) == 16 * len(batch["pixel_values"])
    torch.testing.assert_close(batch["pixel_values"], expected["pixel_values"][0], atol=1e-5, rtol=0)

def test_several_images(tiling):
    ours, theirs, _ = tiling
    images = [Image.effect_noise(size, 90).convert("RGB") for size in ((300, 100), (64, 64), (90, 200))]
    expected, batch = theirs_on(theirs, images, "which is largest?"), ours(images, "which is largest?")
    assert batch["input_ids"].tolist() == expected["input_ids"].tolist()
    torch.testing.assert_close(batch["pixel_values"], expected["pixel_values"][0], atol=1e-5, rtol=0)

def test_what_is_saved_comes_back(tiling):
    ours, _, folder = tiling
    again, image = Processor.from_pretrained(folder), Image.effect_noise((100, 300), 90)
    for name in ("longest_edge", "image_size", "image_seq_len", "format"):
        assert getattr(again, name) == getattr(ours, name), name
    assert torch.equal(again([image], "is it?")["input_ids"], ours([image], "is it?")["input_ids"])

def test_what_transformers_saves_is_read(tiling, tmp_path):
    ours, theirs, _ = tiling
    theirs.save_pretrained(tmp_path / "theirs")
    again, image = Processor.from_pretrained(tmp_path / "theirs"), Image.effect_noise((100, 300), 90)
    batch, expected = again([image], "is it?"), ours([image], "is it?")
    for name in expected: assert torch.equal(batch[name], expected[name]), name

def test_the_tiles_are_the_picture(tiling):
    "Laid side by side again, they give the resized image."
    image = Image.effect_noise((300, 170), 90).convert("RGB")
    squares, (rows, columns) = cut_tiles(image, 64, 256)
    assert len(squares) == rows * columns + 1 and all(s.size == (64, 64) for s in squares)
    joined = Image.new("RGB", (columns * 64, rows * 64))
    for n, tile in enumerate(squares[:-1]): joined.paste(tile, (n % columns * 64, n // columns * 64))
    assert joined.resize((64, 64), 3).tobytes() == squares[-1].tobytes()

def test_a_small_target_is_not_cut(): assert cut_tiles(Image.new("RGB", (500, 400)), 64, 64)[1] == WHOLE

def test_a_model_answers_about_tiles(model, tiling):
    image = Image.effect_noise((200, 90), 90)
    assert isinstance(ask(model, tiling[0], image, "what is it?", max_new_tokens=3), str)

def test_a_tokenizer_without_tile_tokens_is_refused(processor):
    with pytest.raises(ValueError, match="<row_1_col_1>"):
        Processor(processor.tokenizer, image_size=64, image_seq_len=16, longest_edge=256)
