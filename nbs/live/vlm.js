// The whole model once more, without PyTorch: it reads the folder that `save_pretrained` writes, and answers.
// Names are those of the Python modules. A matrix is one Float32Array, row after row. `m` is a module's part
// of the checkpoint, so that m.q_proj.weight reads as in PyTorch; `c` is its part of config.json.
// ---- weights: the bytes of model.safetensors become a tree of arrays
const F32 = bytes => new Float32Array(bytes) // bfloat16 is the upper half of it
const READ = { F32, BF16: bytes => F32(Uint32Array.from(new Uint16Array(bytes), half => half << 16).buffer) }
export function read_tensors(buffer) {
  const start = 8 + Number(new DataView(buffer).getBigUint64(0, true)) // 8 bytes: how long the header is
  const { __metadata__, ...header } = JSON.parse(new TextDecoder().decode(buffer.slice(8, start))), tree = {}
  for (const [name, { dtype, shape, data_offsets: [from, to] }] of Object.entries(header)) {
    if (!READ[dtype]) throw Error(`${name} is stored as ${dtype}: save the model in float32 or bfloat16`)
    const path = name.split("."), last = path.pop(), owner = path.reduce((m, key) => m[key] ??= {}, tree)
    owner[last] = Object.assign(READ[dtype](buffer.slice(start + from, start + to)), { shape })
  }
  return tree
}
// ---- matrices
const { floor, sqrt } = Math
function matrix(rows, columns, entry) { // entry: (row, column) -> number
  const out = new Float32Array(rows * columns)
  for (let n = 0, r = 0; r < rows; r++) for (let c = 0; c < columns; c++) out[n++] = entry(r, c)
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
  const D = weight.length, T = x.length / D, row = t => x.subarray(t * D, t * D + D)
  const mean = matrix(T, 1, t => bias ? row(t).reduce((a, b) => a + b) / D : 0)
  const square = matrix(T, 1, t => row(t).reduce((sum, a) => sum + (a - mean[t]) ** 2, 0) / D)
  return matrix(T, D, (t, i) =>
    (x[t * D + i] - mean[t]) / sqrt(square[t] + eps) * weight[i] + (bias ? bias[i] : 0))
}
function softmax(scores) {
  const largest = Math.max(...scores), powers = scores.map(score => Math.exp(score - largest))
  const sum = powers.reduce((a, b) => a + b)
  return powers.map(power => power / sum)
}
function attention(q, k, v, nh, nkv, hd, causal) { // -> the mixture; each head's weights of the last query
  const T = q.length / nh / hd, S = k.length / nkv / hd, mixed = new Float32Array(q.length), looks = []
  for (let h = 0; h < nh; h++) for (let t = 0; t < T; t++) {
    const query = (t * nh + h) * hd, seen = causal ? S - T + t + 1 : S
    const key = s => (s * nkv + floor(h * nkv / nh)) * hd // a group of query heads shares one
    looks[h] = softmax(matrix(1, seen, (_, s) => dot(q, query, k, key(s), hd) / sqrt(hd)))
    looks[h].forEach((weight, s) => {
      for (let i = 0, value = key(s); i < hd; i++) mixed[query + i] += weight * v[value + i]
    })
  }
  return [mixed, looks]
}
// ---- vision and connector
const place = (n, inside, side, r) => // of place `inside` in block n of r × r, in the whole grid
  (floor(n / (side / r)) * r + floor(inside / r)) * side + n % (side / r) * r + inside % r
const patchify = (pixels, side, P) => matrix((side / P) ** 2, 3 * P * P, (n, i) =>
  pixels[floor(i / P / P) * side * side + place(n, i % (P * P), side, P)])
