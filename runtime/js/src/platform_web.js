/** What differs between Node and browsers; this is the browsers' side, of pages and workers. */
import { webRuntime } from "./onnxruntime_web.js";

/**
 * @param {string} path
 * @returns {Promise<Uint8Array | undefined>}
 */
export async function readPath(path) {
  throw new Error(`${path}: a browser reads no paths; give a URL or files`);
}

/**
 * @param {string | URL} folder
 * @returns {string | URL}
 */
export function resolveFolder(folder) {
  return new URL(folder, globalThis.document?.baseURI ?? globalThis.location.href);
}

/**
 * @param {"auto" | "native" | "wasm"} engine
 * @param {string | URL | Uint8Array} [wasm] onnxruntime-web's wasm file; by default where its script is.
 * @returns {Promise<{runtime: typeof import("onnxruntime-common"), provider: "cpu" | "wasm"}>}
 */
export async function openRuntime(engine, wasm) {
  if (engine === "native") throw new Error("engine native is Node's; in a browser it is wasm");
  return { runtime: await webRuntime(wasm), provider: "wasm" };
}

/** Let other work of this thread go on: events, timers, messages. */
export function pause() {
  return /** @type {Promise<void>} */ (
    new Promise((resolve) => {
      // A timer would wait four milliseconds.
      const { port1, port2 } = new MessageChannel();
      port1.onmessage = () => {
        port1.close();
        resolve();
      };
      port2.postMessage(null);
    })
  );
}

/**
 * Within a worker, what its messages come from and go to.
 *
 * @returns {import("./channel.js").Port}
 */
export function workerPort() {
  return /** @type {any} */ (globalThis);
}
