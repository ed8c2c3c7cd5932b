// The whole model once more, without PyTorch: it reads the folder that `save_pretrained` writes, and answers.
// Names are those of the Python modules. A matrix is one Float32Array, row after row. `m` is a module's part
// of the checkpoint, so that m.q_proj.weight reads as in PyTorch; `c` is its part of config.json.

// ---- weights: the bytes of model.safetensors become a tree of arrays
const READ = { // bfloat16 is the upper half of float32
  F32: bytes => new Float32Array(bytes),
  BF16: bytes => READ.F32(Uint32Array.from(new Uint16Array(bytes), half => half << 16).buffer),
}
export function read_tensors(buffer) {
  const start = 8 + Number(new DataView(buffer).getBigUint64(0, true)) // 8 bytes: how long the header is
  const header = JSON.parse(new TextDecoder().decode(buffer.slice(8, start)))
  const tree = {}
  for (const [name, { dtype, shape, data_offsets }] of Object.entries(header)) {
    if (name == "__metadata__") continue
    if (!READ[dtype]) throw Error(`${name} is stored as ${dtype}: save the model in float32 or bfloat16`)
    const [from, to] = data_offsets.map(offset => start + offset)
    const path = name.split("."), last = path.pop()
    const module = path.reduce((part, key) => part[key] ??= {}, tree)
    module[last] = Object.assign(READ[dtype](buffer.slice(from, to)), { shape })
  }
  return tree
}

// ---- matrices
const { floor, sqrt } = Math
function matrix(rows, columns, entry) { // entry: (row, column) -> number
  const out = new Float32Array(rows * columns)
  for (let n = 0, row = 0; row < rows; row++)
    for (let column = 0; column < columns; column++) out[n++] = entry(row, column)
  return out
}
function dot(x, i, y, j, length) { // of x from place i on with y from place j on
  let sum = 0
  for (let n = 0; n < length; n++) sum += x[i + n] * y[j + n]
  return sum
}
const add = (x, y) => x.map((value, i) => value + y[i])
function linear({ weight, bias }, x) { // (T, inputs) -> (T, outputs)
  const outputs = weight.shape[0], inputs = weight.length / outputs
  return matrix(x.length / inputs, outputs, (t, o) =>
    dot(x, t * inputs, weight, o * inputs, inputs) + (bias ? bias[o] : 0))
}
function norm({ weight, bias }, x, eps) { // LayerNorm; without a bias RMSNorm, which takes no mean off
  const D = weight.length, y = x.slice()
  for (let t = 0; t < x.length; t += D) {
    const row = y.subarray(t, t + D), mean = bias ? row.reduce((a, b) => a + b) / D : 0
    const square = row.reduce((sum, value) => sum + (value - mean) ** 2, 0) / D
    row.forEach((value, i) =>
      row[i] = (value - mean) / sqrt(square + eps) * weight[i] + (bias ? bias[i] : 0))
  }
  return y
}
function softmax(scores) {
  const largest = scores.reduce((a, b) => Math.max(a, b))
  const powers = scores.map(score => Math.exp(score - largest)), sum = powers.reduce((a, b) => a + b)
  return powers.map(power => power / sum)
}
// q (T, nh·hd) looks at k and v (S, nkv·hd): the mixture, and what the last query looked at, by head
function attention(q, k, v, nh, nkv, hd, causal) {
  const T = q.length / nh / hd, S = k.length / nkv / hd, mixed = new Float32Array(q.length), looks = []
  for (let h = 0; h < nh; h++) for (let t = 0; t < T; t++) {
    const query = (t * nh + h) * hd, seen = causal ? S - T + t + 1 : S
    const key = s => (s * nkv + floor(h * nkv / nh)) * hd // a group of query heads shares one
    const weights = looks[h] = softmax(matrix(1, seen, (_, s) => dot(q, query, k, key(s), hd) / sqrt(hd)))
    for (let s = 0; s < seen; s++)
      for (let i = 0, value = key(s), weight = weights[s]; i < hd; i++) mixed[query + i] += weight * v[value + i]
  }
  return [mixed, looks]
}

