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
 * A mask softened with a standard deviation of `sigma` pixels; edges replicate.
 *
 * Three running means in place of the node's Gaussian, from which they differ by about a hundredth.
 *
 * @param {Uint8Array | Float32Array} mask
 * @returns {Float32Array}
 */
export function blur(mask, height, width, sigma) {
  let from = Float32Array.from(mask)
  if (sigma === 0) return from
  // Three means over 2 r + 1 pixels have the variance of the Gaussian; r need not be whole.
  const radius = (Math.sqrt(4 * sigma * sigma + 1) - 1) / 2
  for (let round = 0; round < 3; round++) {
    from = average(from, height, width, width, 1, radius)
    from = average(from, width, height, 1, width, radius)
  }
  return from
}

/** Running means along each of `lines`; the two ends of the window count by the part of them that it covers. */
function average(values, lines, length, step, stride, radius) {
  const out = new Float32Array(values.length)
  const whole = Math.floor(radius)
  const part = radius - whole
  for (let line = 0; line < lines; line++) {
    const start = line * step
    const at = (i) => values[start + Math.min(Math.max(i, 0), length - 1) * stride]
    let sum = 0
    for (let i = -whole; i <= whole; i++) sum += at(i)
    for (let i = 0; i < length; i++) {
      out[start + i * stride] = (sum + part * (at(i - whole - 1) + at(i + whole + 1))) / (2 * radius + 1)
      sum += at(i + whole + 1) - at(i - whole)
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
