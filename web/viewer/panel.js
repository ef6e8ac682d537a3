/** The panel of one node: puts view, controls and strip together. */

import { chosen, inverted, toggled, write } from './choice.js'
import { choiceRow, frameRow, lookRow, maskRow, readingRow } from './controls.js'
import { make } from './dom.js'
import { pressed } from './keys.js'
import { MOST, percentileOf, readLevels, unit, valueAt } from './levels.js'
import { ground, maskOf } from './mask.js'
import { Strip } from './strip.js'
import { View } from './view.js'

/**
 * @typedef {{filename: string, subfolder: string, type: string}} File
 * @typedef {{images: File[], thumb: File, before: File[] | null, levels: File[] | null, score: number | null,
 *   percentile: number | null}} Shown an image, or a clip by its frames; levels by its latent frames
 * @typedef {{images: Shown[], order: number[], size: [number, number], cells: [number, number], map_of: number[],
 *   top: number, percentiles: number[], unknown: string, problem?: string}} Batch what the node tells, see nodes/viewer.py
 */

/** Of style.css, in pixels: between rows, around them, and the lowest view. */
const [GAP, MARGIN, LEAST_VIEW] = [6, 10, 186]
/** Milliseconds of work after which a slider gets drafts of the mask, and without a change until it is exact. */
const [SLOW, REST] = [20, 120]
const short = (value) => (value === null ? '?' : Number(value.toPrecision(3)).toString())

/** Which image was looked at, by the images' name: an undo makes the node anew, and its panel. */
const remembered = new Map()

