/** An n-gram model: tables with back-off, as a step model. What it gives as logits are log-probabilities. */
import { firstLine, UnusableFileError } from "./errors.js";

const ALIGNMENT = 64;
const LONGEST_HEADER = 2 ** 16;
const HIGHEST_ORDER = 32;
const ROUNDING = 1e-5;

/**
 * @typedef {object} Level the n-grams of one length.
 * @property {Float32Array} logs of the last word after the others.
 * @property {Uint16Array | Uint32Array} words the last words; none of length 1, which are the ids.
 * @property {Float32Array} backoffs
 * @property {Uint32Array} offsets where those that extend each one are, in the next length.
 */

/** The tables of a file, with the lookups in them. */
export class NgramTables {
  /**
   * @param {Uint8Array} content of `ngram/model.ngram`.
   * @throws {Error} it is damaged, or of another format.
   */
  constructor(content) {
    const end = content.subarray(0, LONGEST_HEADER).indexOf(10) + 1;
    const header = JSON.parse(new TextDecoder().decode(content.subarray(0, end)));
    const { order, vocab_size: vocabSize, eos_id: eosId, counts } = header;
    if (header.format !== "steplm ngram" || header.format_version !== 1)
      throw new Error(`format ${header.format} ${header.format_version}`);
    const whole = [order, vocabSize, eosId, ...counts].every(Number.isSafeInteger);
    if (!whole || order < 1 || order > HIGHEST_ORDER || counts.length !== order || counts[0] !== vocabSize)
      throw new Error(`order ${order}, ${vocabSize} tokens, n-grams ${counts}`);
    this.vocabSize = vocabSize;
    this.eosId = eosId;
    this.order = order;
    /** @type {Level[]} */
    this.levels = readLevels(content.slice().buffer, end, vocabSize, counts);
    this.levels.forEach((level, place) => {
      checkLevel(level, place, vocabSize, counts[place + 1] ?? 0);
    });
  }

  /**
   * The contexts after `token`: the numbers of the n-grams of each length that end there.
   *
   * @param {number[]} nodes the contexts before it.
   * @param {number} token
   */
  read(nodes, token) {
    const after = this.order > 1 ? [token] : [];
    for (let place = 0; place < Math.min(nodes.length, this.order - 2); place++) {
      const child = this._child(place, nodes[place], token);
      if (child < 0) break; // longer ones were not seen either
      after.push(child);
    }
    return after;
  }

  /**
   * Write the log-probability of every token after the contexts into `row`.
   *
   * @param {Float32Array} row `(vocab)`.
   * @param {number[]} nodes
   */
  fill(row, nodes) {
    const weights = [0]; // of the contexts longer than each, and at last of all
    for (let place = nodes.length - 1; place >= 0; place--)
      weights.push(weights[weights.length - 1] + this.levels[place].backoffs[nodes[place]]);
    const unigram = this.levels[0].logs;
    const all = Math.fround(Number(weights.pop()));
    for (let token = 0; token < row.length; token++) row[token] = unigram[token] + all;
    for (const [place, node] of nodes.entries()) {
      const weight = Math.fround(Number(weights.pop()));
      const { words, logs } = this.levels[place + 1];
      const { offsets } = this.levels[place];
      for (let i = offsets[node]; i < offsets[node + 1]; i++) row[words[i]] = logs[i] + weight;
    }
  }

  /**
   * @param {number} place
   * @param {number} node
   * @param {number} token
   */
  _child(place, node, token) {
    const { words } = this.levels[place + 1];
    const { offsets } = this.levels[place];
    let [low, high] = [offsets[node], offsets[node + 1]];
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (words[middle] < token) low = middle + 1;
      else high = middle;
    }
    return low < offsets[node + 1] && words[low] === token ? low : -1;
  }
}

