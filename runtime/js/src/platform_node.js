/** What differs between Node and browsers; this is Node's side. */
import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { parentPort } from "node:worker_threads";
import { webRuntime } from "./onnxruntime_web.js";

/** @typedef {import("onnxruntime-common").InferenceSession} InferenceSession */
/** @typedef {typeof import("onnxruntime-common")} Runtime */

/**
 * Read a file by its path; undefined where there is none.
 *
 * @param {string} path
 * @returns {Promise<Uint8Array | undefined>}
 */
export async function readPath(path) {
  try {
    return new Uint8Array(await readFile(path));
  } catch (error) {
    const code = /** @type {NodeJS.ErrnoException} */ (error).code;
    if (code === "ENOENT" || code === "ENOTDIR") return undefined;
    throw error;
  }
}

/**
 * The path of a folder's file, or the URL of one.
 *
 * @param {string | URL} folder
 * @returns {string | URL}
 */
export function resolveFolder(folder) {
  if (folder instanceof URL) return folder.protocol === "file:" ? fileURLToPath(folder) : folder;
  return /^https?:/.test(folder) ? new URL(folder) : folder.replace(/^file:.*/, (url) => fileURLToPath(url));
}

/**
 * The onnxruntime that is asked for: `native` is onnxruntime-node, `wasm` onnxruntime-web; `auto` takes the
 * first if it is installed.
 *
 * @param {"auto" | "native" | "wasm"} engine
 * @param {string | URL | Uint8Array} [wasm] onnxruntime-web's wasm file.
 * @returns {Promise<{runtime: Runtime, provider: "cpu" | "wasm"}>}
 */
export async function openRuntime(engine, wasm) {
  if (engine !== "wasm") {
    process.env.ORT_DISABLE_TELEMETRY ??= "1"; // read as the library is loaded
    try {
      const { default: runtime } = await import("onnxruntime-node");
      return { runtime: /** @type {any} */ (runtime), provider: "cpu" };
    } catch (error) {
      if (engine === "native")
        throw new Error("engine native needs onnxruntime-node: npm install onnxruntime-node", {
          cause: error,
        });
    }
  }
  const url = new URL(import.meta.resolve("onnxruntime-web/ort-wasm-simd-threaded.wasm"));
  return { runtime: await webRuntime(wasm ?? new Uint8Array(await readFile(url))), provider: "wasm" };
}

/** Let other work of this thread go on: events, timers, messages. */
export function pause() {
  return /** @type {Promise<void>} */ (new Promise((resolve) => setImmediate(resolve)));
}

/**
 * Within a worker, what its messages come from and go to.
 *
 * @returns {import("./channel.js").Port}
 */
export function workerPort() {
  if (!parentPort) throw new Error("not within a worker");
  return /** @type {any} */ (parentPort);
}
