/**
 * A model in a worker, so that a page never stalls.
 *
 * `const model = await RemoteModel.load(new Worker(url, { type: "module" }), "bundle/")`, where the worker's script
 * imports `steplm/worker`.
 */
import { Channel, streamed } from "./channel.js";
import { Score } from "./score.js";

/** @typedef {{signal?: AbortSignal}} Options */
/** @typedef {import("./params.js").SamplingParams} SamplingParams */

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