/** What {@link import("./model.js").Model} computes with, where a bundle has tables. */
export class NgramGraph {
  /**
   * @param {string} path
   * @param {Uint8Array} content
   * @param {import("./bundle.js").BundleConfig} config
   * @throws {UnusableFileError} the tables are damaged, or not those of the configuration.
   */
  constructor(path, content, config) {
    try {
      this.tables = new NgramTables(content);
    } catch (error) {
      throw new UnusableFileError(path, `not a file of n-grams, or damaged (${firstLine(error)})`);
    }
    const { vocabSize, eosId, order } = this.tables;
    const shape = JSON.stringify([null, order - 1]);
    const [state, ...others] = config.states;
    if (
      vocabSize !== config.vocab_size ||
      eosId !== config.eos_token_id ||
      others.length ||
      state.name !== "context" ||
      state.dtype !== "int64" ||
      JSON.stringify(state.shape) !== shape
    )
      throw new UnusableFileError(path, "does not fit config.json");
    this.provider = /** @type {const} */ ("cpu");
  }

  /**
   * @param {BigInt64Array} token `(batch, time)`.
   * @param {number} batch
   * @param {import("./state.js").State} state
   * @param {boolean} wantsLogits
   */
  async run(token, batch, state, wantsLogits) {
    const { tables } = this;
    const [time, width] = [token.length / batch, tables.order - 1];
    const logits = new Float32Array(wantsLogits ? token.length * tables.vocabSize : 0);
    const context = new BigInt64Array(batch * width);
    for (let row = 0; row < batch; row++) {
      const before = /** @type {BigInt64Array} */ (state[0].data).subarray(row * width, (row + 1) * width);
      const ids = token.subarray(row * time, (row + 1) * time);
      /** @type {number[]} */
      let nodes = [];
      for (const number of before) if (number) nodes = tables.read(nodes, Number(number) - 1);
      for (let place = 0; place < time && wantsLogits; place++) {
        nodes = tables.read(nodes, Number(ids[place]));
        const start = (row * time + place) * tables.vocabSize;
        tables.fill(logits.subarray(start, start + tables.vocabSize), nodes);
      }
      const recent = [...before, ...Array.from(ids, (token) => token + 1n)];
      context.set(recent.slice(recent.length - width), row * width);
    }
    return { logits, state: [{ data: context, dims: [batch, width] }] };
  }

  async release() {}
}

/**
 * @param {ArrayBuffer} buffer the file's.
 * @param {number} start where the arrays begin.
 * @param {number} vocabSize
 * @param {number[]} counts
 * @returns {Level[]}
 */
function readLevels(buffer, start, vocabSize, counts) {
  let position = start;
  if (position % ALIGNMENT) throw new Error("the header's length");
  /**
   * @param {Float32ArrayConstructor | Uint32ArrayConstructor | Uint16ArrayConstructor} Type
   * @param {number} count
   * @returns {any}
   */
  const take = (Type, count) => {
    const array = new Type(buffer, position, count);
    position += Math.ceil(array.byteLength / ALIGNMENT) * ALIGNMENT;
    return array;
  };
  const levels = counts.map((count, place) => {
    const logs = take(Float32Array, count);
    const words = take(vocabSize > 2 ** 16 ? Uint32Array : Uint16Array, place ? count : 0);
    const last = place === counts.length - 1;
    const backoffs = take(Float32Array, last ? 0 : count);
    return { logs, words, backoffs, offsets: take(Uint32Array, last ? 0 : count + 1) };
  });
  if (position !== buffer.byteLength) throw new Error(`${buffer.byteLength} bytes, not ${position}`);
  return levels;
}

/**
 * @param {Level} level
 * @param {number} place
 * @param {number} vocabSize
 * @param {number} next how many n-grams the next length has.
 */
function checkLevel({ logs, words, backoffs, offsets }, place, vocabSize, next) {
  for (const values of [logs, backoffs])
    if (!values.every((value) => value > Number.NEGATIVE_INFINITY && value <= ROUNDING))
      throw new Error(`logarithms of length ${place + 1} are not finite and at most 0`);
  if (!words.every((/** @type {number} */ word) => word < vocabSize))
    throw new Error(`a word of length ${place + 1} is not in the vocabulary`);
  if (!offsets.length) return;
  const rises = offsets.every((offset, i) => !i || offset >= offsets[i - 1]);
  if (offsets[0] !== 0 || offsets[offsets.length - 1] !== next || !rises)
    throw new Error(`offsets of length ${place + 1} do not rise from 0 to ${next}`);
}
