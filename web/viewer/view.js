/** One image with its map and mask: layers, zoom, wipe, and what lies under the pointer. */

import { brightestOf, paint } from './colours.js'
import { make, placeIn } from './dom.js'
import { drawOutline } from './outline.js'

export const LAYERS = ['over', 'wipe', 'before', 'plain']
const MOST_ZOOM = 32
const STEP = 1.25

export class View {
  /**
   * @param {ReturnType<import('./words.js').speaker>} say
   * @param {(pixel: [number, number] | null) => void} pointed called with row and column of the image
   */
  constructor(say, pointed) {
    this.say = say
    this.pointed = pointed
    this.size = [1, 1]
    this.layer = 'over'
    this.opacity = 0.7
    this.border = 0.5
    this.zoom = 1
    this.offset = [0, 0]
    this.mask = null
    this.due = 0
    this.image = make('img', { alt: '', draggable: false })
    this.other = make('img', { alt: '', draggable: false })
    this.heat = make('canvas', {})
    this.outline = make('canvas', { class: 'bd-outline' })
    this.lower = make('div', { class: 'bd-stage' })
    this.upper = make('div', { class: 'bd-stage' })
    this.clip = make('div', { class: 'bd-clip' }, this.upper)
    this.handle = make('div', {
      class: 'bd-handle',
      role: 'slider',
      tabIndex: 0,
      'aria-label': say('border'),
      'aria-valuemin': '0',
      'aria-valuemax': '100',
      onpointerdown: (event) => this.#drag(event, this.#wipe),
      onkeydown: (e) => this.#keys(e),
    })
    this.element = make(
      'div',
      {
        class: 'bd-view',
        role: 'group',
        tabIndex: 0,
        'data-capture-wheel': 'true',
        onpointerdown: (event) => this.#grab(event),
        onpointermove: (event) => this.#point(event),
        onpointerleave: () => this.pointed(null),
        onwheel: (event) => this.#wheel(event),
      },
      make('div', { class: 'bd-clip' }, this.lower),
      this.clip,
      this.outline,
      this.handle,
    )
    new ResizeObserver(() => this.layout()).observe(this.element)
  }

  /**
   * @param {{image: string, before: string | null}} sources
   * @param {[number, number]} size height and width of the image
   * @param {{picture: string, keys: string}} words what it is, and what its keys do
   */
  show(sources, size, words) {
    if (String(size) !== String(this.size)) this.fit()
    this.size = size
    this.image.src = sources.image
    this.image.alt = words.picture
    if (sources.before) this.other.src = sources.before
    this.element.setAttribute('aria-label', words.keys)
    this.layout()
  }

  /** @param {import('./levels.js').Levels | null} map */
  setMap(map) {
    this.map = map
    this.brightest = map ? brightestOf(map) : 1
    this.#paint()
  }

  /** @param {import('./mask.js').Mask | null} mask */
  setMask(mask) {
    this.mask = mask
    this.drawMask()
  }

  setLayer(layer) {
    this.layer = layer
    this.#paint()
  }

  setOpacity(opacity) {
    this.opacity = opacity
    this.layout()
  }

  fit() {
    this.zoom = 1
    this.offset = [0, 0]
    this.layout()
  }

  /** @param {[number, number]} [at] a place of the element that stays where it is */
  zoomBy(factor, at = [this.element.clientWidth / 2, this.element.clientHeight / 2]) {
    const before = this.#box()
    this.zoom = Math.min(Math.max(this.zoom * factor, 1), MOST_ZOOM)
    const after = this.#box()
    const axes = ['left', 'top'].map((side, i) => {
      const length = i ? 'height' : 'width'
      return at[i] - ((at[i] - before[side]) / before[length]) * after[length] - (after[side] - this.offset[i])
    })
    this.offset = this.zoom === 1 ? [0, 0] : axes
    this.layout()
  }

  pan(x, y) {
    this.offset = [this.offset[0] + x, this.offset[1] + y]
    this.layout()
  }

  /** Between fitting all of the image and one pixel of it to one of the page. */
  flip() {
    const whole = this.size[1] / this.#box().width
    if (this.zoom > 1) this.fit()
    else this.zoomBy(whole > 1.05 ? whole : 2)
  }

