/**
 * The session: everything that a text's continuation depends on, as one value of a few kilobytes. It is saved in the
 * form that Python's runtime reads and writes (runtime/FORMAT.md).
 */
import { readArrays, writeArrays } from "./archive.js";
import { firstLine, UnusableFileError } from "./errors.js";
import { History, WINDOW } from "./history.js";
import { checkSeed } from "./params.js";
import { Generator } from "./random.js";
import { zeroState } from "./state.js";
import { StopScanner } from "./stops.js";
import { incomplete, StreamDecoder } from "./stream_decoder.js";

/** @typedef {import("./model.js").Model} Model */

const FORMAT = "steplm session";
const FORMAT_VERSION = 3;
const DTYPES = { float32: "<f4", int64: "<i8" };
const LARGEST = 2 ** 30;

/** Where a text is: the state, what is read next, the generator, and what is not yet shown. */
export class Session {
  /**
   * Use {@link Session.start} or {@link Session.restore}.
   *
   * @param {Model} model
   * @param {object} parts
   * @param {import("./state.js").State} parts.state after all tokens but the last, a batch of 1.
   * @param {number} parts.token the last token, which the next step reads.
   * @param {Generator} parts.generator what the next token is drawn by.
   * @param {StreamDecoder} parts.decoder holds the bytes of a character that is not complete.
   * @param {StopScanner} [parts.stops] holds what may be the beginning of a stop string.
   * @param {History} [parts.history] the last tokens of prompt and text, for the penalties.
   * @param {number} [parts.position] the number of tokens read and generated, without the first.
   */
  constructor(model, { state, token, generator, decoder, stops, history, position = 0 }) {
    this.model = model;
    this.state = state;
    this.token = token;
    this.generator = generator;
    this.decoder = decoder;
    this.stops = stops ?? new StopScanner();
    this.history = history ?? new History();
    this.position = position;
  }

  /**
   * Read a prompt from a zero state that has read one line's end.
   *
   * @param {Model} model
   * @param {string} [prompt] the text to continue.
   * @param {{seed?: number | bigint, index?: number | bigint, signal?: AbortSignal}} [options] of the generator:
   *   which of the samples of a seed.
   */
  static async start(model, prompt = "", { seed = 0, index = 0, signal } = {}) {
    checkSeed("seed", seed);
    checkSeed("index", index);
    const ids = model.tokenizer.encode(prompt);
    const read = [model.tokenizer.eosId, ...ids];
    return new Session(model, {
      state: await model.read(read.slice(0, -1), model.zeroState(), signal),
      token: read[read.length - 1],
      generator: Generator.fromSeed(seed, index),
      decoder: model.tokenizer.decoder(ids),
      history: new History(ids),
      position: ids.length,
    });
  }

  /**
   * Read more text, as if it had been generated; what is held back is dropped.
   *
   * @param {string} text
   * @param {AbortSignal} [signal]
   */
  async read(text, signal) {
    const ids = this.model.tokenizer.encode(text);
    if (!ids.length) return;
    this.state = await this.model.read([this.token, ...ids.slice(0, -1)], this.state, signal);
    this.token = ids[ids.length - 1];
    this.decoder = this.model.tokenizer.decoder(ids);
    this.stops = new StopScanner();
    for (const token of ids) this.history.push(token);
    this.position += ids.length;
  }

  /** A second session from here, which goes on as this one does; neither changes the other. */
  copy() {
    return this._with(this.generator.copy());
  }

  /**
   * A second session from here, with another generator; neither changes the other.
   *
   * @param {{seed: number | bigint, index?: number | bigint}} options
   */
  fork({ seed, index = 0 }) {
    checkSeed("seed", seed);
    checkSeed("index", index);
    return this._with(Generator.fromSeed(seed, index));
  }

  /** What is held back, when no more text comes. */
  flush() {
    const text = this.stops.held + this.decoder.flush();
    this.stops.held = "";
    return text;
  }

  /**
   * The session as a file.
   *
   * @returns {Uint8Array} an `.npz` file, which `lm_runtime.Session.load` reads too.
   */
  save() {
    const facts = {
      format: FORMAT,
      format_version: FORMAT_VERSION,
      model: this.model.identity,
      token: this.token,
      generator: {
        bit_generator: "PCG64",
        state: { state: String(this.generator.state), inc: String(this.generator.inc) },
        has_uint32: 0,
        uinteger: 0,
      },
      decoder: this.decoder.toJSON(),
      held: this.stops.held,
      position: this.position,
    };
    const text = new TextEncoder().encode(JSON.stringify(facts));
    /** @type {Record<string, import("./archive.js").Entry>} */
    const arrays = { facts: { dtype: "|u1", shape: [text.length], bytes: text } };
    const history = Int32Array.from(this.history.tokens);
    arrays.history = { dtype: "<i4", shape: [history.length], bytes: bytesOf(history) };
    this.model.states.forEach(({ name, dtype }, place) => {
      const { data, dims } = this.state[place];
      arrays[`state_${name}`] = { dtype: DTYPES[dtype], shape: [...dims], bytes: bytesOf(data) };
    });
    return writeArrays(arrays);
  }

