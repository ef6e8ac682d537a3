/** What the page serves beside our scripts, in the types that its front end publishes. */

declare module '*/scripts/api.js' {
  export const api: import('@comfyorg/comfyui-frontend-types').ComfyApi
}

declare module '*/scripts/app.js' {
  export const app: import('@comfyorg/comfyui-frontend-types').ComfyApp
}