function MultiHeadAttention(m, x, c) {
  const [q, k, v] = [m.q_proj, m.k_proj, m.v_proj].map(part => linear(part, x)), nh = c.num_attention_heads
  return linear(m.out_proj, attention(q, k, v, nh, nh, c.hidden_size / nh, false)[0])
}
const gelu = x => 0.5 * x * (1 + Math.tanh(sqrt(2 / Math.PI) * (x + 0.044715 * x * x * x)))
const MLP = (m, x) => linear(m.fc2, linear(m.fc1, x).map(gelu))
function EncoderLayer(m, x, c) {
  x = add(x, MultiHeadAttention(m.self_attn, norm(m.layer_norm1, x, c.layer_norm_eps), c))
  return add(x, MLP(m.mlp, norm(m.layer_norm2, x, c.layer_norm_eps)))
}
function VisionModel(m, pixels, c) { // (3, H, W) -> (N, D)
  const patches = linear(m.embeddings.patch_embedding, patchify(pixels, c.image_size, c.patch_size))
  let x = add(patches, m.embeddings.position_embedding.weight)
  for (const layer of Object.values(m.encoder.layers)) x = EncoderLayer(layer, x, c)
  return norm(m.post_layernorm, x, c.layer_norm_eps)
}
function pixel_shuffle(x, side, r) { // (N, D) -> (N/r², D·r²)
  const D = x.length / side ** 2
  return matrix((side / r) ** 2, D * r * r, (n, i) => x[place(n, floor(i / D), side, r) * D + i % D])
}
const Connector = (m, x, side, r) => linear(m.modality_projection.proj, pixel_shuffle(x, side, r))
// ---- the decoder
function apply_rope(x, heads, start, c) { // numbers i and i + hd/2 of a head turn as a pair
  const hd = c.head_dim, half = hd / 2
  return matrix(x.length / hd, hd, (row, i) => {
    const at = row * hd + i, angle = (start + floor(row / heads)) / c.rope_theta ** (i % half / half)
    return x[at] * Math.cos(angle) + (i < half ? -x[at + half] : x[at - half]) * Math.sin(angle)
  })
}
class KVCache { // keys and values of one layer, and where its last query looked
  constructor(max_length, width) {
    Object.assign(this, { width, length: 0, both: [0, 1].map(() => new Float32Array(max_length * width)) })
  }
  update(...kv) { // puts new ones behind the old ones, and gives all
    kv.forEach((rows, n) => this.both[n].set(rows, this.length * this.width))
    this.length += kv[0].length / this.width
    return this.both.map(rows => rows.subarray(0, this.length * this.width))
  }
}
function GroupedQueryAttention(m, x, cache, c) {
  const nh = c.num_attention_heads, nkv = c.num_key_value_heads
  const q = apply_rope(linear(m.q_proj, x), nh, cache.length, c)
  const k = apply_rope(linear(m.k_proj, x), nkv, cache.length, c)
  const [mixed, looks] = attention(q, ...cache.update(k, linear(m.v_proj, x)), nh, nkv, c.head_dim, true)
  cache.looks = looks
  return linear(m.o_proj, mixed)
}
function GatedMLP(m, x) {
  const gate = linear(m.gate_proj, x), up = linear(m.up_proj, x)
  return linear(m.down_proj, gate.map((value, i) => value / (1 + Math.exp(-value)) * up[i]))
}
function DecoderLayer(m, x, cache, c) {
  x = add(x, GroupedQueryAttention(m.self_attn, norm(m.input_layernorm, x, c.rms_norm_eps), cache, c))
  return add(x, GatedMLP(m.mlp, norm(m.post_attention_layernorm, x, c.rms_norm_eps)))
}
function TextModel(m, x, cache, c) { // (T, D) -> the last token's (D)
  Object.values(m.layers).forEach((layer, n) => x = DecoderLayer(layer, x, cache[n], c))
  return norm(m.norm, x.subarray(-c.hidden_size), c.rms_norm_eps)
}
// ---- words: byte-level BPE, as tokenizer.json says
let unseen = 256 // a byte is written as a letter that can be seen
const LETTERS = Array.from({ length: 256 }, (_, byte) => String.fromCharCode(
  byte > 32 && byte < 127 || byte > 160 && byte != 173 ? byte : unseen++))