  /**
   * The session in a file that {@link save} or Python's runtime wrote.
   *
   * @param {Model} model the one that made it, of the same precision.
   * @param {Uint8Array} bytes
   * @throws {UnusableFileError} it is damaged, or of another model.
   */
  static restore(model, bytes) {
    try {
      return restored(model, bytes);
    } catch (error) {
      if (error instanceof UnusableFileError) throw error;
      throw new UnusableFileError("session", `not a session, or damaged (${firstLine(error)})`);
    }
  }

  /** @param {Generator} generator */
  _with(generator) {
    const { state, token, position } = this;
    const stops = new StopScanner(this.stops.held);
    const [decoder, history] = [this.decoder.copy(), this.history.copy()];
    return new Session(this.model, { state, token, position, generator, decoder, stops, history });
  }
}

/**
 * @param {Model} model
 * @param {Uint8Array} bytes
 */
function restored(model, bytes) {
  if (bytes.length > LARGEST) throw new Error(`${bytes.length} bytes`);
  const text = readArrays(bytes, ["facts"]).facts.bytes;
  const facts = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(text));
  if (facts.format !== FORMAT) throw new Error("of another format");
  if (facts.format_version !== FORMAT_VERSION)
    throw new UnusableFileError(
      "session",
      `session format ${facts.format_version}, and this version reads ${FORMAT_VERSION}`,
    );
  if (facts.model !== model.identity)
    throw new UnusableFileError(
      "session",
      "saved with another model's bundle, or another precision of this one",
    );
  const names = model.states.map(({ name }) => `state_${name}`);
  const arrays = readArrays(bytes, ["history", ...names]);
  const state = zeroState(model.states).map((zeros, place) => {
    const found = arrays[names[place]];
    const { dtype } = model.states[place];
    if (found.dtype !== DTYPES[dtype] || found.shape.join() !== zeros.dims.join())
      throw new Error(`${names[place]} is ${found.dtype} ${found.shape}`);
    const { buffer } = found.bytes.slice();
    const data = dtype === "int64" ? new BigInt64Array(buffer) : new Float32Array(buffer);
    return { data, dims: zeros.dims };
  });
  const { history } = arrays;
  if (history.dtype !== "<i4" || history.shape.length !== 1 || history.shape[0] > WINDOW)
    throw new Error(`the history is ${history.dtype} ${history.shape}`);
  const tokens = [...new Int32Array(history.bytes.slice().buffer)];
  checkValues(model, facts, state, tokens);
  const { state: numbers } = facts.generator;
  return new Session(model, {
    state,
    token: facts.token,
    generator: new Generator(parseDigits(numbers.state), parseDigits(numbers.inc)),
    decoder: new StreamDecoder(model.tokenizer, facts.decoder),
    stops: new StopScanner(facts.held),
    history: new History(tokens),
    position: facts.position,
  });
}

/**
 * Throw for values that no session has, so that nothing fails only as its text goes on.
 *
 * @param {Model} model
 * @param {any} facts
 * @param {import("./state.js").State} state
 * @param {number[]} history
 */
function checkValues(model, facts, state, history) {
  const { decoder, generator } = facts;
  for (const { data } of state)
    for (const value of data)
      if (typeof value === "bigint" ? value < 0n || value > BigInt(model.vocabSize) : !Number.isFinite(value))
        throw new Error("a number of the state is out of its range");
  const ids = [facts.token, ...history, ...decoder.recent];
  if (!ids.every((token) => Number.isInteger(token) && token >= 0 && token < model.vocabSize))
    throw new Error("a token is not in the vocabulary");
  if (!Number.isInteger(facts.position) || facts.position < 0) throw new Error(`position ${facts.position}`);
  if (!(Number.isInteger(decoder.shown) && decoder.shown >= 0 && decoder.shown <= decoder.recent.length))
    throw new Error("more was shown than there is");
  const pairs = /^([0-9a-f]{2}){0,3}$/.test(decoder.undecoded)
    ? (decoder.undecoded.match(/../g) ?? [])
    : [""];
  const undecoded = Uint8Array.from(pairs, (/** @type {string} */ byte) => Number.parseInt(byte, 16));
  if (typeof decoder.line_start !== "boolean" || incomplete(undecoded) !== undecoded.length)
    throw new Error("what is not decoded is no beginning of a character");
  if (typeof facts.held !== "string") throw new Error("what is held back is no text");
  if (generator.bit_generator !== "PCG64") throw new Error("no state of the generator");
}

/** @param {unknown} text */
function parseDigits(text) {
  const number = typeof text === "string" && /^\d{1,39}$/.test(text) ? BigInt(text) : -1n;
  if (number < 0n || number >> 128n) throw new Error("a number of the generator is no text of digits");
  return number;
}

/** @param {ArrayBufferView} array */
function bytesOf(array) {
  return new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
}
