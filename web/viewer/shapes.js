/** Masks in rows, as the node changes them after the threshold: widened and softened; and their outline. */

/**
 * A hard mask widened by so many pixels in every direction (a square neighbourhood).
 *
 * @param {Uint8Array} mask
 * @returns {Uint8Array}
 */
export function grow(mask, height, width, pixels) {
  if (pixels === 0) return mask
  const rows = widen(mask, height, width, width, 1, pixels)
  return widen(rows, width, height, 1, width, pixels)
}

/** Each of `lines` widened along itself: a line starts `step` after the one before, its pixels are `stride` apart. */
function widen(mask, lines, length, step, stride, pixels) {
  const out = new Uint8Array(mask.length)
  for (let line = 0; line < lines; line++) {
    const start = line * step
    let until = -1 // the last pixel that is reached from those before
    for (let i = 0, at = start; i < length; i++, at += stride) {
      if (mask[at]) {
        const from = Math.max(until + 1, i - pixels)
        until = Math.min(i + pixels, length - 1)
        for (let j = from; j <= until; j++) out[start + j * stride] = 1
      }
    }
  }
  return out
}

/**
 * A mask softened by a Gaussian of standard deviation `sigma` in pixels; edges replicate.
 *
 * @param {Uint8Array} mask
 * @returns {Float32Array}
 */
export function blur(mask, height, width, sigma) {
  const radius = Math.ceil(3 * sigma)
  const weights = Float64Array.from({ length: 2 * radius + 1 }, (_, i) => Math.exp(-0.5 * ((i - radius) / sigma) ** 2))
  const sum = weights.reduce((a, b) => a + b)
  const across = new Float32Array(mask.length)
  const padded = new Float64Array(width + 2 * radius)
  for (let y = 0; y < height; y++) {
    const row = mask.subarray(y * width, (y + 1) * width)
    padded.set(row, radius)
    padded.fill(row[0], 0, radius)
    padded.fill(row[width - 1], radius + width)
    for (let x = 0; x < width; x++) {
      let value = 0
      for (let i = 0; i < weights.length; i++) value += weights[i] * padded[x + i]
      across[y * width + x] = value / sum
    }
  }
  // Down, row by row of what is added: memory is read in order.
  const out = new Float32Array(mask.length)
  for (let y = 0; y < height; y++) {
    for (let i = 0; i < weights.length; i++) {
      const from = Math.min(Math.max(y + i - radius, 0), height - 1) * width
      const weight = weights[i] / sum
      for (let x = 0, at = y * width; x < width; x++, at++) out[at] += weight * across[from + x]
    }
  }
  return out
}

/** The share of an image that a mask covers. */
export function share(mask) {
  let sum = 0
  for (let i = 0; i < mask.length; i++) sum += mask[i]
  return sum / mask.length
}