const GPT = "'(?:[sdmt]|ll|ve|re)| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
const PRE = { Split: p => p.pattern.Regex, Digits: p => "\\p{N}", ByteLevel: p => p.use_regex ? GPT : "[^]+" }
const cut = (texts, pattern) => texts.flatMap(text => text.split(RegExp(`(${pattern})`, "u"))).filter(Boolean)
export class PromptTokenizer {
  constructor({ added_tokens, pre_tokenizer, model }) {
    this.added = added_tokens
    this.ids = { ...model.vocab, ...Object.fromEntries(added_tokens.map(token => [token.content, token.id])) }
    this.texts = Object.keys(this.ids).sort((a, b) => this.ids[a] - this.ids[b])
    this.ranks = new Map(model.merges.map((pair, rank) => [[pair].flat().join(" "), rank]))
    this.patterns = (pre_tokenizer.pretokenizers ?? [pre_tokenizer]).map(part => PRE[part.type](part))
  }
  encode(text, special = false) { // special = special tokens count as such; in what users write they do not
    const names = this.added.filter(token => special || !token.special).map(token => token.content)
    const quoted = names.map(name => name.replace(/[|\\{}()[\]^$+*?.]/g, "\\$&"))
    return cut([text], [...quoted, "(?!)"].join("|")).flatMap(part => names.includes(part) ? this.ids[part] :
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
    const words = ids.filter(id => !this.added.some(token => token.special && token.id == id))
    const letters = words.map(id => this.texts[id]).join("")
    return new TextDecoder().decode(Uint8Array.from(letters, letter => LETTERS.indexOf(letter)))
  }
}
// ---- the model
export class VisionLanguageModel {
  constructor(config, tokenizer, weights) { // what the three files hold
    const { model, lm_head = model.text_model.embed_tokens } = read_tensors(weights) // they may be tied
    Object.assign(this, model, { config, lm_head, tokenizer: new PromptTokenizer(tokenizer) })
    this.grid = config.vision_config.image_size / config.vision_config.patch_size
  }
  encode(pixels) { // (3, H, W) -> an image's vectors (n, D), which serve all questions about it
    const c = this.config, x = VisionModel(this.vision_model, pixels, c.vision_config)
    return Connector(this.connector, x, this.grid, c.scale_factor)
  }
  prompt(question) {
    const image = "<image>".repeat((this.grid / this.config.scale_factor) ** 2)
    const start = `<|im_start|>User:<fake_token_around_image><global-img>${image}<fake_token_around_image>`
    const parts = [[start, true], [question], ["<end_of_utterance>\nAssistant:", true]]
    return parts.flatMap(part => this.tokenizer.encode(...part))
  }
  *stream(images, question, max_new_tokens = 64) { // token by token, greedily
    const { text_model: m, config: { text_config: c, image_token_id } } = this, D = c.hidden_size
    let ids = this.prompt(question)
    const room = c.max_position_embeddings, length = Math.min(ids.length + max_new_tokens, room)
    if (ids.length >= room) throw Error(`the question is too long: of ${ids.length} tokens, ${room} fit`)
    const cache = Object.keys(m.layers).map(() => new KVCache(length, c.num_key_value_heads * c.head_dim))
    const embed = () => matrix(ids.length, D, (t, i) => m.embed_tokens.weight[ids[t] * D + i])
    const first = ids.indexOf(image_token_id), seen = [first, first + images.length / D]
    let x = embed()
    x.set(images, first * D) // image vectors take the image tokens' places
    for (; cache[0].length + ids.length < length; x = embed()) {
      const logits = linear(this.lm_head, TextModel(m, x, cache, c))
      ids = [logits.indexOf(Math.max(...logits))]
      yield { id: ids[0], logits, seen, looks: cache.map(layer => layer.looks) }
      if (ids[0] == this.tokenizer.ids["<end_of_utterance>"]) return
    }
  }
}
export async function load(folder, weights_file = "model.safetensors") { // its address; a file in it
  const names = ["config.json", "tokenizer.json", weights_file]
  const files = await Promise.all(names.map(name => fetch(`${folder}/${name}`)))
  for (const { ok, url, status } of files) if (!ok) throw Error(`${url}: the server answers ${status}`)
  const [config, tokenizer, weights] = files
  return new VisionLanguageModel(await config.json(), await tokenizer.json(), await weights.arrayBuffer())
}
