// The page around vlm.js: draw or open a picture, ask, and see for each token of the answer where it looked.
import { load } from "./vlm.js"
import { open_image, preprocess } from "./images.js"

const SHAPES = { circle: "●", rectangle: "■", triangle: "▲", pen: "✎" } // easy-VQA's, and freehand
const COLORS = { red: "#f00", green: "#0f0", blue: "#00f", yellow: "#ff0",
  black: "#000", gray: "#808080", teal: "#008080", brown: "#a52a2a" } // easy-VQA's, as it draws them
const QUESTIONS = ["what color is the shape?", "what shape is in the image?", "is there a circle?",
  "is there a red shape?", "is there not a triangle?", "what is the blue shape?", "who painted this?"]
const GROUND = "#f3f6f1", SIDE = 256, LONGEST = 1000 // of the board in pixels, of a question in letters

function make(tag, attributes = {}, ...children) { // an element; functions among its attributes are listeners
  const element = document.createElement(tag)
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value == "function") element.addEventListener(name, value)
    else if (value !== false) element.setAttribute(name, value === true ? "" : value)
  }
  element.append(...children)
  return element
}

const pause = () => new Promise(done => setTimeout(done)) // lets the browser draw
const unloaded = error => Error(`The model does not load (${error.message}): open the page again.`)
const percent = share => `${Math.round(100 * share)} %`

function choice(name, values, chosen, content) { // radio buttons that look like buttons
  return make("div", { class: "live-choice", role: "radiogroup", "aria-label": name },
    ...values.map(value => make("label", { title: value },
      make("input", { type: "radio", name: `live-${name}`, value, checked: value == chosen,
        "aria-label": value }),
      content(value))))
}

function trace(context, shape, x, y, size) { // the outline of a shape with its middle at (x, y)
  context.beginPath()
  if (shape == "circle" || shape == "pen") context.arc(x, y, size / 2, 0, 2 * Math.PI)
  else if (shape == "rectangle") context.rect(x - size / 2, y - size * 0.38, size, size * 0.76)
  else [[0, -1], [1, 1], [-1, 1]].forEach(([a, b]) => context.lineTo(x + a * size / 2, y + b * size * 0.43))
  context.closePath()
}

