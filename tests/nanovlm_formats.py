"""Checkpoints of Hugging Face's nanoVLM repository in three formats, "v0.1", "v0.2" and "main" (its branch).

They are written, and computed step by step, with nothing from our package. What our loader makes of such a
folder must agree with this."""
import json, math
from pathlib import Path
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch.nn.functional import gelu, silu

HEAD, EMBEDDING = "decoder.head.weight", "decoder.token_embedding.weight"
TEMPLATE = ("{% for message in messages %}"
            "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
            "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
EXTRA = {"v0.1": {}, "v0.2": {"image_token": "<|image|>"}}
EXTRA["main"] = EXTRA["v0.2"] | {"global_image_token": "<|global_image|>"}
EXTRA["main"] |= {f"r{i}c{j}": f"<row_{i}_col_{j}>" for i in range(1, 9) for j in range(1, 9)}
SIZES = dict( # epsilons large enough to show
    vit_hidden_dim=24, vit_inter_dim=52, vit_patch_size=8, vit_img_size=32, vit_n_heads=2, vit_dropout=0.0,
    vit_n_blocks=2, vit_ln_eps=1e-3, vit_cls_flag=False, vit_model_type="google/siglip-base-patch16-224",
    lm_hidden_dim=48, lm_inter_dim=100, lm_rms_eps=3e-3, lm_re_base=100000, lm_max_position_embeddings=512,
    lm_n_heads=4, lm_n_kv_heads=2, lm_dropout=0.0, lm_n_blocks=2, lm_attn_scaling=1.0, lm_max_length=256,
    lm_use_tokens=False, lm_tie_weights=True, lm_model_type="HuggingFaceTB/SmolLM2-135M",
    mp_pixel_shuffle_factor=2, vlm_load_backbone_weights=True, vlm_checkpoint_path="checkpoints")

def old_config(version, tokenizer, base_vocab=120, **changes):
    "What config.json says, for a tiny model. The number of image tokens follows the changes."
    extra = EXTRA[version]
    c = SIZES | dict(lm_tokenizer=str(tokenizer), lm_vocab_size=base_vocab + len(extra)) | changes
    if version == "v0.1": return c | dict(lm_eos_token_id=0) | changes
    side = c["vit_img_size"] // c["vit_patch_size"] // c["mp_pixel_shuffle_factor"]
    c |= dict(lm_base_vocab_size=base_vocab, extra_token_amount=len(extra), vlm_extra_tokens=dict(extra),
              lm_chat_template=TEMPLATE, mp_image_token_length=side ** 2, hf_repo_name="nanoVLM")
    if version == "main": c |= dict(max_img_size=4 * c["vit_img_size"], resize_to_max_side_len=False)
    return c | changes

def old_shapes(config):
    "The name and shape of every tensor, with both the head and the token embedding."
    v, m, p = (config[f"vit_{name}"] for name in ("hidden_dim", "inter_dim", "patch_size"))
    d, n, words = (config[f"lm_{name}"] for name in ("hidden_dim", "inter_dim", "vocab_size"))
    kv, r = d // config["lm_n_heads"] * config["lm_n_kv_heads"], config["mp_pixel_shuffle_factor"]
    shapes = {"vision_encoder.patch_embedding.position_embedding": (1, (config["vit_img_size"] // p) ** 2, v)}
    with_bias = {"patch_embedding.conv": (v, 3, p, p), "layer_norm": (v,)}
    for b in range(config["vit_n_blocks"]):
        parts = {"ln1": (v,), "attn.qkv_proj": (3 * v, v), "attn.out_proj": (v, v),
                 "ln2": (v,), "mlp.fc1": (m, v), "mlp.fc2": (v, m)}
        with_bias |= {f"blocks.{b}.{name}": shape for name, shape in parts.items()}
    for name, shape in with_bias.items():
        shapes |= {f"vision_encoder.{name}.weight": shape, f"vision_encoder.{name}.bias": shape[:1]}
    for b in range(config["lm_n_blocks"]):
        parts = {"norm1": (d,), "attn.q_proj": (d, d), "attn.k_proj": (kv, d), "attn.v_proj": (kv, d),
                 "attn.out_proj": (d, d), "norm2": (d,),
                 "mlp.gate_proj": (n, d), "mlp.up_proj": (n, d), "mlp.down_proj": (d, n)}
        shapes |= {f"decoder.blocks.{b}.{name}.weight": shape for name, shape in parts.items()}
    shapes |= {"decoder.norm.weight": (d,), "MP.proj.weight": (d, v * r * r)}
    return shapes | {EMBEDDING: (words, d), HEAD: (words, d)}

def old_tensors(config, seed, keep="head"):
    "Random tensors, norms around 1. Tied weights `keep` 'head' or 'embedding'; others 'both'."
    tied = config["lm_tie_weights"]
    assert keep in (("head", "embedding") if tied else ("both",)), f"keep={keep!r} with lm_tie_weights={tied}"
    random, absent = torch.Generator().manual_seed(seed), {"head": EMBEDDING, "embedding": HEAD}.get(keep)
    tensors = {"decoder.rotary_embd.inv_freq": inv_freq(config)}
    for name, shape in old_shapes(config).items():
        is_norm = len(shape) == 1 and name.endswith("weight")
        scale = 0.1 if len(shape) == 1 else 0.2
        if name != absent: tensors[name] = is_norm + torch.randn(shape, generator=random) * scale
    return tensors

def write_old_folder(folder, config, tensors):
    "config.json and model.safetensors; its header says, as save_model's does, which name stands for another."
    folder, dropped = Path(folder), None
    if EMBEDDING not in tensors: dropped = {EMBEDDING: HEAD}
    elif HEAD not in tensors: dropped = {HEAD: EMBEDDING}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=4))
    save_file(tensors, folder / "model.safetensors", metadata=dropped)

def old_tokenizer(config):
    "The tokenizer that the config names, a folder or a hub name, with the extra tokens added in their order."
    folder = Path(config["lm_tokenizer"])
    if folder.is_dir(): tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    else: tokenizer = Tokenizer.from_pretrained(config["lm_tokenizer"])
    tokenizer.add_special_tokens([*config.get("vlm_extra_tokens", {}).values()])
    return tokenizer

def inv_freq(config):
    d = config["lm_hidden_dim"] // config["lm_n_heads"]
    return 1 / config["lm_re_base"] ** (torch.arange(0, d, 2).float() / d)

def linear(x, tensors, name):
    return x @ tensors[name + ".weight"].flatten(1).T + tensors.get(name + ".bias", 0)

def rms_norm(x, tensors, name, eps):
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * tensors[name + ".weight"]

def layer_norm(x, tensors, name, eps):
    return rms_norm(x - x.mean(-1, keepdim=True), tensors, name, eps) + tensors[name + ".bias"]

def turned(x, angles):
    (first, second), cos, sin = x.chunk(2, -1), angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

def attention(q, k, v, heads, kv_heads, angles=None):
    "Head by head, on (T, D); with angles (T, half a head) it is causal, and turns queries and keys by them."
    d, out = q.shape[-1] // heads, []
    for h in range(heads):
        j = h // (heads // kv_heads)
        one, other, value = q[:, h * d:(h + 1) * d], k[:, j * d:(j + 1) * d], v[:, j * d:(j + 1) * d]
        if angles is not None: one, other = turned(one, angles), turned(other, angles)
        scores = one @ other.T / math.sqrt(d)
        if angles is not None: scores += torch.full(scores.shape, -math.inf).triu(1)
        out.append(scores.softmax(-1) @ value)
    return torch.cat(out, -1)

def old_patches(config, t, image):
    "Vision encoder: one image (3, H, W) in [0, 1] -> (N, D), patches row by row."
    p, eps, heads = config["vit_patch_size"], config["vit_ln_eps"], config["vit_n_heads"]
    corners = [(y, x) for y in range(0, image.shape[1], p) for x in range(0, image.shape[2], p)]
    squares = torch.stack([image[:, y:y + p, x:x + p].flatten() for y, x in corners])
    x = linear(squares, t, "vision_encoder.patch_embedding.conv")
    x = x + t["vision_encoder.patch_embedding.position_embedding"][0]
    for b in (f"vision_encoder.blocks.{i}." for i in range(config["vit_n_blocks"])):
        q, k, v = linear(layer_norm(x, t, b + "ln1", eps), t, b + "attn.qkv_proj").chunk(3, -1)
        x = x + linear(attention(q, k, v, heads, heads), t, b + "attn.out_proj")
        inner = linear(layer_norm(x, t, b + "ln2", eps), t, b + "mlp.fc1")
        x = x + linear(gelu(inner, approximate="tanh"), t, b + "mlp.fc2")
    return layer_norm(x, t, "vision_encoder.layer_norm", eps)

def old_features(config, tensors, image):
    "One image -> (image tokens, D of the decoder): r by r patches become one vector, then the projection."
    patches, r = old_patches(config, tensors, image), config["mp_pixel_shuffle_factor"]
    side = config["vit_img_size"] // config["vit_patch_size"]
    def block(y, x): return torch.cat([patches[(y + i) * side + x + j] for i in range(r) for j in range(r)])
    blocks = [block(y, x) for y in range(0, side, r) for x in range(0, side, r)]
    return linear(torch.stack(blocks), tensors, "MP.proj")

def old_decoder(config, t, x):
    "Embedded positions (T, D) -> logits (T, V)."
    angles, eps = torch.arange(len(x)).float()[:, None] * inv_freq(config), config["lm_rms_eps"]
    for b in (f"decoder.blocks.{i}." for i in range(config["lm_n_blocks"])):
        q, k, v = (linear(rms_norm(x, t, b + "norm1", eps), t, f"{b}attn.{name}_proj") for name in "qkv")
        mixed = attention(q, k, v, config["lm_n_heads"], config["lm_n_kv_heads"], angles)
        x = x + linear(mixed, t, b + "attn.out_proj")
        h = rms_norm(x, t, b + "norm2", eps)
        inner = silu(linear(h, t, b + "mlp.gate_proj")) * linear(h, t, b + "mlp.up_proj")
        x = x + linear(inner, t, b + "mlp.down_proj")
    return rms_norm(x, t, "decoder.norm", eps) @ t[HEAD if HEAD in t else EMBEDDING].T

def old_logits(config, tensors, input_ids, pixels=(), image_id=None):
    "Ids (T,) and pixels (images, 3, H, W) of one row -> (T, V). v0.1 has no image token: images stand first."
    x = tensors[EMBEDDING if EMBEDDING in tensors else HEAD][input_ids]
    features = torch.cat([x[:0], *(old_features(config, tensors, image) for image in pixels)])
    if "vlm_extra_tokens" not in config: return old_decoder(config, tensors, torch.cat([features, x]))
    if image_id is None: image_id = config["lm_base_vocab_size"]
    slots = (input_ids == image_id).nonzero()[:, 0]
    assert len(slots) == len(features), f"{len(slots)} image tokens for {len(features)} features"
    x[slots] = features
    return old_decoder(config, tensors, x)
