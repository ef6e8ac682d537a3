/** The node's own widgets, which hold all that is set in the page, so that the graph saves, shares and undoes it. */

const NAMES = ['threshold', 'area', 'value', 'percentile', 'grow', 'blur', 'keep', 'choice']
/** What the chosen images were; a property of the node. */
const CHOSEN_OF = 'bayesdiff_chosen_of'

export class Settings {
  /**
   * @param {any} node
   * @param {any} app
   * @param {(name: string) => void} changed called when a value changes, here or elsewhere
   */
  constructor(node, app, changed) {
    this.node = node
    this.app = app
    /** What the last run was told: of a widget that another node sets, all that is known here. */
    this.used = {}
    this.widgets = Object.fromEntries(NAMES.map((name) => [name, node.widgets.find((w) => w.name === name)]))
    for (const [name, widget] of Object.entries(this.widgets)) {
      // The panel shows them; without it they are there as of any node.
      widget.hidden = true
      widget.options.hidden = true
      widget.computeSize = () => [0, -4] // older pages keep room for a hidden widget
      const before = widget.callback
      widget.callback = (...values) => {
        const answer = before?.apply(widget, values)
        changed(name)
        return answer
      }
    }
  }

  /**
   * @returns {{threshold: string, area: number, value: number, percentile: number, grow: number, blur: number,
   *   keep: number, choice: string}}
   */
  get values() {
    const value = (name) => (this.isLinked(name) ? this.used[name] : undefined) ?? this.widgets[name].value
    return /** @type {any} */ (Object.fromEntries(NAMES.map((name) => [name, value(name)])))
  }

  /** Limits and steps of a number. */
  limits(name) {
    const { min, max, step2, step } = this.widgets[name].options
    return { min, max, step: step2 ?? step / 10 }
  }

  /** Whether another node sets it. */
  isLinked(name) {
    return this.node.inputs?.some((input) => input.widget?.name === name && input.link != null) ?? false
  }

  /** Whether anything is connected to an input that is no widget. */
  isConnected(name) {
    return this.node.inputs?.some((input) => input.name === name && input.link != null) ?? false
  }

  set(name, value) {
    const widget = this.widgets[name]
    if (widget.value === value) return
    widget.value = value
    widget.callback?.(value, this.app.canvas, this.node)
  }

  /** The choice, and which images it was made of. */
  choose(text, batch) {
    this.node.properties[CHOSEN_OF] = text ? batch : ''
    this.set('choice', text)
    this.remember()
  }

  /** The images that the choice was made of, if that is known. */
  get chosenOf() {
    return this.node.properties[CHOSEN_OF] ?? ''
  }

  /** Make what was set a step of its own to undo. */
  remember() {
    const tracker = this.app.extensionManager?.workflow?.activeWorkflow?.changeTracker
    if (tracker?.captureCanvasState) tracker.captureCanvasState()
    else tracker?.checkState?.()
    this.node.graph?.setDirtyCanvas?.(true, true)
  }
}
