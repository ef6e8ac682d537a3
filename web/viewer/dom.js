/**
 * An element with properties and children; text is only ever set as text, never as HTML.
 *
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {Record<string, any>} [properties] `on...` are listeners, `aria-...`, `data-...` and `role` attributes
 * @param {...(Node | string)} children
 * @returns {HTMLElementTagNameMap[Tag]}
 */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag)
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value)
    else if (/^(aria-|data-|role$|for$|class$)/.test(name)) element.setAttribute(name, value)
    else element[name] = value
  }
  element.append(...children)
  return element
}

/**
 * Where an event is in an element. Its width and height are in its own pixels, those of events in the page's, which the graph's zoom scales.
 *
 * @param {HTMLElement} element
 * @param {MouseEvent} event
 * @returns {[number, number]}
 */
export function placeIn(element, event) {
  const box = element.getBoundingClientRect()
  return [
    ((event.clientX - box.left) / box.width) * element.clientWidth,
    ((event.clientY - box.top) / box.height) * element.clientHeight,
  ]
}