class Board { // a square to draw on, by mouse, finger or keyboard, or to open a picture in
  constructor(changed, fail) {
    this.changed = changed
    this.at = [SIDE / 2, SIDE / 2]
    const listen = { click: e => this.tool != "pen" && this.stamp(this.place(e)), keydown: e => this.key(e),
      pointerdown: e => this.pen(e), pointermove: e => this.move(e), pointerup: () => this.lift(),
      pointercancel: () => this.lift(), pointerleave: () => this.preview(false),
      focus: () => this.preview(this.canvas.matches(":focus-visible")), blur: () => this.preview(false) }
    this.canvas = make("canvas", { width: SIDE, height: SIDE, tabindex: 0, role: "application", ...listen,
      "aria-label": "Drawing board. Arrow keys move, Enter draws the chosen shape." })
    this.above = make("canvas", { width: SIDE, height: SIDE, "aria-hidden": "true" })
    this.tools = make("div", { class: "live-tools" },
      choice("shape", Object.keys(SHAPES), "circle", shape => make("span", {}, SHAPES[shape])),
      choice("colour", Object.keys(COLORS), "red",
        color => make("span", { style: `background:${COLORS[color]}` })),
      make("label", {}, "size ",
        make("input", { type: "range", min: 48, max: 140, value: 90, name: "size" })),
      make("label", {},
        make("input", { type: "checkbox", checked: true, name: "alone" }), " one shape at a time"),
      make("div", { class: "live-buttons" },
        make("button", { type: "button", click: () => { this.wipe(); this.finish() } }, "clear"),
        make("label", { class: "live-file" }, "open a picture",
          make("input", { type: "file", accept: "image/*",
            change: e => this.open(e.target.files[0], fail).then(() => e.target.value = "") }))))
    this.tools.addEventListener("change", () => // a finger scrolls the page, unless it draws
      this.canvas.style.touchAction = this.tool == "pen" ? "none" : "")
    this.frame = make("div", { class: "live-frame" }, this.canvas, this.above)
    this.context = this.canvas.getContext("2d", { willReadFrequently: true })
    this.wipe()
    this.draw("circle", 150, 110)
  }
  get tool() { return this.tools.querySelector("[name=live-shape]:checked").value }
  get color() { return COLORS[this.tools.querySelector("[name=live-colour]:checked").value] }
  get size() { return Number(this.tools.querySelector("[name=size]").value) }
  get pixels() { return this.opened ?? this.context.getImageData(0, 0, SIDE, SIDE) }
  place(event) {
    const box = this.canvas.getBoundingClientRect()
    return [(event.clientX - box.left) / box.width * SIDE, (event.clientY - box.top) / box.height * SIDE]
  }
  wipe() {
    this.context.fillStyle = GROUND
    this.context.fillRect(0, 0, SIDE, SIDE)
  }
  draw(shape, x, y, size = this.size) {
    this.context.fillStyle = this.color
    trace(this.context, shape, x, y, size)
    this.context.fill()
  }
  stamp([x, y]) {
    if (this.tools.querySelector("[name=alone]").checked && this.tool != "pen") this.wipe()
    this.draw(this.tool, x, y, this.tool == "pen" ? this.size / 4 : this.size)
    this.finish()
  }
  finish() { // a picture that was opened is now one that was drawn on
    this.opened = null
    this.preview(false)
    this.changed()
  }
  pen(event) {
    if (this.tool != "pen" || event.button) return
    this.canvas.setPointerCapture(event.pointerId)
    this.last = this.place(event)
    this.draw("pen", ...this.last, this.size / 4)
  }
  move(event) {
    this.at = this.place(event)
    if (!this.last) return this.preview(event.pointerType == "mouse")
    Object.assign(this.context, { strokeStyle: this.color, lineWidth: this.size / 4, lineCap: "round" })
    this.context.beginPath()
    this.context.moveTo(...this.last)
    this.context.lineTo(...this.at)
    this.context.stroke()
    this.last = this.at
  }
  lift() {
    if (this.last) this.finish()
    this.last = null
  }
  key(event) {
    const step = { ArrowLeft: [-8, 0], ArrowRight: [8, 0], ArrowUp: [0, -8], ArrowDown: [0, 8] }[event.key]
    if (!step && event.key != "Enter" && event.key != " ") return
    event.preventDefault()
    if (step) this.at = this.at.map((value, n) => Math.min(SIDE, Math.max(0, value + step[n])))
    else this.stamp(this.at)
    this.preview(true)
  }
  preview(shown) { // an outline of what a click or Enter would draw
    const context = this.above.getContext("2d")
    context.clearRect(0, 0, SIDE, SIDE)
    if (!shown) return
    trace(context, this.tool, ...this.at, this.tool == "pen" ? this.size / 4 : this.size)
    Object.assign(context, { strokeStyle: "#555", lineWidth: 2 })
    context.setLineDash([6, 5])
    context.stroke()
  }
  async open(file, fail) {
    if (!file) return
    try {
      this.opened = await open_image(file)
      const whole = make("canvas", { width: this.opened.width, height: this.opened.height })
      whole.getContext("2d").putImageData(this.opened, 0, 0)
      this.context.drawImage(whole, 0, 0, SIDE, SIDE) // as the model sees it: a square
      this.preview(false)
      this.changed()
    } catch (error) { fail(error) }
  }
  look(shares) { // (n,) shares of the attention: what was looked at less lies in the shade
    const context = this.above.getContext("2d"), grid = Math.sqrt(shares.length), cell = SIDE / grid
    const most = Math.max(...shares)
    context.clearRect(0, 0, SIDE, SIDE)
    Object.assign(context, { font: "13px sans-serif", textAlign: "center", textBaseline: "middle" })
    context.lineWidth = 3
    context.setLineDash([]) // the preview has dashes
    shares.forEach((share, n) => {
      const x = n % grid * cell, y = Math.floor(n / grid) * cell
      context.fillStyle = `rgba(30, 30, 40, ${0.6 * (1 - share / most)})`
      context.fillRect(x, y, cell, cell)
      if (share < 0.005) return
      context.strokeStyle = "#fff"
      context.strokeText(percent(share), x + cell / 2, y + cell / 2)
      context.fillStyle = "#000"
      context.fillText(percent(share), x + cell / 2, y + cell / 2)
    })
  }
}

