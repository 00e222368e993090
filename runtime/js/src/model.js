/** The model: `{logits, state} = await model.step(ids, state)`. The state is a value; the model keeps none. */
import {
  CONFIG,
  GENERATION_CONFIG,
  MODELS,
  parseConfig,
  parseObject,
  readChecked,
  TABLES,
  TOKENIZER,
  TOKENIZER_CONFIG,
  TOKENS,
} from "./bundle.js";
import { firstLine, UnusableFileError } from "./errors.js";
import { OnnxGraph } from "./graph.js";
import { NgramGraph } from "./ngram.js";
import { PARAMETERS, samplingParams } from "./params.js";
import { Files } from "./source.js";
import { zeroState } from "./state.js";
import { Tokenizer } from "./tokenizer.js";

/** @typedef {import("./state.js").State} State */

const READ_TOKENS = 64; // in one call: it bounds one step's work

/** A bundle's graph or tables, its tokenizer and its defaults, ready to step; made by {@link load}. */
export class Model {
  /**
   * @param {import("./bundle.js").BundleConfig} config
   * @param {Tokenizer} tokenizer
   * @param {import("./params.js").SamplingParams} defaults
   * @param {import("./bundle.js").Precision} precision
   * @param {OnnxGraph | NgramGraph} graph
   * @param {string} identity
   */
  constructor(config, tokenizer, defaults, precision, graph, identity) {
    /** What `config.json` says. */
    this.config = config;
    this.tokenizer = tokenizer;
    /** The sampling parameters that the bundle proposes. */
    this.defaults = defaults;
    this.precision = precision;
    /** The sha256 of the graph's or the tables' file: a state goes only with the weights that made it. */
    this.identity = identity;
    this.states = config.states;
    this.vocabSize = config.vocab_size;
    this._graph = graph;
  }

  /** Where it runs: `cpu` (native, or tables) or `wasm`. */
  get provider() {
    return this._graph.provider;
  }

  /**
   * The state of sequences that have read nothing.
   *
   * @param {number} [batch]
   */
  zeroState(batch = 1) {
    return zeroState(this.states, batch);
  }

  /**
   * Read ids from a state.
   *
   * @param {ArrayLike<number>} ids `(batch, time)`, the rows one after the other; at least one a row.
   * @param {State} state of that batch.
   * @param {number} [batch]
   * @returns {Promise<{logits: Float32Array, state: State}>} logits `(batch, time, vocab)`, and the state after.
   * @throws {RangeError} an id is not in the vocabulary, or their number does not go with the batch.
   */
  async step(ids, state, batch = 1) {
    return this._graph.run(this._checked(ids, batch), batch, state, true);
  }

  /**
   * Read ids into a state of batch 1, for the state alone, up to 64 in one call.
   *
   * @param {number[]} ids
   * @param {State} state
   * @param {AbortSignal} [signal]
   * @returns {Promise<State>}
   */
  async read(ids, state, signal) {
    let after = state;
    for (let start = 0; start < ids.length; start += READ_TOKENS) {
      signal?.throwIfAborted();
      const token = this._checked(ids.slice(start, start + READ_TOKENS), 1);
      after = (await this._graph.run(token, 1, after, false)).state;
    }
    return after;
  }

  /** Give the graph's memory back; the model cannot be used any more. */
  async release() {
    await this._graph.release();
  }

  /**
   * @param {ArrayLike<number>} ids
   * @param {number} batch
   */
  _checked(ids, batch) {
    const time = ids.length / batch;
    if (!(time >= 1 && Number.isInteger(time)))
      throw new RangeError(
        `a step reads at least one token for each of ${batch} sequences, got ${ids.length}`,
      );
    const token = new BigInt64Array(ids.length);
    for (let place = 0; place < ids.length; place++) {
      const one = ids[place];
      if (!(one >= 0 && one < this.vocabSize))
        throw new RangeError(`a token must be from 0 to ${this.vocabSize - 1}, got ${one}`);
      token[place] = BigInt(one);
    }
    return token;
  }
}