// ---- vision and connector
const patchify = (pixels, side, P) => matrix((side / P) ** 2, 3 * P * P, (n, i) => {
  const row = floor(n / (side / P)) * P + floor(i / P) % P, column = n % (side / P) * P + i % P
  return pixels[(floor(i / P / P) * side + row) * side + column]
})
function MultiHeadAttention(m, x, c) {
  const [q, k, v] = [m.q_proj, m.k_proj, m.v_proj].map(part => linear(part, x))
  const nh = c.num_attention_heads
  return linear(m.out_proj, attention(q, k, v, nh, nh, c.hidden_size / nh, false)[0])
}
const gelu = x => 0.5 * x * (1 + Math.tanh(sqrt(2 / Math.PI) * (x + 0.044715 * x * x * x)))
const MLP = (m, x) => linear(m.fc2, linear(m.fc1, x).map(gelu))
function EncoderLayer(m, x, c) {
  x = add(x, MultiHeadAttention(m.self_attn, norm(m.layer_norm1, x, c.layer_norm_eps), c))
  return add(x, MLP(m.mlp, norm(m.layer_norm2, x, c.layer_norm_eps)))
}
function VisionModel(m, pixels, c) { // (3, H, W) -> (N, D)
  let x = linear(m.embeddings.patch_embedding, patchify(pixels, c.image_size, c.patch_size))
  x = add(x, m.embeddings.position_embedding.weight)
  for (const layer of Object.values(m.encoder.layers)) x = EncoderLayer(layer, x, c)
  return norm(m.post_layernorm, x, c.layer_norm_eps)
}
function pixel_shuffle(x, side, r) { // (N, D) -> (N/r², D·r²)
  const D = x.length / side ** 2
  return matrix((side / r) ** 2, D * r * r, (n, i) => {
    const row = floor(n / (side / r)) * r + floor(i / D / r)
    const column = n % (side / r) * r + floor(i / D) % r
    return x[(row * side + column) * D + i % D]
  })
}
const Connector = (m, x, side, r) => linear(m.modality_projection.proj, pixel_shuffle(x, side, r))

// ---- the decoder
function rope_tables(start, T, hd, theta) { // cosines and sines, each (T, hd/2)
  const angles = matrix(T, hd / 2, (t, i) => (start + t) / theta ** (2 * i / hd))
  return [angles.map(Math.cos), angles.map(Math.sin)]
}
function apply_rope(x, [cos, sin], hd) { // numbers i and i + hd/2 of a head turn as a pair
  const half = hd / 2, heads = x.length / cos.length / 2
  return matrix(x.length / hd, hd, (row, i) => {
    const at = row * hd + i, pair = floor(row / heads) * half + i % half
    return x[at] * cos[pair] + (i < half ? -x[at + half] : x[at - half]) * sin[pair]
  })
}
class KVCache { // one layer's
  constructor(max_length, width) {
    Object.assign(this, { width, length: 0, looks: [], both: [0, 1].map(() => new Float32Array(max_length * width)) })
  }
  update(...kv) { // puts new keys and values behind the old ones, and gives all
    kv.forEach((rows, n) => this.both[n].set(rows, this.length * this.width))
    this.length += kv[0].length / this.width
    return this.both.map(rows => rows.subarray(0, this.length * this.width))
  }
}
function GroupedQueryAttention(m, x, rope, cache, c) {
  const hd = c.head_dim, [q, k] = [m.q_proj, m.k_proj].map(part => apply_rope(linear(part, x), rope, hd))
  const [keys, values] = cache.update(k, linear(m.v_proj, x)), nh = c.num_attention_heads
  const [mixed, looks] = attention(q, keys, values, nh, c.num_key_value_heads, hd, true)
  cache.looks = looks
  return linear(m.o_proj, mixed)
}
const silu = x => x / (1 + Math.exp(-x))
function GatedMLP(m, x) {
  const up = linear(m.up_proj, x)
  return linear(m.down_proj, linear(m.gate_proj, x).map((gate, i) => silu(gate) * up[i]))
}
function DecoderLayer(m, x, rope, cache, c) {
  const normed = norm(m.input_layernorm, x, c.rms_norm_eps)
  x = add(x, GroupedQueryAttention(m.self_attn, normed, rope, cache, c))
  return add(x, GatedMLP(m.mlp, norm(m.post_attention_layernorm, x, c.rms_norm_eps)))
}
function TextModel(m, x, cache, c) { // (T, D) -> the last token's (D)
  const rope = rope_tables(cache[0].length, x.length / c.hidden_size, c.head_dim, c.rope_theta)
  Object.values(m.layers).forEach((layer, n) => x = DecoderLayer(layer, x, rope, cache[n], c))
  return norm(m.norm, x.subarray(-c.hidden_size), c.rms_norm_eps)
}

// ---- words: byte-level BPE, as tokenizer.json says
let unseen = 256 // a byte is written as a letter that can be seen
const LETTERS = Array.from({ length: 256 }, (_, byte) => String.fromCharCode(
  byte > 32 && byte < 127 || byte > 160 && byte != 173 ? byte : unseen++))
const GPT2 = "'(?:[sdmt]|ll|ve|re)| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
const WORDS = { // what may stand in pre_tokenizer -> the pattern of a word
  Split: p => p.pattern.Regex, Digits: () => "\\p{N}", ByteLevel: p => p.use_regex ? GPT2 : "[^]+" }
