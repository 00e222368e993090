/**
 * A model in a worker, so that a page never stalls.
 *
 * `const model = await RemoteModel.load(new Worker(url, { type: "module" }), "bundle/")`, where the worker's script
 * is `steplm/worker`.
 */
import { NotFiniteError, UnusableFileError } from "./errors.js";
import { Score } from "./score.js";

/**
 * What messages go to and come from: a Worker, or one of Node's `worker_threads`.
 *
 * @typedef {object} Port
 * @property {(message: any) => void} postMessage
 * @property {(type: "message" | "error", listener: (event: any) => void) => void} addEventListener
 * @property {(type: "message" | "error", listener: (data: any) => void) => void} [on]
 * @property {() => void} [terminate]
 */

/** @typedef {{signal?: AbortSignal}} Options */
/** @typedef {import("./params.js").SamplingParams} SamplingParams */

/** One end of the conversation: requests go out, and answers come back by their numbers. */
class Channel {
  /** @param {Port} port */
  constructor(port) {
    this._port = port;
    this._asked = 0;
    /** @type {Map<number, {resolve: (value: any) => void, reject: (error: any) => void, text?: (text: string) => void}>} */
    this._waiting = new Map();
    const listen = (/** @type {any} */ data) => this._hear(data);
    const fail = (/** @type {any} */ error) =>
      this._fail(`the worker failed: ${error.message ?? "no such script"}`);
    if (port.on) {
      port.on("message", listen);
      port.on("error", fail);
    } else {
      port.addEventListener("message", ({ data }) => listen(data));
      port.addEventListener("error", fail);
    }
  }

  /**
   * @param {string} method
   * @param {any[]} parameters
   * @param {AbortSignal} [signal]
   * @param {(text: string) => void} [text] called with text as it comes.
   * @returns {Promise<any>}
   */
  ask(method, parameters, signal, text) {
    if (signal?.aborted) return Promise.reject(signal.reason);
    const id = ++this._asked;
    const abort = () => {
      this._port.postMessage({ id });
      this._waiting.get(id)?.reject(signal?.reason);
      this._waiting.delete(id);
    };
    signal?.addEventListener("abort", abort, { once: true });
    const answer = new Promise((resolve, reject) => {
      this._waiting.set(id, { resolve, reject, text });
    });
    this._port.postMessage({ id, method, parameters });
    return answer.finally(() => signal?.removeEventListener("abort", abort));
  }

  /** End the worker, and what it was asked for. */
  close() {
    this._port.terminate?.();
    this._fail("the worker was closed");
  }

  /** @param {string} message */
  _fail(message) {
    for (const { reject } of this._waiting.values()) reject(new Error(message));
    this._waiting.clear();
  }

  /** @param {any} answer */
  _hear({ id, value, text, error }) {
    const waiting = this._waiting.get(id);
    if (!waiting) return;
    if (text !== undefined) return waiting.text?.(text);
    this._waiting.delete(id);
    if (error) waiting.reject(revived(error));
    else waiting.resolve(value);
  }
}

/** A model in a worker; its methods are the functions of `steplm`. */
export class RemoteModel {
  /**
   * @param {Channel} channel
   * @param {any} facts
   */
  constructor(channel, { config, defaults, precision, provider, identity }) {
    this._channel = channel;
    /** @type {import("./bundle.js").BundleConfig} */
    this.config = config;
    /** @type {SamplingParams} */
    this.defaults = defaults;
    /** @type {"fp32" | "int8"} */
    this.precision = precision;
    /** @type {"cpu" | "wasm"} */
    this.provider = provider;
    /** @type {string} */
    this.identity = identity;
    /** A text that is being written. */
    this.draft = new RemoteDraft(channel);
  }

  /**
   * @param {any} worker a Worker, or one of Node's `worker_threads`, of the script `steplm/worker`.
   * @param {Exclude<import("./source.js").Source, Function>} source
   * @param {Parameters<typeof import("./model.js").load>[1]} [options]
   */
  static async load(worker, source, options = {}) {
    const channel = new Channel(worker);
    const place = source instanceof URL ? String(source) : source;
    const from =
      typeof place === "object" && Symbol.iterator in place && !(place instanceof Map) ? [...place] : place;
    const wasm = options.wasm instanceof URL ? String(options.wasm) : options.wasm;
    return new RemoteModel(channel, await channel.ask("load", [from, { ...options, wasm }]));
  }

  /**
   * @param {string | RemoteSession} [prompt]
   * @param {Partial<SamplingParams>} [params]
   * @param {Options & {seed?: number | bigint, index?: number | bigint}} [options]
   * @returns {AsyncGenerator<string, void, void>}
   */
  async *generate(prompt = "", params = {}, { signal, ...options } = {}) {
    const from = typeof prompt === "string" ? prompt : { handle: prompt.handle };
    yield* streamed(this._channel, [from, params, options], signal);
  }