/**
 * Load a bundle, checked as Python's runtime checks it.
 *
 * @param {import("./source.js").Source} source a folder's URL or path, its files, or what reads them.
 * @param {import("./graph.js").EngineOptions & {precision?: "fp32" | "int8"}} [options]
 * @returns {Promise<Model>}
 * @throws {UnusableFileError} the bundle is incomplete, damaged, of another format, or contradicts itself.
 * @throws {RangeError} it has no such graph.
 */
export async function load(source, { precision = "fp32", ...engine } = {}) {
  if (!Object.hasOwn(MODELS, precision))
    throw new RangeError(`precision must be fp32 or int8, got ${precision}`);
  const files = new Files(source);
  const config = parseConfig(files.path(CONFIG), await files.read(CONFIG));
  const hasTables = TABLES in config.files && !Object.values(MODELS).some((name) => name in config.files);
  if (hasTables && precision !== "fp32")
    throw new RangeError(`${files.name} is an n-gram model, which has no ${precision} graph`);
  if (precision === "int8" && !(MODELS.int8 in config.files))
    throw new RangeError(`${files.name} has no int8 graph; export it with --quantize int8`);
  const weights = hasTables ? TABLES : MODELS[precision];
  const read = (/** @type {string} */ name) => readChecked(files, config, name);
  const content = read(weights);
  const path = files.path(weights);
  const [graph, tokenizer, defaults] = await Promise.all([
    hasTables
      ? content.then((bytes) => new NgramGraph(path, bytes, config))
      : OnnxGraph.open(path, content, config, precision, engine),
    openTokenizer(files, config, read),
    read(GENERATION_CONFIG).then((bytes) => samplingDefaults(files.path(GENERATION_CONFIG), bytes)),
    read(TOKENS),
  ]);
  const model = new Model(config, tokenizer, defaults, precision, graph, config.files[weights]);
  await tryStep(model, path);
  return model;
}

/**
 * @param {Files} files
 * @param {import("./bundle.js").BundleConfig} config
 * @param {(name: string) => Promise<Uint8Array>} read
 */
async function openTokenizer(files, config, read) {
  const path = files.path(TOKENIZER);
  const [json, options] = await Promise.all([read(TOKENIZER), read(TOKENIZER_CONFIG)]);
  let tokenizer;
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(json);
    const { eos_token_id: eosId, unk_token_id: unkId } = config;
    tokenizer = new Tokenizer(text, eosId, unkId, parseObject(files.path(TOKENIZER_CONFIG), options));
  } catch (error) {
    throw error instanceof UnusableFileError ? error : new UnusableFileError(path, firstLine(error));
  }
  for (const [name, found, wanted] of [
    ["vocab_size", tokenizer.vocabSize, config.vocab_size],
    ["vocabulary_sha256", await tokenizer.vocabularySha256(), config.vocabulary_sha256],
    ["bos_token_id", config.eos_token_id, config.bos_token_id],
  ])
    if (found !== wanted)
      throw new UnusableFileError(path, `does not fit the model: ${name} is ${found}, not ${wanted}`);
  return tokenizer;
}

/**
 * @param {string} path
 * @param {Uint8Array} bytes
 */
function samplingDefaults(path, bytes) {
  const data = parseObject(path, bytes);
  if ("max_new_tokens" in data) data.max_tokens = data.max_new_tokens;
  const known = Object.entries(data).filter(([name]) => name in PARAMETERS);
  try {
    return samplingParams(Object.fromEntries(known));
  } catch (error) {
    throw new UnusableFileError(path, `not usable as sampling parameters (${firstLine(error)})`);
  }
}

/**
 * Take one step: what is wrong with a graph only as it runs is found here.
 *
 * @param {Model} model
 * @param {string} path
 */
async function tryStep(model, path) {
  let found;
  try {
    found = await model.step([model.tokenizer.eosId], model.zeroState());
  } catch (error) {
    throw new UnusableFileError(path, `cannot take a step: ${firstLine(error)}`);
  }
  if (found.logits.length !== model.vocabSize)
    throw new UnusableFileError(path, `gives ${found.logits.length} logits`);
}
