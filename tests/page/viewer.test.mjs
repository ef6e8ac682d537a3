/** The parts of the viewer's panel that need no page, in node's own test runner: `python dev.py check page`. */

import assert from 'node:assert/strict'
import test from 'node:test'
import { chosen, inverted, toggled, write } from '../../web/viewer/choice.js'
import { table } from '../../web/viewer/colours.js'
import { enlarge, mostUncertain, percentileOf, readLevels, valueAt } from '../../web/viewer/levels.js'
import { ground, maskOf } from '../../web/viewer/mask.js'
import { drawOutline } from '../../web/viewer/outline.js'
import { Writer, firstPixels, grow, sample, share, size, union, without } from '../../web/viewer/runs.js'
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
  for (const kept of [[], [0], [3, 1], ORDER]) {
    const text = write(new Set(kept), ORDER.length)
    assert.deepEqual([...chosen(text, 1, ORDER, true).kept].sort(), [...kept].sort(), text)
    assert.equal(chosen(text, 1, ORDER, true).byHand, true)
  }
  assert.deepEqual([...inverted(toggled(new Set([1, 3]), 3), 4)], [0, 2, 3])
})

/** Whole numbers below `most` that look random and are the same each time. */
function numbers(count, most, seed = 1) {
  let state = seed
  return Array.from({ length: count }, () => (state = (state * 48271) % 2147483647) % most)
}

/** A mask of 0 and 1 as runs. */
function runsOf(mask, height, width) {
  const runs = new Writer(height, width)
  for (let y = 0; y < height; y++, runs.endRow())
    for (let x = 0; x < width; x++) if (mask[y * width + x]) runs.add(x, x + 1)
  return runs
}

const upTo = (length) => Int32Array.from({ length }, (_, i) => i)
const pixelsOf = (runs) => [...sample(runs, 0, upTo(runs.height), upTo(runs.width))]

test('runs are joined, cut and counted as their pixels are', () => {
  const [height, width] = [9, 17]
  const [one, other] = [1, 2].map((seed) => numbers(height * width, 3, seed).map((value) => (value ? 0 : 1)))
  const [a, b] = [one, other].map((mask) => runsOf(mask, height, width))
  const both = one.map((value, i) => value | other[i])
  assert.deepEqual(pixelsOf(a), one)
  assert.deepEqual(pixelsOf(union(a, b)), both)
  assert.deepEqual(
    pixelsOf(without(union(a, b), a)),
    both.map((value, i) => value - one[i]),
  )
  let left = 20
  assert.deepEqual(
    pixelsOf(firstPixels(a, left)),
    one.map((value) => (value && left-- > 0 ? 1 : 0)),
  )
  assert.equal(
    size(a),
    one.reduce((sum, value) => sum + value),
  )
  assert.equal(
    size(a, 3, 4),
    one.slice(3 * width, 4 * width).reduce((sum, value) => sum + value),
  )
})

test('a mask grows by a square neighbourhood', () => {
  const [height, width] = [12, 20]
  const mask = numbers(height * width, 30).map((value) => (value ? 0 : 1))
  for (const by of [0, 1, 2, 3, 7, 30]) {
    const wider = mask.map((_, i) => {
      const [y, x] = [Math.floor(i / width), i % width]
      const near = (at) => Math.abs(Math.floor(at / width) - y) <= by && Math.abs((at % width) - x) <= by
      return mask.some((value, at) => value && near(at)) ? 1 : 0
    })
    assert.deepEqual(pixelsOf(grow(runsOf(mask, height, width), by)), wider, String(by))
  }
})

test('the share of a softened mask is that of its pixels, and between them it is nearly a straight line', () => {
  for (const [height, width, sigma] of [
    [40, 25, 2.5],
    [9, 30, 12],
    [1, 1, 4],
    [300, 200, 20],
  ]) {
    const mask = runsOf(
      numbers(height * width, 4).map((value, i) => (value && i % width > width / 3 ? 0 : 1)),
      height,
      width,
    )
    const exact = sample(mask, sigma, upTo(height), upTo(width))
    const mean = exact.reduce((sum, value) => sum + value, 0) / exact.length
    assert.ok(Math.abs(share(mask, sigma) - mean) < 1e-6)
    const looked = sample(mask, sigma, upTo(height), upTo(width), Math.max(1, Math.floor(sigma / 4)))
    assert.ok(looked.every((value, i) => Math.abs(value - exact[i]) < 1 / 255))
  }
})

test('the most uncertain are those of a sorted list, of equal ones the first', () => {
  for (const [most, height, width] of [
    [65536, 300, 400],
    [3, 400, 300],
    [1, 300, 300],
    [2, 20, 30],
  ]) {
    const map = { cells: Uint16Array.from(numbers(63, most)), rows: 9, columns: 7 }
    const values = Array.from({ length: height * width }, (_, i) =>
      valueAt(map, height, width, Math.floor(i / width), i % width),
    )
    const order = [...values.keys()].sort((i, j) => values[j] - values[i] || i - j)
    for (const area of [0, 0.001, 0.15, 0.5, 0.999, 1]) {
      const marked = new Set(order.slice(0, Math.ceil(area * values.length)).filter((i) => values[i] > 0))
      const found = pixelsOf(mostUncertain(enlarge(map, [height, width]), area))
      assert.ok(
        found.every((value, i) => value === (marked.has(i) ? 1 : 0)),
        `${most} ${area}`,
      )
    }
  }
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

test('a draft of a mask is like the mask, and an image that is small has none', () => {
  const map = { cells: Uint16Array.from({ length: 64 }, (_, i) => 1000 * i), rows: 8, columns: 8 }
  const settings = { threshold: 'area share', area: 0.25, value: 0, percentile: 0, grow: 16, blur: 10 }
  const small = ground(map, [32, 32])
  assert.equal(small.scale, 1)
  const large = ground(map, [2048, 4096])
  const [exact, draft] = [false, true].map((isDraft) => maskOf(large, settings, { top: 1, percentiles: [] }, isDraft))
  assert.equal(exact.marked, 0.25)
  assert.equal(exact.runs.width, 4096)
  assert.ok(exact.share > 0.255 && exact.share < 0.27)
  assert.ok(draft.runs.width < 1024 && Math.abs(draft.share - exact.share) < 0.003)
})

test('an outline has the line inside and the edge outside', () => {
  const image = { width: 6, height: 1, data: new Uint8ClampedArray(24) }
  const mask = { runs: runsOf([0, 0, 1, 1, 0, 0], 1, 6), sigma: 0 }
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
