/** The panel of the node Uncertainty Viewer, as an extension of ComfyUI's page. */

import { api } from '../../scripts/api.js'
import { app } from '../../scripts/app.js'
import { Panel } from './viewer/panel.js'
import { Settings } from './viewer/settings.js'
import { speaker } from './viewer/words.js'

const NODE = 'BayesDiffUncertaintyViewer'
const UI = 'bayesdiff_viewer'
const USED = 'bayesdiff_viewer_used'
const SIZE = [480, 860]
/** Milliseconds between two looks for outputs that the page has not restored yet. */
const AGAIN = 250
/** Around a DOM widget in the classic renderer. */
const MARGIN = 10
/** @type {Map<object, Panel>} */
const panels = new Map()

const address = (file) => api.apiURL(`/view?${new URLSearchParams(file)}`)

const host = {
  address,
  async fetch(file) {
    const answer = await api.fetchApi(`/view?${new URLSearchParams(file)}`)
    if (!answer.ok) throw new Error(answer.statusText)
    return answer.arrayBuffer()
  },
  run: () => app.queuePrompt(0, 1),
}

function locale() {
  return String(app.extensionManager?.setting?.get('Comfy.Locale') ?? navigator.language)
}

/** The node's outputs as the page keeps them, shown. */
function show(panel, output) {
  const [batch] = output?.[UI] ?? []
  if (!batch) return
  panel.settings.used = output[USED]?.[0] ?? {}
  panel.fill(batch)
}

/** Of a graph that is shown again, as after an undo, the page restores the outputs at some later time. */
function showOnceKnown(node, panel) {
  show(panel, app.nodeOutputs?.[node.id])
  if (!panel.batch && panels.has(node)) setTimeout(() => showOnceKnown(node, panel), AGAIN)
}

/** Nodes 2.0 of older pages goes on showing the panel of a node that was since made anew, as an undo does. */
function takePlace(node, panel) {
  const shown = document.querySelector(`[data-node-id="${Number(node.id)}"] .bd-panel`)
  if (shown && shown !== panel.element) shown.replaceWith(panel.element)
}

function attach(node) {
  let panel = null
  const settings = new Settings(node, app, (name) => panel?.changed(name))
  panel = new Panel(speaker(locale()), settings, { ...host, resized: () => node.setDirtyCanvas(true, true) })
  panels.set(node, panel)
  const widget = node.addDOMWidget('viewer', 'BAYESDIFF_VIEWER', panel.element, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => panel.height + 2 * MARGIN,
  })
  widget.serialize = false
  node.setSize([Math.max(node.size[0], SIZE[0]), Math.max(node.size[1], SIZE[1])])
  const executed = node.onExecuted
  node.onExecuted = function (output) {
    executed?.apply(this, arguments)
    show(panel, output)
  }
  const connected = node.onConnectionsChange
  node.onConnectionsChange = function () {
    connected?.apply(this, arguments)
    panel.invite()
  }
  const removed = node.onRemoved
  node.onRemoved = function () {
    removed?.apply(this, arguments)
    panels.delete(node)
  }
  // The page gives the node its number, its values and its links after this.
  setTimeout(() => {
    takePlace(node, panel)
    panel.invite()
    panel.update()
    showOnceKnown(node, panel)
  }, 0)
}

app.registerExtension({
  name: 'BayesDiff.Viewer',
  setup() {
    document.head.append(
      Object.assign(document.createElement('link'), {
        rel: 'stylesheet',
        href: new URL('./viewer/style.css', import.meta.url).href,
      }),
    )
    // Values that were undone, or set by another hand.
    api.addEventListener('graphChanged', () => {
      for (const [node, panel] of panels) {
        takePlace(node, panel)
        panel.update()
      }
    })
    api.addEventListener('execution_error', ({ detail }) => {
      if (detail.node_type !== NODE) return
      const id = String(detail.node_id).split(':').at(-1)
      for (const [node, panel] of panels) if (String(node.id) === id) panel.tell(detail.exception_message.trim())
    })
  },
  nodeCreated(node) {
    if (node.comfyClass === NODE) attach(node)
  },
  onNodeOutputsUpdated(outputs) {
    for (const [node, panel] of panels) show(panel, outputs[node.id])
  },
})
