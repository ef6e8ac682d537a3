/** Which images go on, as the node reads it off its widgets `choice` and `keep`. */

/**
 * @param {string} text the widget `choice`
 * @param {number} keep the widget `keep`
 * @param {number[]} order numbers of all images, the surest first
 * @param {boolean} known whether a score of any image is known
 * @returns {{kept: Set<number>, byHand: boolean}}
 */
export function chosen(text, keep, order, known) {
  const words = text.trim().toLowerCase()
  if (words === 'all') return { kept: new Set(order), byHand: true }
  if (words === 'none') return { kept: new Set(), byHand: true }
  const named = (words.match(/\d+/g) ?? []).map(Number).filter((i) => i < order.length)
  if (named.length) return { kept: new Set(named), byHand: true }
  return { kept: new Set(known ? order.slice(0, keep) : order), byHand: false }
}

/**
 * The widget's text for a choice.
 *
 * @param {Set<number>} kept
 * @param {number} count how many images there are
 */
export function write(kept, count) {
  if (kept.size === 0) return 'none'
  if (kept.size === count) return 'all'
  return [...kept].sort((a, b) => a - b).join(', ')
}

/** The choice with one image more, or one less. */
export function toggled(kept, image) {
  const found = new Set(kept)
  if (!found.delete(image)) found.add(image)
  return found
}

/** All that is not chosen. */
export const inverted = (kept, count) => new Set([...Array(count).keys()].filter((i) => !kept.has(i)))
