/** All images of the batch, the surest first: a list box in which several can be selected, the kept ones. */

import { make } from './dom.js'

export class Strip {
  /**
   * @param {ReturnType<import('./words.js').speaker>} say
   * @param {{show: (place: number) => void, toggle: (place: number) => void}} actions
   */
  constructor(say, actions) {
    this.say = say
    this.actions = actions
    this.items = []
    this.element = make('div', {
      class: 'bd-strip',
      role: 'listbox',
      'aria-multiselectable': 'true',
      'aria-label': say('strip'),
      'data-capture-wheel': 'true',
      onwheel: (event) => this.#wheel(event),
    })
  }

  /** @param {{thumb: string, number: number, words: string, short: string}[]} images the surest first */
  fill(images) {
    this.items = images.map((image, place) => {
      const mark = make('span', {
        class: 'bd-mark',
        title: this.say('toggle'),
        'aria-hidden': 'true',
        onclick: (event) => {
          event.stopPropagation()
          this.actions.toggle(place)
        },
      })
      const picture = make(
        'span',
        { class: 'bd-thumb' },
        make('img', { src: image.thumb, alt: '', draggable: false, loading: 'lazy' }),
      )
      const caption = make('span', { class: 'bd-caption', 'aria-hidden': 'true' })
      if (place < 9) caption.append(make('kbd', { textContent: String(place + 1) }))
      caption.append(image.short)
      const item = make(
        'div',
        {
          class: 'bd-item',
          role: 'option',
          tabIndex: -1,
          title: image.words,
          onclick: () => this.actions.show(place),
          onkeydown: (event) => {
            if (event.key !== ' ') return
            event.preventDefault()
            event.stopPropagation()
            this.actions.toggle(place)
          },
        },
        picture,
        mark,
        caption,
      )
      return { item, mark, image, said: '', isShown: false }
    })
    this.element.replaceChildren(...this.items.map(({ item }) => item))
  }

  /**
   * @param {Set<number>} kept
   * @param {number} shown its place
   */
  update(kept, shown) {
    this.items.forEach((entry, place) => {
      const { item, mark, image } = entry
      const isKept = kept.has(image.number)
      const isShown = place === shown
      if (isShown !== entry.isShown) {
        entry.isShown = isShown
        item.classList.toggle('bd-shown', isShown)
        item.tabIndex = isShown ? 0 : -1
      }
      const said = this.say('item', image.number, image.words, this.say(isKept ? 'kept' : 'dropped'))
      if (said === entry.said) return
      entry.said = said
      item.setAttribute('aria-selected', String(isKept))
      item.setAttribute('aria-label', said)
      item.classList.toggle('bd-kept', isKept)
      mark.textContent = isKept ? '✓' : '✗'
    })
    const at = this.items[shown]?.item
    if (!at) return
    if (at.offsetLeft < this.element.scrollLeft) this.element.scrollLeft = at.offsetLeft
    const over = at.offsetLeft + at.offsetWidth - this.element.clientWidth
    if (over > this.element.scrollLeft) this.element.scrollLeft = over
    if (this.element.contains(document.activeElement)) at.focus({ preventScroll: true })
  }

  /** Along the strip as long as it goes on; then the wheel is the graph's. */
  #wheel(event) {
    const by = event.deltaX || event.deltaY
    const most = this.element.scrollWidth - this.element.clientWidth
    if (most <= 0) return
    event.preventDefault()
    event.stopPropagation()
    this.element.scrollLeft = Math.min(Math.max(this.element.scrollLeft + by, 0), most)
  }
}
