/** The step graph in onnxruntime. */
import { openRuntime } from "#platform";
import { firstLine, UnusableFileError } from "./errors.js";
import { readGraphFile } from "./graph_file.js";

/** @typedef {import("./bundle.js").BundleConfig} BundleConfig */

/**
 * @typedef {object} EngineOptions
 * @property {"auto" | "native" | "wasm"} [engine] onnxruntime-node or onnxruntime-web; `auto` takes the first
 *   in Node if it is installed.
 * @property {string | URL | Uint8Array} [wasm] where onnxruntime-web's `ort-wasm-simd-threaded.wasm` is, or its
 *   content; by default the one beside its script.
 * @property {number} [threads] onnxruntime-node's threads within an operator; 1 by default.
 */

/** Tensors that some graphs have, and that are not used here. */
const OPTIONAL = ["logits_from", "hidden"];

/** A graph that was checked, ready to run. */
export class OnnxGraph {
  /**
   * @param {typeof import("onnxruntime-common")} runtime
   * @param {import("onnxruntime-common").InferenceSession} session
   * @param {BundleConfig} config
   * @param {"cpu" | "wasm"} provider
   */
  constructor(runtime, session, config, provider) {
    this._runtime = runtime;
    this._session = session;
    this._states = config.states;
    this._stateOutputs = config.states.map((state) => state.output);
    this._outputs = ["logits", ...this._stateOutputs];
    /** Where it runs. */
    this.provider = provider;
  }

  /**
   * Check a graph's file and open it.
   *
   * @param {string} path what messages call the file.
   * @param {Promise<Uint8Array>} file
   * @param {BundleConfig} config
   * @param {import("./bundle.js").Precision} precision
   * @param {EngineOptions} options
   * @throws {UnusableFileError} it is no graph of this bundle.
   */
  static async open(path, file, config, precision, { engine = "auto", wasm, threads = 1 }) {
    if (!["auto", "native", "wasm"].includes(engine))
      throw new RangeError(`engine must be auto, native or wasm, got ${engine}`);
    const [{ runtime, provider }, content] = await Promise.all([openRuntime(engine, wasm), file]);
    checkMetadata(path, readGraphFile(path, content), config, precision);
    let session;
    try {
      session = await runtime.InferenceSession.create(content, {
        executionProviders: [provider],
        intraOpNumThreads: threads,
        interOpNumThreads: 1,
        logSeverityLevel: 4,
      });
    } catch (error) {
      throw new UnusableFileError(path, `onnxruntime cannot load it: ${firstLine(error)}`);
    }
    checkTensors(path, session, config);
    return new OnnxGraph(runtime, session, config, provider);
  }

  /**
   * @param {BigInt64Array} token `(batch, time)`.
   * @param {number} batch
   * @param {import("./state.js").State} state
   * @param {boolean} wantsLogits
   * @returns {Promise<{logits: Float32Array, state: import("./state.js").State}>} logits `(batch, time, vocab)`.
   */
  async run(token, batch, state, wantsLogits) {
    const { Tensor } = this._runtime;
    /** @type {Record<string, import("onnxruntime-common").Tensor>} */
    const feeds = { token: new Tensor("int64", token, [batch, token.length / batch]) };
    this._states.forEach(({ name, dtype }, place) => {
      feeds[name] = new Tensor(/** @type {any} */ (dtype), state[place].data, state[place].dims);
    });
    const found = await this._session.run(feeds, wantsLogits ? this._outputs : this._stateOutputs);
    return {
      logits: wantsLogits ? /** @type {Float32Array} */ (found.logits.data) : new Float32Array(),
      state: this._stateOutputs.map((name) => /** @type {any} */ (found[name])),
    };
  }

  /** Give the memory back. */
  async release() {
    await this._session.release();
  }
}

/**
 * @param {string} path
 * @param {Record<string, string>} metadata
 * @param {BundleConfig} config
 * @param {string} precision
 */
function checkMetadata(path, metadata, config, precision) {
  const wanted = {
    precision,
    format_version: config.format_version,
    model_type: config.model_type,
    vocab_size: config.vocab_size,
    num_layers: config.num_hidden_layers,
    hidden_size: config.hidden_size,
    embedding_dim: config.embedding_dim,
    sos_id: config.bos_token_id,
    eos_id: config.eos_token_id,
    vocabulary_sha256: config.vocabulary_sha256,
    ...(config.window ? { window: config.window } : {}),
  };
  for (const [name, value] of Object.entries(wanted))
    if (metadata[name] !== String(value))
      throw new UnusableFileError(
        path,
        `does not fit config.json: ${name} is ${metadata[name]}, not ${value}`,
      );
}

/**
 * @param {string} path
 * @param {import("onnxruntime-common").InferenceSession} session
 * @param {BundleConfig} config
 */
function checkTensors(path, session, config) {
  const found = [...session.inputMetadata, ...session.outputMetadata];
  /** @type {Record<string, [string, (number | null)[]]>} */
  const wanted = { token: ["int64", [null, null]], logits: ["float32", [null, null, config.vocab_size]] };
  for (const { name, output, dtype, shape } of config.states) wanted[name] = wanted[output] = [dtype, shape];
  for (const tensor of found)
    if (!(tensor.name in wanted) && !OPTIONAL.includes(tensor.name))
      throw new UnusableFileError(path, `has the tensor ${tensor.name}, which config.json does not list`);
  for (const [name, [type, shape]] of Object.entries(wanted)) {
    const tensor = found.find((one) => one.name === name);
    if (!tensor?.isTensor) throw new UnusableFileError(path, `has no tensor ${name}`);
    const sizes = tensor.shape.map((size) => (typeof size === "number" ? size : null));
    if (tensor.type !== type || JSON.stringify(sizes) !== JSON.stringify(shape))
      throw new UnusableFileError(
        path,
        `${name} is ${tensor.type} ${JSON.stringify(sizes)}, where config.json says ${type} ${JSON.stringify(shape)}`,
      );
  }
}
