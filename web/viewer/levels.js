/**
 * Maps of 16 bits and hard masks of them, to the pixel as `bayesdiff_core/reading/levels.py` computes them.
 *
 * Between the centres of two cells a row of an enlarged map is a straight line, so where it exceeds a limit is one run of
 * pixels, found by one division. All numbers are whole and below 2 ** 53, so that they, and the floors of their
 * quotients, are exact.
 */

import { Writer, firstPixels, size, union, without } from './runs.js'

export const MOST = 65535
const TENTHS = 10

/**
 * @typedef {{cells: Uint16Array, rows: number, columns: number}} Levels a map in rows
 * @typedef {{first: Uint32Array, way: Float64Array}} Places of each cell the first pixel that lies between it and the
 *   next; of each pixel its way there in `2 * pixels`-ths
 * @typedef {{map: Levels, height: number, width: number, down: Places, across: Places, some?: Float64Array}} Enlarged a
 *   map to be read at a size in pixels, in units of a level over `unit`; some of its values, once they were looked for
 * @typedef {import('./runs.js').Runs} Runs
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

/**
 * A map at a size in pixels, by the bilinear rule.
 *
 * @param {Levels} map
 * @param {[number, number]} size height and width
 * @returns {Enlarged}
 */
export function enlarge(map, [height, width]) {
  return { map, height, width, down: places(map.rows, height), across: places(map.columns, width) }
}

