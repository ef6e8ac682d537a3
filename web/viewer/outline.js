/** A mask drawn over an image: a light line with a dark edge around it, and what a soft mask leaves out darkened. */

const LINE = 0xffffffff
const EDGE = 0xff000000
const SHADE = 64

/**
 * @param {ImageData} image cleared and drawn into
 * @param {{mask: ArrayLike<number>, height: number, width: number}} mask
 * @param {{left: number, top: number, width: number, height: number}} box where the image lies, in pixels of `image`
 * @param {number} thick pixels of the line
 */
export function drawOutline(image, mask, box, thick) {
  const pixels = new Uint32Array(image.data.buffer)
  pixels.fill(0)
  const columns = places(image.width, box.left, box.width, mask.width)
  const rows = places(image.height, box.top, box.height, mask.height)
  const shades = Uint32Array.from({ length: 256 }, (_, value) => Math.round((SHADE * (255 - value)) / 255) << 24)
  const inside = new Uint8Array(pixels.length)
  const { width, height } = image
  for (let y = 0, i = 0; y < height; y++) {
    const row = rows[y] * mask.width
    for (let x = 0; x < width; x++, i++) {
      if (row < 0 || columns[x] < 0) continue
      const value = mask.mask[row + columns[x]]
      inside[i] = value >= 0.5 ? 1 : 0
      pixels[i] = shades[(255 * value) | 0]
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

/** For each pixel of a row, the place of a mask of `size` that lies there, or -1. */
function places(pixels, start, length, size) {
  return Int32Array.from({ length: pixels }, (_, i) => {
    const place = Math.floor(((i + 0.5 - start) / length) * size)
    return place >= 0 && place < size ? place : -1
  })
}
