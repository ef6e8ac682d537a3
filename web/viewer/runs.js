/**
 * Hard masks as runs of pixels, row by row: exact, and small enough to follow a slider at any size. What the node does to
 * a mask after the threshold: widened, softened, and the share of the image that it covers.
 */

/** Takes the runs of a mask row by row, from left to right; of those that touch it makes one. */
export class Writer {
  constructor(height, width) {
    this.height = height
    this.width = width
    this.starts = new Uint32Array(height + 1)
    this.ends = new Uint32Array(1024)
    this.rows = 0
    this.end = 0
  }

  /** The pixels `from` to `to`, without `to`. */
  add(from, to) {
    if (this.end > this.starts[this.rows] && this.ends[this.end - 1] >= from) {
      if (this.ends[this.end - 1] < to) this.ends[this.end - 1] = to
      return
    }
    if (this.end === this.ends.length) {
      const larger = new Uint32Array(2 * this.end)
      larger.set(this.ends)
      this.ends = larger
    }
    this.ends[this.end++] = from
    this.ends[this.end++] = to
  }

  endRow() {
    this.starts[++this.rows] = this.end
  }
}

/**
 * @typedef {Pick<Writer, 'height' | 'width' | 'starts' | 'ends'>} Runs where a mask is set: of row y, `ends` from
 *   `starts[y]` to `starts[y + 1]` are the first pixel of a run and the first one after it, in turns
 */

/**
 * How many pixels of some rows a mask covers.
 *
 * @param {Runs} mask
 */
export function size({ starts, ends }, from = 0, to = starts.length - 1) {
  let sum = 0
  for (let i = starts[from]; i < starts[to]; i += 2) sum += ends[i + 1] - ends[i]
  return sum
}

/**
 * What is set in one mask or in another.
 *
 * @param {Runs} one
 * @param {Runs} other
 * @param {number} height how many rows of them
 * @param {number} shift of row y, the row `y + shift` of the one and `y + otherShift` of the other are looked at
 * @returns {Runs}
 */
export function union(one, other, height = one.height, shift = 0, otherShift = 0) {
  const found = new Writer(height, one.width)
  for (let y = 0; y < height; y++, found.endRow()) {
    let [i, toI] = rowOf(one, y + shift)
    let [j, toJ] = rowOf(other, y + otherShift)
    while (i < toI || j < toJ) {
      if (j >= toJ || (i < toI && one.ends[i] <= other.ends[j])) found.add(one.ends[i++], one.ends[i++])
      else found.add(other.ends[j++], other.ends[j++])
    }
  }
  return found
}

/** Where a row begins and ends in `ends`; nothing is set in rows above the first. */
const rowOf = ({ starts }, y) => [starts[Math.max(y, 0)], starts[Math.max(y + 1, 0)]]

/**
 * What is set in a mask and not in another, which is a part of it.
 *
 * @param {Runs} mask
 * @param {Runs} part
 * @returns {Runs}
 */
export function without(mask, part) {
  const found = new Writer(mask.height, mask.width)
  for (let y = 0; y < mask.height; y++, found.endRow()) {
    let [j, toJ] = rowOf(part, y)
    for (let [i, toI] = rowOf(mask, y); i < toI; i += 2) {
      let from = mask.ends[i]
      for (; j < toJ && part.ends[j] < mask.ends[i + 1]; j += 2) {
        if (from < part.ends[j]) found.add(from, part.ends[j])
        from = part.ends[j + 1]
      }
      if (from < mask.ends[i + 1]) found.add(from, mask.ends[i + 1])
    }
  }
  return found
}

/**
 * The first pixels of a mask, row by row.
 *
 * @param {Runs} mask
 * @returns {Runs}
 */
export function firstPixels(mask, pixels) {
  const found = new Writer(mask.height, mask.width)
  for (let y = 0; y < mask.height; y++, found.endRow()) {
    for (let [i, to] = rowOf(mask, y); i < to && pixels > 0; i += 2) {
      const length = Math.min(mask.ends[i + 1] - mask.ends[i], pixels)
      found.add(mask.ends[i], mask.ends[i] + length)
      pixels -= length
    }
  }
  return found
}

/**
 * A mask widened by so many pixels in every direction (a square neighbourhood).
 *
 * @param {Runs} mask
 * @returns {Runs}
 */
export function grow(mask, pixels) {
  if (pixels === 0) return mask
  const { height, width, starts, ends } = mask
  const wider = new Writer(height + pixels, width)
  for (let y = 0; y < height + pixels; y++, wider.endRow())
    for (let i = starts[y]; i < starts[y + 1]; i += 2)
      wider.add(Math.max(ends[i] - pixels, 0), Math.min(ends[i + 1] + pixels, width))
  // Each row with those above it, twice as many at a time; at last with as many below.
  let found = /** @type {Runs} */ (wider)
  let reach = 1
  for (; reach <= pixels; reach *= 2) found = union(found, found, found.height, 0, -reach)
  return union(found, found, height, pixels, reach - 1 - pixels)
}

/**
 * How a Gaussian of standard deviation `sigma` in pixels softens: `sums[i]` is the weight before the i-th of its pixels.
 */
