/** What keys do in the panel. */

const PAN = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] }

/**
 * A key was pressed in the panel.
 *
 * @param {import('./panel.js').Panel} panel
 * @param {KeyboardEvent} event
 */
export function pressed(panel, event) {
  const target = /** @type {HTMLElement} */ (event.target)
  const isTyping = target.matches('input[type=number], select')
  if (event.ctrlKey || event.metaKey || event.altKey) return
  const isDone = event.key === 'Enter' ? enter(panel, target) : !isTyping && act(panel, event, target)
  // The page has keys of its own, one letter each.
  if (isDone) event.preventDefault()
  if (isDone || isTyping) event.stopPropagation()
}

function enter(panel, target) {
  if (target.matches('button, select')) return false
  if (target.matches('input[type=number]')) target.dispatchEvent(new Event('change'))
  panel.host.run()
  return true
}

function act(panel, { key, shiftKey }, target) {
  if (!panel.batch) return false
  const isSlider = target.matches('input[type=range]')
  if (/^[1-9]$/.test(key)) panel.toggle(Number(key) - 1)
  else if (key.startsWith('Arrow') && isSlider) return false
  else if (key.startsWith('Arrow') && shiftKey) panel.view.pan(...PAN[key])
  else if (key === 'ArrowLeft') panel.show(panel.place - 1)
  else if (key === 'ArrowRight') panel.show(panel.place + 1)
  else if (key === ',') panel.turn(panel.frame - 1)
  else if (key === '.') panel.turn(panel.frame + 1)
  else if (key === ' ' && target === panel.view.element) panel.view.flip()
  else if (key === '+' || key === '=') panel.view.zoomBy(1.5)
  else if (key === '-') panel.view.zoomBy(1 / 1.5)
  else if (key === '0') panel.view.fit()
  else if (key === 'k') panel.toggle(panel.place)
  else if (key === 'm') panel.look.flip()
  else return false
  return true
}
