/** The mask of an image as the page shows it: the node's own, or a smaller draft of it where the image is very large. */

import { abovePercentile, aboveStd, enlarge, mostUncertain } from './levels.js'
import { blur, grow, share } from './shapes.js'

/** Up to so many pixels, and so many products of a blur, the shown mask is the node's own. */
const MOST_PIXELS = 2 ** 20
const MOST_PRODUCTS = 2 ** 24

/**
 * How much smaller than the image a mask is drafted, so that it follows a slider.
 *
 * @param {[number, number]} size height and width of the image
 * @param {number} sigma of the blur
 */
export function draftScale([height, width], sigma) {
  const pixels = height * width
  const products = 2 * pixels * (sigma ? 6 * sigma + 1 : 0)
  return Math.min(1, Math.sqrt(MOST_PIXELS / pixels), products ? Math.cbrt(MOST_PRODUCTS / products) : 1)
}

/**
 * The map that masks of an image are made of.
 *
 * @param {import('./levels.js').Levels} map
 * @param {[number, number]} size height and width of the image
 */
export function ground(map, size, scale = 1) {
  const [height, width] = size.map((side) => Math.max(1, Math.round(side * scale)))
  return { ...enlarge(map, height, width), scale }
}

/**
 * @param {ReturnType<typeof ground>} map
 * @param {{threshold: string, area: number, value: number, percentile: number, grow: number, blur: number}} settings
 * @param {{top: number, percentiles: number[]}} batch
 * @returns {{mask: Float32Array | Uint8Array, height: number, width: number, marked: number, share: number}} `marked`
 *   is the share before growing
 */
export function maskOf(map, settings, batch) {
  const { height, width, scale } = map
  const hard = {
    'area share': () => mostUncertain(map, settings.area),
    value: () => aboveStd(map, settings.value, batch.top),
    percentile: () => abovePercentile(map, settings.percentile, batch.percentiles),
  }[settings.threshold]()
  const grown = grow(hard, height, width, Math.round(settings.grow * scale))
  const mask = settings.blur ? blur(grown, height, width, settings.blur * scale) : grown
  return { mask, height, width, marked: share(hard), share: share(mask) }
}