  /**
   * @param {string} text
   * @param {number} [k]
   * @param {{typed?: string, lineBreaks?: boolean}} [options]
   * @returns {Promise<import("./words.js").Suggestion[]>}
   */
  suggest(text, k, options) {
    return this._channel.ask("suggest", [text, k, options]);
  }

  /**
   * @param {string} text
   * @param {number} [k]
   * @param {{allowUnk?: boolean, lineBreaks?: boolean}} [options]
   * @returns {Promise<{text: string, probability: number}[]>}
   */
  nextTokens(text, k, options) {
    return this._channel.ask("nextTokens", [text, k, options]);
  }

  /**
   * @param {string} text
   * @param {Options} [options]
   */
  async score(text, { signal } = {}) {
    const { ids, logProbabilities, unknown, counted } = await this._channel.ask("score", [text], signal);
    return new Score(ids, logProbabilities, unknown, counted);
  }

  /**
   * @param {string} [prompt]
   * @param {{seed?: number | bigint, index?: number | bigint}} [options]
   */
  async start(prompt = "", options = {}) {
    return new RemoteSession(this._channel, await this._channel.ask("start", [prompt, options]));
  }

  /** @param {Uint8Array} bytes */
  async restore(bytes) {
    return new RemoteSession(this._channel, await this._channel.ask("restore", [bytes]));
  }

  /** End the worker. */
  close() {
    this._channel.close();
  }
}

/** A session in the worker, until it is released. */
export class RemoteSession {
  /**
   * @param {Channel} channel
   * @param {number} handle
   */
  constructor(channel, handle) {
    this._channel = channel;
    this.handle = handle;
  }

  /** @param {{seed: number | bigint, index?: number | bigint}} options */
  async fork(options) {
    return new RemoteSession(this._channel, await this._channel.ask("fork", [this.handle, options]));
  }

  async copy() {
    return new RemoteSession(this._channel, await this._channel.ask("copy", [this.handle]));
  }

  /** @param {string} text */
  async read(text) {
    await this._channel.ask("read", [this.handle, text]);
  }

  /** @returns {Promise<string>} */
  flush() {
    return this._channel.ask("flush", [this.handle]);
  }

  /** @returns {Promise<Uint8Array>} */
  save() {
    return this._channel.ask("save", [this.handle]);
  }

  /** Give its memory in the worker back. */
  async release() {
    await this._channel.ask("release", [this.handle]);
  }
}

/** A text that is being written, in the worker: see {@link import("./draft.js").Draft}. */
class RemoteDraft {
  /** @param {Channel} channel */
  constructor(channel) {
    this._channel = channel;
  }

  /**
   * @param {string} text
   * @param {number} [k]
   * @param {Options} [options]
   * @returns {Promise<import("./words.js").Suggestion[]>}
   */
  suggest(text, k, { signal } = {}) {
    return this._channel.ask("draftSuggest", [text, k], signal);
  }

  /**
   * @param {string} text
   * @param {Options} [options]
   * @returns {Promise<{text: string, bits: number}[]>}
   */
  surprisal(text, { signal } = {}) {
    return this._channel.ask("draftSurprisal", [text], signal);
  }

  /**
   * @param {string} text
   * @param {Options & {seed?: number | bigint, index?: number | bigint}} [options]
   */
  async session(text, { signal, ...options } = {}) {
    return new RemoteSession(this._channel, await this._channel.ask("draftSession", [text, options], signal));
  }
}

/**
 * Text as the worker posts it; breaking off the iteration breaks off the work.
 *
 * @param {Channel} channel
 * @param {any[]} parameters
 * @param {AbortSignal} [signal]
 * @returns {AsyncGenerator<string, void, void>}
 */
async function* streamed(channel, parameters, signal) {
  const controller = new AbortController();
  const stop = () => controller.abort(signal?.reason);
  if (signal?.aborted) stop();
  signal?.addEventListener("abort", stop, { once: true });
  let text = "";
  let isDone = false;
  let wake = () => {};
  const answer = channel
    .ask("generate", parameters, controller.signal, (more) => {
      text += more;
      wake();
    })
    .finally(() => {
      isDone = true;
      wake();
    });
  answer.catch(() => {}); // it is awaited below, unless the reader breaks off
  try {
    while (!isDone) {
      await /** @type {Promise<void>} */ (
        new Promise((resolve) => {
          wake = resolve;
          if (text || isDone) resolve();
        })
      );
      const ready = text;
      text = "";
      if (ready) yield ready;
    }
    const rest = text + (await answer);
    if (rest) yield rest;
  } finally {
    signal?.removeEventListener("abort", stop);
    if (!isDone) controller.abort();
  }
}

/** @param {{name: string, message: string}} error */
function revived({ name, message }) {
  if (name === "UnusableFileError") {
    const [file, ...problem] = message.split(": ");
    return new UnusableFileError(file, problem.join(": "));
  }
  if (name === "NotFiniteError") return new NotFiniteError();
  if (name === "RangeError") return new RangeError(message);
  if (name === "AbortError") return new DOMException(message, name);
  return new Error(message);
}