  /** Where the image lies in the element. */
  #box() {
    const [height, width] = this.size
    const { clientWidth, clientHeight } = this.element
    const scale = Math.min(clientWidth / width, clientHeight / height) * this.zoom
    return {
      left: (clientWidth - width * scale) / 2 + this.offset[0],
      top: (clientHeight - height * scale) / 2 + this.offset[1],
      width: width * scale,
      height: height * scale,
    }
  }

  layout() {
    const box = this.#box()
    if (!(box.width > 0)) return
    for (const stage of [this.lower, this.upper]) {
      stage.style.transform = `translate(${box.left}px, ${box.top}px)`
      stage.style.width = `${box.width}px`
      stage.style.height = `${box.height}px`
    }
    const wipes = this.wipes
    this.element.classList.toggle('bd-close', box.width > 2 * this.size[1])
    this.heat.style.opacity = this.layer === 'over' ? String(this.opacity) : '1'
    this.image.style.filter = this.layer === 'over' && this.map ? `grayscale(${this.opacity})` : ''
    this.clip.style.clipPath = wipes ? `inset(0 0 0 ${100 * this.border}%)` : ''
    this.handle.hidden = !wipes
    this.handle.style.left = `${100 * this.border}%`
    this.handle.setAttribute('aria-valuenow', String(Math.round(100 * this.border)))
    this.drawMask()
  }

  get wipes() {
    return this.layer === 'before' || (this.layer === 'wipe' && this.map != null)
  }

  #paint() {
    const lower = this.layer === 'before' ? this.other : this.image
    const upper = { over: this.map && this.heat, wipe: this.map && this.heat, before: this.image, plain: null }[
      this.layer
    ]
    this.lower.replaceChildren(lower)
    this.upper.replaceChildren(...(upper ? [upper] : []))
    if (this.map && upper === this.heat) paint(this.heat, this.map, this.brightest, this.layer === 'over')
    this.layout()
  }

  /** Before the next picture of the page, once. */
  drawMask() {
    this.due ||= requestAnimationFrame(() => {
      this.due = 0
      this.#draw()
    })
  }

  #draw() {
    const canvas = this.outline
    const dots = window.devicePixelRatio || 1
    const [width, height] = [this.element.clientWidth, this.element.clientHeight].map((side) => Math.round(side * dots))
    if (!width || !height) return
    if (!this.ink || this.ink.width !== width || this.ink.height !== height) {
      canvas.width = width
      canvas.height = height
      this.ink = new ImageData(width, height)
    }
    canvas.hidden = !this.mask || this.layer === 'before'
    if (canvas.hidden) return
    const box = this.#box()
    for (const side of Object.keys(box)) box[side] *= dots
    drawOutline(this.ink, this.mask, box, Math.max(1, Math.round(dots)))
    canvas.getContext('2d').putImageData(this.ink, 0, 0)
  }

  #pixel(event) {
    const [x, y] = placeIn(this.element, event)
    const box = this.#box()
    const [row, column] = [
      ((y - box.top) / box.height) * this.size[0],
      ((x - box.left) / box.width) * this.size[1],
    ].map(Math.floor)
    const isInside = row >= 0 && column >= 0 && row < this.size[0] && column < this.size[1]
    return isInside ? /** @type {[number, number]} */ ([row, column]) : null
  }

  #point(event) {
    this.pointed(this.#pixel(event))
  }

  #grab(event) {
    if (event.button !== 0) return
    this.element.focus({ preventScroll: true })
    if (this.zoom > 1) this.#drag(event, this.#move)
  }

  /** Until the button is let go, `follow` is told where the pointer is and was. */
  #drag(event, follow) {
    if (event.button !== 0) return
    event.stopPropagation()
    event.preventDefault()
    const target = event.currentTarget
    target.focus({ preventScroll: true })
    target.setPointerCapture(event.pointerId)
    let last = placeIn(this.element, event)
    const moved = (next) => {
      const place = placeIn(this.element, next)
      follow.call(this, place, last)
      last = place
    }
    target.addEventListener('pointermove', moved)
    target.addEventListener('lostpointercapture', () => target.removeEventListener('pointermove', moved), {
      once: true,
    })
  }

  #move([x, y], [fromX, fromY]) {
    this.pan(x - fromX, y - fromY)
  }

  #wipe([x]) {
    this.border = Math.min(Math.max(x / this.element.clientWidth, 0), 1)
    this.layout()
  }

  #keys(event) {
    const by = { ArrowLeft: -0.02, ArrowRight: 0.02, PageDown: -0.2, PageUp: 0.2, Home: -1, End: 1 }[event.key]
    if (by === undefined) return
    event.preventDefault()
    event.stopPropagation()
    this.border = Math.min(Math.max(this.border + by, 0), 1)
    this.layout()
  }

  /** The wheel is the graph's until the image was clicked. */
  #wheel(event) {
    if (!this.element.contains(document.activeElement)) return
    event.preventDefault()
    event.stopPropagation()
    this.zoomBy(event.deltaY < 0 ? STEP : 1 / STEP, placeIn(this.element, event))
  }
}
