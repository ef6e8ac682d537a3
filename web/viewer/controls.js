/** The rows of controls: how to look, how the mask is set, and what goes on. */

import { make } from './dom.js'
import { LAYERS } from './view.js'

const RULES = {
  'area share': ['area', 'area'],
  value: ['value', 'value'],
  percentile: ['percentile', 'percentileRule'],
}

const option = (value, text) => make('option', { value, textContent: text })

/**
 * How to look at the image.
 *
 * @param {ReturnType<import('./words.js').speaker>} say
 * @param {import('./view.js').View} view
 */
export function lookRow(say, view) {
  const layer = make(
    'select',
    { 'aria-label': say('look'), onchange: () => choose(layer.value) },
    ...LAYERS.map((name) => option(name, say(name))),
  )
  const opacity = make('input', {
    type: 'range',
    min: '0',
    max: '1',
    step: '0.01',
    value: String(view.opacity),
    'aria-label': say('opacity'),
    title: say('opacity'),
    oninput: () => view.setOpacity(Number(opacity.value)),
  })
  const element = make(
    'div',
    { class: 'bd-row bd-look' },
    make('span', { class: 'bd-label', textContent: say('look') }),
    layer,
    opacity,
  )

  function choose(name) {
    layer.value = name
    opacity.hidden = name !== 'over'
    view.setLayer(name)
  }

  return {
    element,
    /** The map, and back to how it was looked at. */
    flip() {
      choose(view.layer === 'plain' ? 'over' : 'plain')
    },
    /** Only what there is to look at. */
    offer(hasBefore, hasMap) {
      for (const { value, index } of layer.options) {
        layer.options[index].hidden = layer.options[index].disabled =
          (value === 'before' && !hasBefore) || ((value === 'over' || value === 'wipe') && !hasMap)
      }
      if (layer.selectedOptions[0].disabled) choose('plain')
    },
  }
}

/**
 * What lies under the pointer, and zoom.
 *
 * @param {ReturnType<import('./words.js').speaker>} say
 * @param {import('./view.js').View} view
 */
export function readingRow(say, view) {
  const reading = make('span', { class: 'bd-said', textContent: say('hint') })
  const button = (text, key, onclick) =>
    make('button', {
      type: 'button',
      class: 'bd-small',
      title: say(key),
      'aria-label': say(key),
      textContent: text,
      onclick,
    })
  return {
    element: make(
      'div',
      { class: 'bd-row bd-reading' },
      reading,
      button('−', 'zoomOut', () => view.zoomBy(1 / 1.5)),
      button('+', 'zoomIn', () => view.zoomBy(1.5)),
      button('⤢', 'fit', () => view.fit()),
    ),
    /** @param {string | null} words */
    tell(words) {
      reading.textContent = words ?? say('hint')
    },
  }
}

/**
 * The frames of a clip.
 *
 * @param {ReturnType<import('./words.js').speaker>} say
 * @param {(frame: number) => void} turn
 */
export function frameRow(say, turn) {
  const slider = make('input', { type: 'range', min: '0', step: '1', 'aria-label': say('frame'), title: say('frame') })
  slider.addEventListener('input', () => turn(Number(slider.value)))
  const said = make('span', { class: 'bd-count' })
  const label = make('span', { class: 'bd-label', textContent: say('frames') })
  const element = make('div', { class: 'bd-row', hidden: true }, label, slider, said)
  return {
    element,
    offer(count) {
      slider.max = String(count - 1)
      element.hidden = count === 1
    },
    tell(frame) {
      slider.value = String(frame)
      said.textContent = `${frame + 1} / ${Number(slider.max) + 1}`
    },
  }
}

/**
 * How the mask is set: a slider of the rule's own unit, what it covers, grow and blur.
 *
 * @param {ReturnType<import('./words.js').speaker>} say
 * @param {import('./settings.js').Settings} settings
 */
