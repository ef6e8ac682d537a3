/** The parts of the viewer's panel that need no page, in node's own test runner: `python dev.py check page`. */

import assert from 'node:assert/strict'
import test from 'node:test'
import { chosen, inverted, toggled, write } from '../../web/viewer/choice.js'
import { table } from '../../web/viewer/colours.js'
import { kthLargest, percentileOf, readLevels } from '../../web/viewer/levels.js'
import { draftScale, ground, maskOf } from '../../web/viewer/mask.js'
import { drawOutline } from '../../web/viewer/outline.js'
import { LANGUAGES, keys, speaker } from '../../web/viewer/words.js'

const ORDER = [2, 0, 3, 1]

test('a choice is read as the node reads it', () => {
  const kept = (text, known = true) => [...chosen(text, 2, ORDER, known).kept].sort()
  assert.deepEqual(kept(''), [0, 2])
  assert.deepEqual(kept('', false), [0, 1, 2, 3])
  assert.deepEqual(kept('3, 1'), [1, 3])
  assert.deepEqual(kept(' ALL '), [0, 1, 2, 3])
  assert.deepEqual(kept('none'), [])
  assert.deepEqual(kept('1 9'), [1])
  assert.deepEqual(kept('9'), [0, 2])
  assert.equal(chosen('9', 2, ORDER, true).byHand, false)
})

test('what is written is read again', () => {
  for (const numbers of [[], [0], [3, 1], ORDER]) {
    const text = write(new Set(numbers), ORDER.length)
    assert.deepEqual([...chosen(text, 1, ORDER, true).kept].sort(), [...numbers].sort(), text)
    assert.equal(chosen(text, 1, ORDER, true).byHand, true)
  }
  assert.deepEqual([...inverted(toggled(new Set([1, 3]), 3), 4)], [0, 2, 3])
})

test('the k-th largest is that of a sorted list', () => {
  const values = Float64Array.from({ length: 500 }, (_, i) => ((i * 7919) % 251) * 2 ** 40 + (i % 3))
  const sorted = values.slice().sort().reverse()
  for (const k of [1, 2, 250, 499, 500]) assert.equal(kthLargest(values, k), sorted[k - 1])
})

test('a percentile is the share of cells below', () => {
  const percentiles = Array.from({ length: 1001 }, (_, i) => 10 * i)
  assert.deepEqual(
    [0, 5, 5000, 9999, 20000].map((level) => percentileOf(level, percentiles)),
    [0, 0.1, 50, 100, 100],
  )
})

test('a file of levels is little-endian, and one that is cut off is refused', () => {
  const file = Uint8Array.from([1, 0, 0, 1, 255, 255, 0, 0]).buffer
  assert.deepEqual([...readLevels(file, [2, 2]).cells], [1, 256, 65535, 0])
  assert.throws(() => readLevels(file, [2, 3]), RangeError)
})

test('the shown mask is the node’s own up to a megapixel', () => {
  assert.equal(draftScale([1024, 1024], 0), 1)
  assert.equal(draftScale([512, 512], 4), 1)
  assert.ok(draftScale([4096, 4096], 0) < 1)
  const map = { cells: Uint16Array.from({ length: 64 }, (_, i) => 1000 * i), rows: 8, columns: 8 }
  const settings = { threshold: 'area share', area: 0.25, value: 0, percentile: 0, grow: 2, blur: 1 }
  const { marked, share, mask } = maskOf(ground(map, [32, 32]), settings, { top: 1, percentiles: [] })
  assert.equal(marked, 0.25)
  assert.ok(share > 0.25 && share < 0.4 && mask.length === 1024)
})

test('an outline has the line inside and the edge outside', () => {
  const image = { width: 6, height: 1, data: new Uint8ClampedArray(24) }
  const mask = { mask: [0, 0, 1, 1, 0, 0], height: 1, width: 6 }
  drawOutline(image, mask, { left: 0, top: 0, width: 6, height: 1 }, 1)
  const [line, edge] = [0xffffffff, 0xff000000]
  assert.deepEqual([...new Uint32Array(image.data.buffer)].slice(1, 5), [edge, line, line, edge])
})

test('colours go from dark to bright', () => {
  const colours = table(16)
  const light = (i) => colours[3 * i] + colours[3 * i + 1] + colours[3 * i + 2]
  for (let i = 1; i < 16; i++) assert.ok(light(i) > light(i - 1), String(i))
})

test('all languages say the same things', () => {
  assert.deepEqual(LANGUAGES, ['en', 'de', 'zh'])
  for (const language of LANGUAGES) {
    assert.deepEqual(keys(language), keys('en'))
    for (const key of keys('en')) {
      const [said, english] = [speaker(language), speaker('en')].map((say) => say(key, '#0', '#1', '#2'))
      assert.ok(said.trim() && (language === 'en' || said !== english), `${key} is left in English in ${language}`)
      assert.deepEqual(said.match(/#\d/g)?.sort(), english.match(/#\d/g)?.sort(), `${key} in ${language}`)
    }
  }
  assert.equal(speaker('zh-TW')('all'), speaker('zh')('all'))
  assert.equal(speaker('fr')('all'), speaker('en')('all'))
})