const cut = (texts, pattern) => texts.flatMap(text => text.split(RegExp(`(${pattern})`, "u"))).filter(Boolean)
export class PromptTokenizer {
  constructor({ added_tokens, pre_tokenizer, model }) {
    this.ids = { ...model.vocab, ...Object.fromEntries(added_tokens.map(t => [t.content, t.id])) }
    this.ranks = new Map(model.merges.map((pair, rank) => [[pair].flat().join(" "), rank]))
    this.patterns = (pre_tokenizer.pretokenizers ?? [pre_tokenizer]).map(p => WORDS[p.type](p))
    this.added = added_tokens
    this.texts = Object.keys(this.ids).sort((a, b) => this.ids[a] - this.ids[b])
  }
  encode(text, special = false) { // special = special tokens count as such; in what users write they do not
    const names = this.added.filter(token => special || !token.special).map(token => token.content)
    const parts = cut([text], [...names.map(name => name.replace(/[|\\{}()[\]^$+*?.]/g, "\\$&")), "(?!)"].join("|"))
    return parts.flatMap(part => names.includes(part) ? this.ids[part] :
      this.patterns.reduce(cut, [part]).flatMap(word => this.merge(word)))
  }
  merge(word) { // the pair that was learnt first becomes one token, again and again
    const parts = Array.from(new TextEncoder().encode(word), byte => LETTERS[byte])
    while (true) {
      const ranks = parts.slice(1).map((part, n) => this.ranks.get(`${parts[n]} ${part}`) ?? Infinity)
      const first = ranks.indexOf(Math.min(...ranks))
      if (!(ranks[first] < Infinity)) return parts.map(part => this.ids[part])
      parts.splice(first, 2, parts[first] + parts[first + 1])
    }
  }
  decode(ids) { // without special tokens
    const letters = ids.map(id => this.added.some(t => t.special && t.id == id) ? "" : this.texts[id]).join("")
    return new TextDecoder().decode(Uint8Array.from(letters, letter => LETTERS.indexOf(letter)))
  }
}

// ---- the model
export const PromptFormat = {
  before_images: "<|im_start|>User:", image: "<image>", end: "<end_of_utterance>",
  whole: "<fake_token_around_image><global-img>{square}<fake_token_around_image>",
  before_answer: "<end_of_utterance>\nAssistant:",
}
export class VisionLanguageModel {
  constructor(config, tokenizer, tensors) {
    Object.assign(this, tensors.model, { config, tokenizer: new PromptTokenizer(tokenizer) })
    this.lm_head = tensors.lm_head ?? this.text_model.embed_tokens // tied
    this.grid = config.vision_config.image_size / config.vision_config.patch_size
  }
  encode(pixels) { // (3, H, W) -> the vectors of an image, (n, D), for all questions about it
    const x = VisionModel(this.vision_model, pixels, this.config.vision_config)
    return Connector(this.connector, x, this.grid, this.config.scale_factor)
  }
  prompt(question) {
    const f = PromptFormat, square = f.image.repeat((this.grid / this.config.scale_factor) ** 2)
    const parts = [[f.before_images + f.whole.replace("{square}", square), true], [question], [f.before_answer, true]]
    return parts.flatMap(part => this.tokenizer.encode(...part))
  }
  *stream(images, question, max_new_tokens = 64) { // token by token, greedily
    const c = this.config.text_config, D = c.hidden_size, table = this.text_model.embed_tokens.weight
    const embed = ids => matrix(ids.length, D, (t, i) => table[ids[t] * D + i])
    const ids = this.prompt(question), room = Math.min(max_new_tokens, c.max_position_embeddings - ids.length)
    if (room < 1) throw Error(`the prompt has ${ids.length} of at most ${c.max_position_embeddings} tokens: shorten the question`)
    const cache = Object.keys(this.text_model.layers).map(() => new KVCache(ids.length + room, c.num_key_value_heads * c.head_dim))
    const first = ids.indexOf(this.config.image_token_id), seen = images.length / D // image vectors stand side by side
    let x = embed(ids)
    x.set(images, first * D)
    for (let n = 0; n < room; n++) {
      const logits = linear(this.lm_head, TextModel(this.text_model, x, cache, c))
      const id = logits.indexOf(logits.reduce((a, b) => Math.max(a, b)))
      yield { id, logits, looks: cache.map(layer => layer.looks), first, seen }
      if (id == this.tokenizer.ids[PromptFormat.end]) return
      x = embed([id])
    }
  }
}
export async function load(folder) { // its address
  const read = async (name, kind) => {
    const response = await fetch(`${folder}/${name}`)
    if (!response.ok) throw Error(`${folder}/${name}: the server answers ${response.status}`)
    return response[kind]()
  }
  const names = ["config.json", "tokenizer.json", "preprocessor_config.json"]
  const [config, tokenizer, settings, weights] = await Promise.all(
    [...names.map(name => read(name, "json")), read("model.safetensors", "arrayBuffer")])
  return Object.assign(new VisionLanguageModel(config, tokenizer, read_tensors(weights)), { settings })
}