export function maskRow(say, settings) {
  const rule = make(
    'select',
    { 'aria-label': say('rule'), onchange: () => set('threshold', rule.value, true) },
    ...Object.entries(RULES).map(([value, [, key]]) => option(value, say(key))),
  )
  const slider = make('input', {
    type: 'range',
    'aria-label': say('level'),
    oninput: () => set(RULES[rule.value][0], Number(slider.value)),
    onchange: () => settings.remember(),
  })
  const exact = make('input', {
    type: 'number',
    class: 'bd-number',
    'aria-label': say('level'),
    onchange: () => set(RULES[rule.value][0], Number(exact.value), true),
  })
  const said = make('output', { class: 'bd-said', 'aria-live': 'polite' })
  const side = (name) => {
    const { min, max, step } = settings.limits(name)
    const input = make('input', {
      type: 'number',
      class: 'bd-number',
      min,
      max,
      step,
      title: say(name),
      'aria-label': say(name),
      onchange: () => set(name, Number(input.value), true),
    })
    return input
  }
  const [wider, softer] = [side('grow'), side('blur')]
  let top = 1

  function set(name, value, isDone = false) {
    const { min, max } = name === 'threshold' ? {} : settings.limits(name)
    settings.set(name, name === 'threshold' ? value : Math.min(Math.max(value || 0, min), max))
    if (isDone) settings.remember()
  }

  return {
    element: make(
      'div',
      { class: 'bd-rows' },
      make(
        'div',
        { class: 'bd-row' },
        make('span', { class: 'bd-label', textContent: say('mask') }),
        rule,
        slider,
        exact,
      ),
      make(
        'div',
        { class: 'bd-row' },
        said,
        make(
          'span',
          { class: 'bd-pair' },
          make('label', { class: 'bd-pair' }, say('grow'), wider),
          make('label', { class: 'bd-pair' }, say('blur'), softer),
        ),
      ),
    ),
    /** The highest standard deviation, where the slider of a value ends. */
    reach(most) {
      top = most || 1
    },
    update() {
      const values = settings.values
      const name = RULES[values.threshold][0]
      const { min, max, step } = settings.limits(name)
      rule.value = values.threshold
      const most = name === 'value' ? top : max
      Object.assign(slider, { min, max: most, step: name === 'value' ? top / 1000 : step, value: values[name] })
      Object.assign(exact, { min, max, step: 'any', value: Number(values[name].toPrecision(5)) })
      wider.value = String(values.grow)
      softer.value = String(values.blur)
      for (const [input, key] of [
        [rule, 'threshold'],
        [slider, name],
        [exact, name],
        [wider, 'grow'],
        [softer, 'blur'],
      ]) {
        input.disabled = settings.isLinked(key)
        if (input.disabled) input.title = say('linked')
      }
    },
    /** @param {{marked: number, share: number} | null} mask */
    tell(mask) {
      const percent = (part) => (100 * part).toFixed(1)
      const [marked, all] = mask ? [percent(mask.marked), percent(mask.share)] : ['', '']
      said.textContent = !mask ? '' : marked === all ? say('masked', all) : say('grown', marked, all)
    },
  }
}

/**
 * What goes on.
 *
 * @param {ReturnType<import('./words.js').speaker>} say
 * @param {{all: () => void, none: () => void, invert: () => void, surest: (count: number) => void, run: () => void}} actions
 */
export function choiceRow(say, actions) {
  const button = (key, onclick, kind = '') =>
    make('button', { type: 'button', class: kind, textContent: say(key), onclick })
  const count = make('input', {
    type: 'number',
    class: 'bd-number',
    min: '1',
    step: '1',
    'aria-label': say('surestCount'),
    title: say('surestCount'),
    onchange: () => actions.surest(Math.max(1, Math.round(Number(count.value)) || 1)),
  })
  const said = make('output', { class: 'bd-said', 'aria-live': 'polite' })
  const element = make(
    'div',
    { class: 'bd-rows' },
    make(
      'div',
      { class: 'bd-row' },
      make('span', { class: 'bd-label', textContent: say('choose') }),
      make(
        'span',
        { class: 'bd-pair' },
        button('surest', () => actions.surest(Math.max(1, Math.round(Number(count.value)) || 1))),
        count,
      ),
      button('all', actions.all),
      button('none', actions.none),
      button('invert', actions.invert),
    ),
    make('div', { class: 'bd-row' }, said, button('run', actions.run, 'bd-run')),
  )
  return {
    element,
    setSurest(keep) {
      count.value = String(keep)
    },
    /** @param {{kept: number, of: number, byHand: boolean, isKnown: boolean, isStale: boolean}} choice */
    update({ kept, of, byHand, isKnown, isStale }) {
      count.max = String(of)
      const words = say(byHand ? 'byHand' : isKnown ? 'automatic' : 'automaticUnknown', kept, of)
      said.textContent = isStale ? `${words} ${say('stale')}` : words
      said.classList.toggle('bd-warn', isStale)
    },
  }
}