function gaussian(sigma) {
  const radius = Math.ceil(3 * sigma)
  const weights = Float64Array.from({ length: 2 * radius + 1 }, (_, i) => Math.exp(-0.5 * ((i - radius) / sigma) ** 2))
  const sum = weights.reduce((a, b) => a + b)
  const sums = new Float64Array(weights.length + 1)
  weights.forEach((weight, i) => {
    weights[i] = weight / sum
    sums[i + 1] = sums[i] + weights[i]
  })
  return { radius, weights, sums, before: (i) => sums[Math.min(Math.max(i, 0), weights.length)] }
}

/**
 * The share of an image that a mask covers, softened or not; edges replicate.
 *
 * @param {Runs} mask
 * @param {number} sigma
 */
export function share(mask, sigma = 0) {
  const { height, width, starts, ends } = mask
  if (sigma === 0) return size(mask) / (height * width)
  const { radius, before } = gaussian(sigma)
  // What each pixel of a row gives to all of the row, and from this the sum of those before it.
  const given = (length) => {
    const sums = new Float64Array(length + 1)
    for (let x = 0; x <= radius; x++) sums[1] += x < length ? before(radius + 1 - x) : 0
    for (let i = 1; i < length; i++) sums[i + 1] = sums[i] + before(i + radius + 1) - before(i + radius + 1 - length)
    sums[length] = length
    return sums
  }
  const [down, across] = [given(height), given(width)]
  let sum = 0
  for (let y = 0; y < height; y++) {
    let row = 0
    for (let i = starts[y]; i < starts[y + 1]; i += 2) row += across[ends[i + 1]] - across[ends[i]]
    sum += row * (down[y + 1] - down[y])
  }
  return sum / (height * width)
}

/**
 * A mask where it is looked at, softened or not.
 *
 * @param {Runs} mask
 * @param {number} sigma
 * @param {Int32Array} rows of pixels, in rising order
 * @param {Int32Array} columns of pixels, in rising order
 * @param {number} apart a softened mask is computed at pixels so far apart, and in straight lines between them
 * @returns {Float32Array} row by row, from 0 to 1
 */
export function sample(mask, sigma, rows, columns, apart = 1) {
  const out = new Float32Array(rows.length * columns.length)
  if (sigma === 0) {
    each(rows, out, hardRows(mask, columns))
    return out
  }
  const [down, across] = [between(rows, apart), between(columns, apart)]
  const length = across.at.length
  const found = new Float32Array(down.at.length * length)
  each(down.at, found, softRows(mask, sigma, down.at, across.at))
  for (let i = 0, k = 0; i < rows.length; i++) {
    const [y, low] = [down.first[i] * length, down.way[i]]
    for (let j = 0; j < columns.length; j++, k++) {
      const [here, way] = [y + across.first[j], across.way[j]]
      const top = way ? (1 - way) * found[here] + way * found[here + 1] : found[here]
      if (!low) out[k] = top
      else {
        const bottom = way ? (1 - way) * found[here + length] + way * found[here + length + 1] : found[here + length]
        out[k] = (1 - low) * top + low * bottom
      }
    }
  }
  return out
}

/** Calls `row` for each row of `out`; equal ones are copied. */
function each(rows, out, row) {
  const length = out.length / rows.length
  for (let i = 0; i < rows.length; i++) {
    if (rows[i] === rows[i - 1]) out.copyWithin(i * length, (i - 1) * length, i * length)
    else row(rows[i], out.subarray(i * length, (i + 1) * length))
  }
}

/**
 * Pixels `at` so far apart, and of each place the first of the two that it lies between and its way to the second; the
 * places themselves where these are no more.
 */
function between(places, apart) {
  const start = places[0]
  const count = Math.ceil((places[places.length - 1] - start) / apart) + 1
  if (!(count < places.length))
    return { at: places, first: places.map((_, i) => i), way: new Float32Array(places.length) }
  return {
    at: Int32Array.from({ length: count }, (_, i) => start + i * apart),
    first: places.map((place) => Math.floor((place - start) / apart)),
    way: Float32Array.from(places, (place) => ((place - start) % apart) / apart),
  }
}

function hardRows({ starts, ends }, columns) {
  return (y, out) => {
    for (let i = starts[y], x = 0; i < starts[y + 1]; i += 2) {
      while (columns[x] < ends[i]) x++
      for (; columns[x] < ends[i + 1]; x++) out[x] = 1
    }
  }
}

/** First every row that is needed across, then each that is asked for down. */
function softRows({ height, width, starts, ends }, sigma, rows, columns) {
  const { radius, weights, before } = gaussian(sigma)
  const top = Math.max((rows[0] ?? 0) - radius, 0)
  const bottom = Math.min((rows.at(-1) ?? 0) + radius, height - 1)
  const across = []
  for (let y = top; y <= bottom; y++) {
    if (starts[y] === starts[y + 1]) {
      across.push(null)
      continue
    }
    const row = new Float32Array(columns.length)
    for (let i = starts[y], first = 0; i < starts[y + 1]; i += 2) {
      const from = ends[i] === 0 ? -Infinity : ends[i] + radius
      const to = ends[i + 1] === width ? Infinity : ends[i + 1] + radius
      while (columns[first] + 2 * radius < from) first++
      for (let x = first; columns[x] < to; x++) row[x] += before(to - columns[x]) - before(from - columns[x])
    }
    across.push(row)
  }
  return (y, out) => {
    for (let i = 0; i < weights.length; i++) {
      const row = across[Math.min(Math.max(y + i - radius, top), bottom) - top]
      if (row) for (let x = 0; x < out.length; x++) out[x] += weights[i] * row[x]
    }
  }
}
