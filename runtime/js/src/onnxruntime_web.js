/** onnxruntime-web, set up for one thread and for nothing but this program's requests. */
import * as runtime from "onnxruntime-web/wasm";

let hasBegun = false;

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
  // It compiles its wasm with the first session: one that must fail lets that begin while the graph is read.
  const options = { executionProviders: ["wasm"] };
  if (!hasBegun) runtime.InferenceSession.create(new Uint8Array(1), options).catch(() => {});
  hasBegun = true;
  return runtime;
}
