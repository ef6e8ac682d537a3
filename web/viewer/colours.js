/** The colour map inferno, after Matplotlib's table of this name (CC0), in nine even steps, as the map node has it. */

import { MOST } from './levels.js'

const STEPS = [
  [0, 0, 4],
  [31, 12, 72],
  [81, 18, 124],
  [127, 30, 108],
  [188, 55, 84],
  [227, 84, 51],
  [249, 142, 9],
  [246, 215, 70],
  [252, 254, 164],
]

/** Colours of the levels from 0 to `top`, `size` of them, as rgb in rows. */
export function table(size = 256) {
  const colours = new Uint8ClampedArray(3 * size)
  for (let i = 0; i < size; i++) {
    const place = (i / (size - 1)) * (STEPS.length - 1)
    const low = Math.min(Math.floor(place), STEPS.length - 2)
    for (let c = 0; c < 3; c++) colours[3 * i + c] = STEPS[low][c] + (place - low) * (STEPS[low + 1][c] - STEPS[low][c])
  }
  return colours
}

/**
 * A heat map, one pixel a cell, drawn into a canvas of its size.
 *
 * @param {HTMLCanvasElement} canvas
 * @param {import('./levels.js').Levels} map
 * @param {number} brightest the level of the brightest colour
 * @param {boolean} clear whether certain parts let the image through
 */
export function paint(canvas, map, brightest, clear) {
  canvas.width = map.columns
  canvas.height = map.rows
  const colours = table()
  const image = new ImageData(map.columns, map.rows)
  for (let i = 0; i < map.cells.length; i++) {
    const share = Math.min(map.cells[i] / Math.max(brightest, 1), 1)
    const colour = 3 * Math.round(255 * share)
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = colours[colour + c]
    image.data[4 * i + 3] = clear ? Math.round(255 * share) : 255
  }
  canvas.getContext('2d').putImageData(image, 0, 0)
}

/** The level that becomes the brightest colour: the 99.5 % quantile of the map. */
export function brightestOf({ cells }) {
  const counts = new Uint32Array(MOST + 1)
  for (const level of cells) counts[level]++
  let level = 0
  for (let left = Math.floor(0.995 * cells.length) - counts[0]; left >= 0; left -= counts[level]) level++
  return level
}
