/** A mask drawn over an image: a light line with a dark edge around it, and what a soft mask leaves out darkened. */

import { sample } from './runs.js'

const LINE = 0xffffffff
const EDGE = 0xff000000
const SHADE = 64
/** A softened mask is looked at so often on the way of its standard deviation: to half a shade of 256. */
const LOOKS = 4

/**
 * @param {ImageData} image cleared and drawn into
 * @param {Pick<import('./mask.js').Mask, 'runs' | 'sigma'>} mask
 * @param {{left: number, top: number, width: number, height: number}} box where the image lies, in pixels of `image`
 * @param {number} thick pixels of the line
 */
export function drawOutline(image, { runs, sigma }, box, thick) {
  const { width, height } = image
  const pixels = new Uint32Array(image.data.buffer)
  pixels.fill(0)
  const columns = places(width, box.left, box.width, runs.width)
  const rows = places(height, box.top, box.height, runs.height)
  const values = sample(runs, sigma, rows.at, columns.at, Math.max(1, Math.floor(sigma / LOOKS)))
  const shades = Uint32Array.from({ length: 256 }, (_, value) => Math.round((SHADE * (255 - value)) / 255) << 24)
  const inside = new Uint8Array(pixels.length)
  for (let y = 0, k = 0; y < rows.at.length; y++) {
    for (let x = 0, i = (rows.from + y) * width + columns.from; x < columns.at.length; x++, i++, k++) {
      inside[i] = values[k] >= 0.5 ? 1 : 0
      pixels[i] = shades[(255 * values[k]) | 0]
    }
  }
  for (let y = 0, i = 0; y < height; y++) {
    const below = y + 1 < height ? width : 0
    for (let x = 0; x < width; x++, i++) {
      if (inside[i] !== inside[i + 1] && x + 1 < width) line(pixels, inside, image, y, x, 0, 1, thick)
      if (inside[i] !== inside[i + below]) line(pixels, inside, image, y, x, 1, 0, thick)
    }
  }
}

/** Between a pixel and the next: the line on the side inside, its edge on the other. */
function line(pixels, inside, image, y, x, down, across, thick) {
  const stride = down * image.width + across
  const here = y * image.width + x
  const room = down ? y : x
  const most = (down ? image.height : image.width) - 1
  for (let step = 0; step < thick; step++) {
    if (room - step >= 0) put(pixels, here - step * stride, inside[here])
    if (room + 1 + step <= most) put(pixels, here + (1 + step) * stride, !inside[here])
  }
}

function put(pixels, at, isInside) {
  if (isInside) pixels[at] = LINE
  else if (pixels[at] !== LINE) pixels[at] = EDGE
}

/** Of the pixels of a row from `from` on, the places of a mask of `size` that lie there. */
function places(pixels, start, length, size) {
  const place = (i) => Math.floor(((i + 0.5 - start) / length) * size)
  let from = 0
  while (from < pixels && place(from) < 0) from++
  let to = from
  while (to < pixels && place(to) < size) to++
  return { from, at: Int32Array.from({ length: to - from }, (_, i) => place(from + i)) }
}
