/**
 * Maps of 16 bits and hard masks of them, to the pixel as `bayesdiff_core/reading/levels.py` computes them.
 *
 * All numbers are whole and below 2 ** 53, so that they are exact.
 */

export const MOST = 65535
const TENTHS = 10

/**
 * @typedef {{cells: Uint16Array, rows: number, columns: number}} Levels a map in rows
 * @typedef {{values: Float64Array, levels: Uint16Array, above: Uint32Array, height: number, width: number}} Enlarged
 *   values in units of a level over `unit`, the whole levels in them, and how many pixels are above each level
 */

/**
 * The levels of a file of little-endian 16-bit numbers.
 *
 * @param {ArrayBuffer} data
 * @param {[number, number]} cells rows and columns
 * @returns {Levels}
 */
export function readLevels(data, [rows, columns]) {
  if (data.byteLength !== 2 * rows * columns) throw new RangeError("the map's file is cut off")
  const view = new DataView(data)
  const cells = new Uint16Array(rows * columns)
  for (let i = 0; i < cells.length; i++) cells[i] = view.getUint16(2 * i, true)
  return { cells, rows, columns }
}

/** What one level is in a map enlarged to that size. */
export const unit = (height, width) => 4 * height * width

/** Of each pixel of a row: the two cells that it lies between, and its way to the second in `2 * pixels`-ths. */
function neighbours(cells, pixels) {
  const first = new Int32Array(pixels)
  const second = new Int32Array(pixels)
  const way = new Float64Array(pixels)
  for (let i = 0; i < pixels; i++) {
    const place = Math.max((2 * i + 1) * cells - pixels, 0)
    first[i] = Math.floor(place / (2 * pixels))
    second[i] = Math.min(first[i] + 1, cells - 1)
    way[i] = place % (2 * pixels)
  }
  return { first, second, way }
}

/**
 * A map at a size in pixels, by the bilinear rule.
 *
 * @param {Levels} map
 * @returns {Enlarged}
 */
export function enlarge(map, height, width) {
  const down = neighbours(map.rows, height)
  const across = neighbours(map.columns, width)
  const values = new Float64Array(height * width)
  const levels = new Uint16Array(values.length)
  const above = new Uint32Array(MOST + 1)
  const one = unit(height, width)
  const row = new Float64Array(map.columns)
  for (let y = 0, i = 0; y < height; y++) {
    const top = down.first[y] * map.columns
    const bottom = down.second[y] * map.columns
    const low = down.way[y]
    const high = 2 * height - low
    for (let x = 0; x < row.length; x++) row[x] = map.cells[top + x] * high + map.cells[bottom + x] * low
    for (let x = 0; x < width; x++, i++) {
      const way = across.way[x]
      values[i] = row[across.first[x]] * (2 * width - way) + row[across.second[x]] * way
      levels[i] = values[i] / one
      above[levels[i]]++
    }
  }
  for (let level = MOST, sum = 0; level >= 0; level--) [above[level], sum] = [sum, sum + above[level]]
  return { values, levels, above, height, width }
}

/** The value of one pixel of a map enlarged to a size, without enlarging all of it. */
export function valueAt(map, height, width, y, x) {
  const part = (cells, pixels, i) => {
    const place = Math.max((2 * i + 1) * cells - pixels, 0)
    const first = Math.floor(place / (2 * pixels))
    return [first, Math.min(first + 1, cells - 1), place % (2 * pixels)]
  }
  const [top, bottom, low] = part(map.rows, height, y)
  const [left, right, way] = part(map.columns, width, x)
  const column = (c) =>
    map.cells[top * map.columns + c] * (2 * height - low) + map.cells[bottom * map.columns + c] * low
  return column(left) * (2 * width - way) + column(right) * way
}

/**
 * The k-th largest of whole numbers that are not negative, k from 1: its place is narrowed down by counting.
 *
 * @param {Float64Array} values
 */
export function kthLargest(values, k) {
  const BINS = 4096
  let low = values.reduce((least, value) => (value < least ? value : least), Infinity)
  let width = 1 - low + values.reduce((most, value) => (value > most ? value : most), 0)
  let beyond = 0 // how many are above what is still looked at
  while (width > 1) {
    const step = Math.ceil(width / BINS)
    const counts = new Uint32Array(BINS)
    for (let i = 0; i < values.length; i++) {
      const place = values[i] - low
      if (place >= 0 && place < width) counts[Math.floor(place / step)]++
    }
    let bin = BINS - 1
    while (beyond + counts[bin] < k) beyond += counts[bin--]
    low += bin * step
    width = Math.min(step, width - bin * step)
  }
  return low
}

/**
 * Hard mask of the `area` share with the highest values: of equal ones the first, row by row; of no uncertainty none.
 *
 * @param {Enlarged} map
 * @returns {Uint8Array}
 */
export function mostUncertain({ values, levels, above }, area) {
  const mask = new Uint8Array(values.length)
  const count = Math.ceil(area * values.length)
  if (count === 0) return mask
  // The level that the last of them lies in, and the pixels of that level.
  const level = above.findIndex((beyond) => beyond < count)
  const places = new Uint32Array((level ? above[level - 1] : values.length) - above[level])
  for (let i = 0, found = 0; i < values.length; i++) {
    if (levels[i] > level) mask[i] = 1
    else if (levels[i] === level) places[found++] = i
  }
  let left = count - above[level]
  const limit = kthLargest(
    Float64Array.from(places, (i) => values[i]),
    left,
  )
  for (const i of places) left -= mask[i] = values[i] > limit ? 1 : 0
  for (const i of places) if (left > 0 && limit > 0 && values[i] === limit) left -= mask[i] = 1
  return mask
}

/** Hard mask of what exceeds a limit in the units of the map. */
export function above({ values }, limit) {
  const mask = new Uint8Array(values.length)
  for (let i = 0; i < values.length; i++) mask[i] = values[i] > limit ? 1 : 0
  return mask
}

/** Hard mask of what exceeds a standard deviation; `top` is that of the level MOST. */
export function aboveStd(map, std, top) {
  return above(map, top === 0 ? Infinity : (std / top) * MOST * unit(map.height, map.width))
}

/** Hard mask of what exceeds a percentile of all maps, read to a tenth; `percentiles` are 1001 levels. */
export function abovePercentile(map, percentile, percentiles) {
  return above(map, percentiles[Math.floor(percentile * TENTHS + 0.5)] * unit(map.height, map.width))
}

/** Above how many percent of all cells of the batch a level lies, in tenths. */
export function percentileOf(level, percentiles) {
  let low = 0
  let high = percentiles.length
  while (low < high) {
    const middle = (low + high) >> 1
    if (percentiles[middle] < level) low = middle + 1
    else high = middle
  }
  return Math.min(low, percentiles.length - 1) / TENTHS
}
