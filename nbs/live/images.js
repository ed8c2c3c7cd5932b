// A file becomes pixels, and these become the square that the model reads: Pillow's, to the last bit.
const MAX_PIXELS = 89_478_485 // as in the Python module `images`

export async function open_image(file) { // -> ImageData, upright, what is transparent on white
  const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" }).catch(() => {
    throw Error(`${file.name} is not a picture that this browser can open: choose a PNG, JPEG or WebP file`)
  })
  const { width, height } = bitmap
  if (width * height > MAX_PIXELS)
    throw Error(`${file.name} has ${width} × ${height} pixels, and at most ${MAX_PIXELS} are read: shrink it`)
  const context = Object.assign(document.createElement("canvas"), { width, height })
    .getContext("2d", { alpha: false, willReadFrequently: true })
  context.fillStyle = "#fff"
  context.fillRect(0, 0, width, height)
  context.drawImage(bitmap, 0, 0)
  return context.getImageData(0, 0, width, height)
}

// Pillow's filters by number: how far they reach, and how much a pixel at distance x counts
const sinc = x => x ? Math.sin(x * Math.PI) / (x * Math.PI) : 1
const FILTERS = {
  1: [3, x => x < 3 ? sinc(x) * sinc(x / 3) : 0],
  2: [1, x => Math.max(0, 1 - x)],
  3: [2, x => x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0],
}

// For each new pixel: the first old one that counts, and the weights of this and those behind it
function coefficients(size, wanted, [support, filter]) {
  const scale = size / wanted, stretch = Math.max(scale, 1) // a smaller picture: the filter reaches further
  return Array.from({ length: wanted }, (_, n) => {
    const centre = (n + 0.5) * scale
    const first = Math.max(0, Math.floor(centre - support * stretch + 0.5))
    const end = Math.min(size, Math.floor(centre + support * stretch + 0.5))
    const weights = Array.from({ length: end - first }, (_, i) =>
      filter(Math.abs((i + first - centre + 0.5) * (1 / stretch))))
    const sum = weights.reduce((a, b) => a + b)
    return [first, Int32Array.from(weights, w => Math.trunc(w / sum * 2 ** 22 + 0.5 * Math.sign(w)))]
  })
}

// Writes one pixel, the weighted sum of old ones. Numbers are whole and below 2³¹; `| 0` keeps them so: fast.
function weigh(pixels, from, step, weights, out, to) {
  let red = 2 ** 21, green = red, blue = red // a half, to round
  for (let i = 0; i < weights.length; i++, from += step) {
    const pixel = pixels[from], weight = weights[i] // red is a pixel's lowest byte
    red = red + Math.imul(pixel & 255, weight) | 0
    green = green + Math.imul(pixel >> 8 & 255, weight) | 0
    blue = blue + Math.imul(pixel >> 16 & 255, weight) | 0
  }
  out[to] = red >> 22 // what is below 0 or above 255 is clipped
  out[to + 1] = green >> 22
  out[to + 2] = blue >> 22
  out[to + 3] = 255
}

function along(image, wanted, filter, rows) { // resizes rows to `wanted` pixels, or columns
  const { data, width, height } = image, pixels = new Uint32Array(data.buffer)
  const resized = new ImageData(rows ? wanted : width, rows ? height : wanted)
  const [lines, size, line_step, step] = rows ? [height, width, width, 1] : [width, height, 1, width]
  const [out_line, out_step] = rows ? [wanted * 4, 4] : [4, width * 4]
  coefficients(size, wanted, filter).forEach(([first, weights], n) => {
    for (let line = 0; line < lines; line++) {
      const from = line * line_step + first * step
      weigh(pixels, from, step, weights, resized.data, line * out_line + n * out_step)
    }
  })
  return resized
}

export function resize(image, width, height, resample = 3) { // ImageData, in and out
  const filter = FILTERS[resample], down = image.height - height
  if (!filter) throw Error(`resample is ${resample}: save the processor with one of ${Object.keys(FILTERS)}`)
  const columns_first = down > 0 && down > 2 * (image.width - width) // as Pillow since version 13
  const once = (pixels, rows) => along(pixels, rows ? width : height, filter, rows)
  return once(once(image, !columns_first), columns_first)
}

// ImageData -> (3, side, side), as preprocessor_config.json says
export function preprocess(image, side, settings) {
  const { data } = resize(image, side, side, settings.resample), pixels = new Float32Array(3 * side * side)
  const { image_mean: mean, image_std: std } = settings
  for (let channel = 0; channel < 3; channel++) for (let n = 0; n < side * side; n++)
    pixels[channel * side * side + n] = (data[n * 4 + channel] / 255 - mean[channel]) / std[channel]
  return pixels
}
