/** onnxruntime-web, set up for one thread and for nothing but this program's requests. */
import * as runtime from "onnxruntime-web/wasm";

/**
 * @param {string | URL | Uint8Array} [wasm] its wasm file: where it is, or its content.
 * @returns {Promise<typeof import("onnxruntime-common")>}
 */
export async function webRuntime(wasm) {
  const { env } = runtime;
  env.logLevel = "fatal"; // errors come as exceptions
  env.wasm.numThreads = 1; // more were slower for models of this size
  if (wasm instanceof Uint8Array) env.wasm.wasmBinary = /** @type {any} */ (wasm);
  else if (wasm) env.wasm.wasmPaths = { wasm: String(wasm) };
  return runtime;
}