export class Panel {
  /**
   * @param {ReturnType<import('./words.js').speaker>} say
   * @param {import('./settings.js').Settings} settings
   * @param {{address: (file: File) => string, fetch: (file: File) => Promise<ArrayBuffer>, run: () => void,
   *   resized: () => void}} host
   */
  constructor(say, settings, host) {
    this.say = say
    this.settings = settings
    this.host = host
    /** @type {Set<number>} */
    this.kept = new Set()
    /** @type {Batch | null} */
    this.batch = null
    this.place = 0
    this.height = 0
    this.frame = 0
    this.marked = { found: null, asked: '' }
    this.isSlow = false
    this.rest = 0
    /** @type {Map<string, {map: import('./levels.js').Levels, ground: ReturnType<typeof ground> | null}>} by file */
    this.maps = new Map()
    this.view = new View(say, (pixel) => this.#read(pixel))
    this.strip = new Strip(say, { show: (place) => this.show(place), toggle: (place) => this.toggle(place) })
    this.reading = readingRow(say, this.view)
    this.frames = frameRow(say, (frame) => this.turn(frame))
    this.look = lookRow(say, this.view)
    this.mask = maskRow(say, settings)
    this.choice = choiceRow(say, {
      all: () => settings.choose('all', this.#name(this.batch)),
      none: () => settings.choose('none', this.#name(this.batch)),
      invert: () => this.batch && this.#choose(inverted(this.kept, this.batch.order.length)),
      surest: (count) => {
        settings.set('keep', count)
        settings.choose('', '')
      },
      run: () => host.run(),
    })
    const step = (text, key, by) =>
      make('button', {
        type: 'button',
        class: 'bd-small',
        title: say(key),
        'aria-label': say(key),
        textContent: text,
        onclick: () => this.show(this.place + by),
      })
    this.title = make('span', { class: 'bd-title' })
    this.keep = make('button', {
      type: 'button',
      class: 'bd-keep',
      title: say('toggle'),
      onclick: () => this.toggle(this.place),
    })
    this.notice = make('div', { class: 'bd-notice', role: 'status' })
    this.body = make(
      'div',
      { class: 'bd-body bd-waiting' },
      make('div', { class: 'bd-row bd-head' }, step('‹', 'previous', -1), this.title, step('›', 'next', 1), this.keep),
      this.view.element,
      this.frames.element,
      this.reading.element,
      this.look.element,
      this.mask.element,
      this.choice.element,
      this.strip.element,
    )
    this.element = make(
      'div',
      { class: 'bd-panel', role: 'region', 'aria-label': say('viewer'), onkeydown: (event) => pressed(this, event) },
      this.notice,
      this.body,
    )
    const rows = new ResizeObserver(() => this.#measure())
    for (const row of [this.notice, ...this.body.children]) if (row !== this.view.element) rows.observe(row)
    this.invite()
    this.update()
    this.element.addEventListener(
      'error',
      (event) => event.target instanceof HTMLImageElement && this.tell(say('lost')),
      true,
    )
  }

  /** How high the panel has to be for all rows, and for an image that can be seen. */
  #measure() {
    const rows = /** @type {HTMLElement[]} */ ([this.notice, ...this.body.children]).filter(
      (row) => row !== this.view.element && row.offsetHeight,
    )
    this.height = rows.reduce((sum, row) => sum + row.offsetHeight + GAP, MARGIN + (this.batch ? LEAST_VIEW : 0))
    this.element.style.minHeight = `${this.height}px`
    this.host.resized()
  }

  /** A sentence in place of, or above, the images. */
  tell(sentence) {
    this.notice.textContent = sentence
    this.notice.hidden = !sentence
  }

  /** Before the first run: what to do. */
  invite() {
    if (!this.batch) this.tell(this.say(NEEDED.every((name) => this.settings.isConnected(name)) ? 'empty' : 'missing'))
  }

  /** @param {Batch} batch */
  fill(batch) {
    if (batch.problem) {
      this.tell(batch.problem)
      return
    }
    const isNew = JSON.stringify(batch) !== JSON.stringify(this.batch)
    this.batch = batch
    this.tell(batch.unknown)
    this.body.classList.remove('bd-waiting')
    if (isNew) {
      this.maps.clear()
      this.place = Math.max(batch.order.indexOf(remembered.get(this.#name(batch))), 0)
      this.strip.fill(
        batch.order.map((number) => ({
          number,
          thumb: this.host.address(batch.images[number].thumb),
          words: this.#words(number),
          short: this.#brief(batch.images[number]),
        })),
      )
      this.mask.reach(batch.top)
    }
    this.show(this.place)
  }

  /** Which images these are: their files are named by what is in them. */
  #name(batch) {
    return batch ? batch.images.map(({ images }) => images[0].filename.slice(0, 4)).join('') : ''
  }

  #brief({ score, percentile }) {
    return percentile === null ? short(score) : `${short(score)} · ${percentile.toFixed(0)} %`
  }

  #words(number) {
    const { score, percentile } = this.batch.images[number]
    if (score === null) return this.say('unknown')
    const words = this.say('score', short(score))
    return percentile === null ? words : `${words} · ${this.say('percentile', percentile.toFixed(0))}`
  }

  /** The image at a place of the strip. */
  show(place) {
    if (!this.batch || place < 0 || place >= this.batch.order.length) return
    const number = this.batch.order[place]
    this.place = place
    remembered.set(this.#name(this.batch), number)
    this.title.textContent = `${this.say('image', number, place + 1, this.batch.order.length)} · ${this.#words(number)}`
    const { images, before, levels } = this.batch.images[number]
    this.look.offer(before !== null, levels !== null)
    this.frames.offer(images.length)
    this.turn(Math.min(this.frame, images.length - 1))
    this.update()
  }

  /** To a frame of the shown clip; an image has one. */
  turn(frame) {
    const number = this.batch.order[this.place]
    const { images, before } = this.batch.images[number]
    if (frame < 0 || frame >= images.length) return
    this.frame = frame
    this.frames.tell(frame)
    this.view.show(
      { image: this.host.address(images[frame]), before: before && this.host.address(before[frame]) },
      this.batch.size,
      { picture: this.say('picture', number), keys: this.say('view', number) },
    )
    this.#showMap()
  }

  /** The file of the shown frame's map, if anything is known of it. */
  get #levels() {
    const { levels } = this.batch.images[this.batch.order[this.place]]
    return levels && levels[this.batch.map_of[this.frame]]
  }

  /** The shown frame's map, if it is there. */
  get #found() {
    return (this.batch && this.#levels && this.maps.get(this.#levels.filename)) || null
  }

  async #showMap() {
    const file = this.#levels
    const batch = this.batch
    if (file && !this.#found) {
      try {
        const map = readLevels(await this.host.fetch(file), batch.cells)
        this.maps.set(file.filename, { map, ground: null })
      } catch {
        this.tell(this.say('lost'))
      }
      if (this.batch !== batch || this.#levels !== file) return
    }
    const found = this.#found
    // One enlarged map is enough to hold.
    for (const other of this.maps.values()) if (other !== found) other.ground = null
    this.view.setMap(found?.map ?? null)
    this.#mark()
  }

  /** A widget has another value: what hangs on it is shown anew, which a drag of the mask's slider asks for often. */
  changed(name) {
    if (name === 'choice' || name === 'keep' || !this.batch) this.update()
    else {
      this.mask.update()
      this.#mark()
    }
  }

  /** What the widgets say, shown. */
  update() {
    const { choice, keep } = this.settings.values
    this.mask.update()
    this.choice.setSurest(keep)
    if (!this.batch) return
    const { order, images } = this.batch
    const isKnown = images.some(({ score }) => score !== null)
    const { kept, byHand } = chosen(choice, keep, order, isKnown)
    this.kept = kept
    const isKept = kept.has(order[this.place])
    this.keep.textContent = this.say(isKept ? 'kept' : 'dropped')
    this.keep.setAttribute('aria-pressed', String(isKept))
    const of = this.settings.chosenOf
    this.choice.update({
      kept: kept.size,
      of: order.length,
      byHand,
      isKnown,
      isStale: byHand && of !== '' && of !== this.#name(this.batch),
    })
    this.strip.update(kept, this.place)
    this.#mark()
  }

  /** The mask of the shown frame, made anew if anything that it is made of has changed. */
  #mark() {
    const found = this.#found
    const asked = MASK.map((name) => this.settings.values[name]).join()
    if (found === this.marked.found && asked === this.marked.asked) return
    this.marked = { found, asked }
    this.#make(this.isSlow)
  }

  /** @param {boolean} isDraft whether to show a draft, and the mask itself as soon as nothing changes any more */
  #make(isDraft) {
    clearTimeout(this.rest)
    const { found } = this.marked
    const start = performance.now()
    let mask = null
    if (found) {
      found.ground ??= ground(found.map, this.batch.size)
      mask = maskOf(found.ground, this.settings.values, this.batch, isDraft)
    }
    this.view.setMask(mask)
    this.mask.tell(mask)
    if (isDraft) this.rest = setTimeout(() => this.#make(false), REST)
    else this.isSlow = performance.now() - start > SLOW
  }

  #read(pixel) {
    const found = this.#found
    if (!pixel || !found) {
      this.reading.tell(null)
      return
    }
    const level = valueAt(found.map, ...this.batch.size, ...pixel) / unit(...this.batch.size)
    const std = (level / MOST) * this.batch.top
    this.reading.tell(this.say('hover', short(std), percentileOf(level, this.batch.percentiles).toFixed(1)))
  }

  toggle(place) {
    const number = this.batch?.order[place]
    if (number !== undefined) this.#choose(toggled(this.kept, number))
  }

  #choose(kept) {
    if (this.batch) this.settings.choose(write(kept, this.batch.order.length), this.#name(this.batch))
  }
}

/** What has to be connected. */
const NEEDED = ['images', 'uncertainty']
/** The settings that make the mask. */
const MASK = ['threshold', 'area', 'value', 'percentile', 'grow', 'blur']