function places(cells, pixels) {
  const first = new Uint32Array(cells + 1).fill(pixels)
  const way = new Float64Array(pixels)
  for (let i = pixels - 1; i >= 0; i--) {
    const place = Math.max((2 * i + 1) * cells - pixels, 0)
    way[i] = place % (2 * pixels)
    first[Math.floor(place / (2 * pixels))] = i
  }
  // No pixel follows a cell of a map that is larger than its image.
  for (let cell = cells - 1; cell >= 0; cell--) first[cell] = Math.min(first[cell], first[cell + 1])
  return { first, way }
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
 * How many pixels exceed a limit, which is a whole number.
 *
 * @param {Enlarged} enlarged
 * @param {number} limit
 * @param {Writer} [runs] where they are written
 */
function count({ map, height, width, down, across }, limit, runs) {
  const { cells, rows, columns } = map
  const level = limit / unit(height, width)
  // Of a row of cells and the next: after which of them something exceeds the limit, and after which all does.
  const ways = new Uint32Array(columns)
  const full = new Uint8Array(columns)
  let sum = 0
  for (let cell = 0; cell < rows; cell++) {
    const top = cell * columns
    const bottom = Math.min(cell + 1, rows - 1) * columns
    let found = 0
    for (let x = 0; x < columns; x++) {
      const next = x + 1 < columns ? x + 1 : x
      const [a, b, c, d] = [cells[top + x], cells[top + next], cells[bottom + x], cells[bottom + next]]
      if (a <= level && b <= level && c <= level && d <= level) continue
      full[x] = a > level && b > level && c > level && d > level ? 1 : 0
      ways[found++] = x
    }
    for (let y = down.first[cell]; y < down.first[cell + 1]; y++) {
      const low = down.way[y]
      const high = 2 * height - low
      for (let i = 0; i < found; i++) {
        const x = ways[i]
        let from = across.first[x]
        let to = across.first[x + 1]
        if (full[x] === 0) {
          const next = x + 1 < columns ? x + 1 : x
          const here = cells[top + x] * high + cells[bottom + x] * low
          const rise = cells[top + next] * high + cells[bottom + next] * low - here
          const left = here * 2 * width - limit
          const right = left + rise * 2 * width
          if (left > 0) {
            if (right <= 0) to = Math.min(to, after(Math.ceil(left / -rise) - 1, x, columns, width))
          } else if (right > 0) from = Math.max(from, after(Math.floor(-left / rise), x, columns, width))
          else continue
        }
        if (from >= to) continue
        sum += to - from
        if (runs) runs.add(from, to)
      }
      if (runs) runs.endRow()
    }
  }
  return sum
}

/** The first pixel that is further than `way` on its way from a cell to the next. */
const after = (way, cell, cells, pixels) => Math.floor(((way + pixels + 2 * pixels * cell) / cells - 1) / 2) + 1

/**
 * Hard mask of what exceeds a limit in the units of the enlarged map.
 *
 * @param {Enlarged} enlarged
 * @param {number} limit
 * @returns {Runs}
 */
export function above(enlarged, limit) {
  const runs = new Writer(enlarged.height, enlarged.width)
  count(enlarged, Math.floor(Math.min(limit, highest(enlarged))), runs)
  return runs
}

const highest = ({ height, width }) => MOST * unit(height, width)

/** Hard mask of what exceeds a standard deviation; `top` is that of the level MOST. */
export function aboveStd(enlarged, std, top) {
  return above(enlarged, top === 0 ? Infinity : (std / top) * MOST * unit(enlarged.height, enlarged.width))
}

/** Hard mask of what exceeds a percentile of all maps, read to a tenth; `percentiles` are 1001 levels. */
export function abovePercentile(enlarged, percentile, percentiles) {
  const level = percentiles[Math.floor(percentile * TENTHS + 0.5)]
  return above(enlarged, level * unit(enlarged.height, enlarged.width))
}

/**
 * Hard mask of the `area` share with the highest values: of equal ones the first, row by row; of no uncertainty none.
 *
 * @param {Enlarged} enlarged
 * @returns {Runs}
 */
export function mostUncertain(enlarged, area) {
  const most = Math.ceil(area * enlarged.height * enlarged.width)
  if (most === 0) return above(enlarged, Infinity)
  const limit = lowestLimit(enlarged, most)
  const higher = above(enlarged, limit)
  const left = most - size(higher)
  if (left === 0 || limit === 0) return higher
  return union(higher, firstPixels(without(above(enlarged, limit - 1), higher), left))
}

/** So few pixels are looked at one by one. */
const FEW = 2 ** 16

/** The lowest limit that at most so many pixels exceed, or another with the same mask. */
function lowestLimit(enlarged, most) {
  const pixels = enlarged.height * enlarged.width
  const some = (enlarged.some ??= sampled(enlarged))
  const near = (share) => some[Math.round(Math.min(Math.max(share, 0), 1) * (some.length - 1))]
  const share = 1 - most / pixels
  const step = 1 / some.length
  const isTied = near(share - step) === near(share) || near(share + step) === near(share)
  const first = isTied ? [near(share), near(share) - 1] : [-0.01, 0.01, -0.002, 0.002].map((by) => near(share + by))
  let [low, high] = [-1, highest(enlarged)]
  let [ofLow, ofHigh] = [pixels, 0]
  for (let turn = 0; ofLow - ofHigh > FEW && high - low > 1; turn++) {
    const inProportion = low + ((high - low) * (ofLow - most)) / (ofLow - ofHigh)
    const guess = first[turn] ?? Math.floor(turn % 2 ? inProportion : (low + high) / 2)
    if (guess <= low || guess >= high) continue
    const found = count(enlarged, guess)
    if (found === most) return guess
    if (found < most) [high, ofHigh] = [guess, found]
    else [low, ofLow] = [guess, found]
  }
  return high - low > 1 ? between(enlarged, low, high)[most - ofHigh - 1] : high
}

/** The values of some of the pixels, evenly spread, in rising order. */
function sampled({ map, height, width }) {
  const [rows, columns] = [height, width].map((side) => Math.min(side, 128))
  return Float64Array.from({ length: rows * columns }, (_, i) =>
    valueAt(
      map,
      height,
      width,
      Math.floor(((Math.floor(i / columns) + 0.5) / rows) * height),
      Math.floor((((i % columns) + 0.5) / columns) * width),
    ),
  ).sort()
}

/** The values above one limit and not above another, the highest first. */
function between(enlarged, low, high) {
  const { map, height, width } = enlarged
  const { starts, ends } = without(above(enlarged, low), above(enlarged, high))
  const values = []
  for (let y = 0; y < height; y++)
    for (let i = starts[y]; i < starts[y + 1]; i += 2)
      for (let x = ends[i]; x < ends[i + 1]; x++) values.push(valueAt(map, height, width, y, x))
  return Float64Array.from(values).sort().reverse()
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
