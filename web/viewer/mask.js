/** The mask of an image as the node makes it, and a draft of it for a slider that is faster than the page. */

import { abovePercentile, aboveStd, enlarge, mostUncertain } from './levels.js'
import { grow, share, size } from './runs.js'

/** Pixels of a draft. */
const DRAFT = 2 ** 18

/**
 * @typedef {{threshold: string, area: number, value: number, percentile: number, grow: number, blur: number}} MaskSettings
 * @typedef {{runs: import('./runs.js').Runs, sigma: number, marked: number, share: number}} Mask hard, and how it is to be
 *   softened; `marked` is the share of the image before growing, `share` the one after all
 */

/**
 * What masks of an image are made of.
 *
 * @param {import('./levels.js').Levels} map
 * @param {[number, number]} size height and width of the image
 */
export function ground(map, [height, width]) {
  const scale = Math.min(1, Math.sqrt(DRAFT / (height * width)))
  const smaller = (side) => Math.max(1, Math.round(side * scale))
  return { exact: enlarge(map, [height, width]), draft: enlarge(map, [smaller(height), smaller(width)]), scale }
}

/**
 * @param {ReturnType<typeof ground>} ground
 * @param {MaskSettings} settings
 * @param {{top: number, percentiles: number[]}} batch
 * @param {boolean} [isDraft] whether a smaller one will do
 * @returns {Mask}
 */
export function maskOf({ exact, draft, scale }, settings, batch, isDraft = false) {
  const map = isDraft ? draft : exact
  const by = isDraft ? scale : 1
  const hard = {
    'area share': () => mostUncertain(map, settings.area),
    value: () => aboveStd(map, settings.value, batch.top),
    percentile: () => abovePercentile(map, settings.percentile, batch.percentiles),
  }[settings.threshold]()
  const runs = grow(hard, Math.round(settings.grow * by))
  const sigma = settings.blur * by
  return { runs, sigma, marked: size(hard) / (map.height * map.width), share: share(runs, sigma) }
}
