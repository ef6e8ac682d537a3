/** The mask of an image as the page shows it: the node's own, or a smaller draft of it where the image is very large. */

import { abovePercentile, aboveStd, enlarge, mostUncertain } from './levels.js'
import { blur, grow, share } from './shapes.js'

/** Up to so many pixels the shown mask is the node's own. */
const MOST_PIXELS = 2 ** 21

/**
 * The map that masks of an image are made of.
 *
 * @param {import('./levels.js').Levels} map
 * @param {[number, number]} size height and width of the image
 */
export function ground(map, [height, width]) {
  const scale = Math.min(1, Math.sqrt(MOST_PIXELS / (height * width)))
  const small = [height, width].map((side) => Math.max(1, Math.round(side * scale)))
  return { ...enlarge(map, small[0], small[1]), scale }
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