class Live {
  constructor(root) {
    const changed = () => {
      this.vectors = this.looking = null
      this.ask()
    }
    this.board = new Board(changed, error => this.fail(error))
    this.question = make("input", { type: "text", value: QUESTIONS[0], "aria-label": "question",
      autocomplete: "off" })
    const choose = make("select", { "aria-label": "choose a question",
      change: e => { this.question.value = e.target.value; e.target.selectedIndex = 0; this.ask() } },
      make("option", { value: "" }, "or choose one …"), ...QUESTIONS.map(text => make("option", {}, text)))
    const ask = e => { e.preventDefault(); this.ask() }
    const form = make("form", { class: "live-form", submit: ask },
      this.question, make("button", {}, "ask"), choose)
    this.error = make("p", { class: "live-error", role: "alert" })
    this.answer = make("p", { class: "live-answer", "aria-live": "polite" }, "…")
    this.tokens = make("div", { class: "live-tokens", role: "group", "aria-label": "tokens of the answer" })
    this.layer = make("select", { "aria-label": "layer", change: () => this.look() })
    this.head = make("select", { "aria-label": "head", change: () => this.look() })
    this.seen = make("p", { class: "live-seen" })
    this.note = make("p", { class: "live-note" }, "The model is being loaded (1 MB) …")
    this.looks = make("div", { class: "live-looks", hidden: true },
      this.tokens, this.layer, this.head, this.seen)
    this.step = make("input", { type: "range", min: 0, input: () => this.open(Number(this.step.value)) })
    this.label = make("output")
    this.training = make("label", { class: "live-training", hidden: true },
      "the model ", this.step, this.label)
    root.addEventListener("dragover", e => e.preventDefault())
    root.addEventListener("drop", e => {
      e.preventDefault()
      this.board.open(e.dataTransfer.files[0], error => this.fail(error))
    })
    root.replaceChildren(
      make("div", { class: "live-left" }, this.board.frame, this.board.tools),
      make("div", { class: "live-right" },
        form, this.training, this.error, this.answer, this.looks, this.note))
  }
  fail(error) {
    this.error.textContent = error.message
    this.looks.hidden = true
    for (const text of [this.answer, this.note]) text.textContent = ""
    this.board.preview(false)
  }
  async read(list) { // an address -> [{folder, weights, label}, …]
    const answer = await fetch(list)
    if (!answer.ok) throw Error(`${list}: the server answers ${answer.status}`)
    return (await answer.json()).map(entry => ({ ...entry, folder: new URL(entry.folder, list).href }))
  }
  async start(address) { // of a model's folder, or of a list of checkpoints
    try {
      const alone = !address.endsWith(".json")
      this.checkpoints = alone ? [{ folder: address, label: "" }] : await this.read(address)
      this.step.max = this.step.value = this.checkpoints.length - 1
      this.training.hidden = this.checkpoints.length < 2
    } catch (error) { return this.fail(unloaded(error)) }
    await this.open(this.checkpoints.length - 1)
  }
  async open(n) { // a checkpoint, which is read once
    const checkpoint = this.checkpoints[n]
    this.label.textContent = ` ${checkpoint.label}`
    this.step.setAttribute("aria-valuetext", checkpoint.label)
    this.wanted = n
    checkpoint.model ??= Promise.all([load(checkpoint.folder, checkpoint.weights),
      fetch(`${checkpoint.folder}/preprocessor_config.json`).then(answer => answer.json())])
    try {
      const [model, settings] = await checkpoint.model
      if (this.wanted != n) return // another one was chosen meanwhile
      Object.assign(this, { model, settings, vectors: null })
    } catch (error) {
      checkpoint.model = null
      return this.fail(unloaded(error))
    }
    const { num_hidden_layers: layers, num_attention_heads: heads } = this.model.config.text_config
    const offer = (select, count, name, ...first) => { // what was chosen stays, if it is still there
      const options = Array.from({ length: count }, (_, i) =>
        make("option", { value: i }, `${name} ${i + 1}`))
      const chosen = Math.max(0, select.selectedIndex)
      select.replaceChildren(...first, ...options)
      select.selectedIndex = chosen < select.length ? chosen : 0
    }
    offer(this.layer, layers, "layer")
    offer(this.head, heads, "head", make("option", { value: -1 }, "mean of the heads"))
    this.layer.hidden = layers < 2
    await this.ask()
  }
  check(question) {
    if (!question) throw Error("The question is empty: type one, or choose one.")
    if (question.length > LONGEST)
      throw Error(`The question is too long: it has ${question.length} letters, ${LONGEST} are read.`)
  }
  async ask() {
    const run = this.run = Symbol(), { model, settings, board } = this, question = this.question.value.trim()
    if (!model) return
    this.error.textContent = ""
    try {
      this.check(question)
      const start = performance.now(), kept = this.vectors
      this.vectors ??= model.encode(preprocess(board.pixels, model.config.vision_config.image_size, settings))
      let text = ""
      this.steps = []
      for (const step of model.stream(this.vectors, question)) {
        this.steps.push(step)
        text = model.tokenizer.decode(this.steps.map(({ id }) => id)).trim()
        if (!text.endsWith("\ufffd")) this.answer.textContent = text // half a letter waits
        await pause()
        if (this.run != run) return // something else was asked meanwhile
      }
      this.answer.textContent = text || "(nothing)"
      this.show(performance.now() - start, kept)
    } catch (error) { this.fail(error) }
  }
  show(time, kept) { // what the answer's tokens are, and how long they took
    const { tokenizer } = this.model, { texts } = tokenizer, decode = ids => tokenizer.decode(ids)
    this.token = 0
    this.tokens.replaceChildren(...this.steps.map(({ id }, n) => make("button", { type: "button",
      mouseenter: () => this.look(n), focus: () => this.look(n), click: () => this.look(n) },
      decode([id]).trim() || texts[id]?.match(/\w+/)?.[0] || "␣"))) // a special token's name
    this.looks.hidden = false
    this.seen.textContent = "Point at a token: where did it look?"
    if (this.looking) this.look(0) // the same picture: its shade goes on
    const picture = kept ? "the picture's vectors were kept" : "the picture included"
    this.note.textContent = `Answered on this computer in ${Math.round(time)} ms, ${picture}.`
  }
  look(n = this.token) {
    this.token = n
    this.looking = true
    const { looks, seen } = this.steps[n], heads = looks[this.layer.value], head = Number(this.head.value)
    const chosen = head < 0 ? heads : [heads[head]]
    const mean = chosen[0].map((_, i) => chosen.reduce((sum, weights) => sum + weights[i] / chosen.length, 0))
    const shares = mean.slice(...seen)
    this.board.look(shares)
    this.seen.textContent = `${percent(shares.reduce((a, b) => a + b))} of its attention goes to the picture.`
    Array.from(this.tokens.children, (button, i) => button.setAttribute("aria-pressed", i == n))
  }
}

const here = name => new URL(name, import.meta.url).href
document.head.append(make("link", { rel: "stylesheet", href: here("live.css") }))
for (const root of document.querySelectorAll("[data-live]")) {
  const live = new Live(root)
  const address = new URL(root.dataset.live || here("checkpoints.json"), document.baseURI).href
  const near = new IntersectionObserver(([entry]) => { // the model is fetched when the reader gets there
    if (!entry.isIntersecting) return
    near.disconnect()
    live.start(address)
  }, { rootMargin: "300px" })
  near.observe(root)
}
