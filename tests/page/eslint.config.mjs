/** The linter of the page's scripts, for `python dev.py check page`. */

const HTML = ['innerHTML', 'outerHTML', 'insertAdjacentHTML', 'createContextualFragment', 'write', 'srcdoc']

export default [
  {
    rules: {
      'array-callback-return': 'error',
      'consistent-return': 'error',
      'default-case-last': 'error',
      eqeqeq: ['error', 'always', { null: 'ignore' }],
      'no-cond-assign': 'error',
      'no-constant-condition': 'error',
      'no-dupe-else-if': 'error',
      'no-dupe-keys': 'error',
      'no-empty': 'error',
      'no-eval': 'error',
      'no-fallthrough': 'error',
      'no-implied-eval': 'error',
      'no-loss-of-precision': 'error',
      'no-promise-executor-return': 'error',
      'no-redeclare': 'error',
      // Words of a graph, a file or a prompt are never HTML.
      'no-restricted-properties': ['error', ...HTML.map((property) => ({ property }))],
      'no-self-assign': 'error',
      'no-shadow': ['error', { builtinGlobals: false }],
      'no-unreachable': 'error',
      'no-unused-vars': 'error',
      'no-useless-return': 'error',
      'no-var': 'error',
      'object-shorthand': 'error',
      'prefer-const': ['error', { destructuring: 'all' }],
      'require-await': 'error',
    },
  },
]
