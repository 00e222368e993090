/** The bundle: names of its files and tensors, and its `config.json`, as runtime/FORMAT.md has them. */
import { firstLine, UnusableFileError } from "./errors.js";
import { sha256 } from "./sha256.js";

export const FORMAT_VERSIONS = [1, 2];
export const CONFIG = "config.json";
export const GENERATION_CONFIG = "generation_config.json";
export const TOKENIZER = "tokenizer.json";
export const TOKENIZER_CONFIG = "tokenizer_config.json";
export const TOKENS = "tokens.txt";
/** The graph's file for each precision. */
export const MODELS = { fp32: "onnx/model.onnx", int8: "onnx/model_quantized.onnx" };
/** The file of an n-gram model's tables. */
export const TABLES = "ngram/model.ngram";

const LARGEST_STATE = 2 ** 26;
const MOST_AXES = 8;
const NAME = /^[A-Za-z_][A-Za-z0-9_.]{0,63}$/;
const RESERVED = ["token", "logits", "logits_from", "hidden"];
const VOCABULARY = [TOKENIZER, TOKENS];
const EDITABLE = [GENERATION_CONFIG, TOKENIZER_CONFIG];

/** @typedef {keyof typeof MODELS} Precision */

/**
 * One tensor of the state.
 *
 * @typedef {object} StateTensor
 * @property {string} name the graph's input.
 * @property {string} output the graph's output that is fed back to it.
 * @property {"float32" | "int64"} dtype the element type.
 * @property {(number | null)[]} shape its sizes; null stands for the batch.
 */

/**
 * What `config.json` says; fields that are not known are left out.
 *
 * @typedef {object} BundleConfig
 * @property {number} format_version 1 or 2.
 * @property {string} model_type the family.
 * @property {number} vocab_size the number of tokens.
 * @property {number} embedding_dim
 * @property {number} hidden_size
 * @property {number} num_hidden_layers
 * @property {string} tokenizer its kind.
 * @property {number} eos_token_id the id that ends a line.
 * @property {number} bos_token_id the id that a zero state reads first: the same.
 * @property {number | null} unk_token_id the id of unknown words.
 * @property {StateTensor[]} states in the order of the graph's inputs.
 * @property {string} vocabulary_sha256
 * @property {number} window
 * @property {number} order
 * @property {Record<string, string>} files the sha256 of each file.
 */

/** @type {Record<string, (value: any) => boolean>} */
const REQUIRED = {
  model_type: (value) => typeof value === "string",
  vocab_size: Number.isSafeInteger,
  embedding_dim: Number.isSafeInteger,
  hidden_size: Number.isSafeInteger,
  num_hidden_layers: Number.isSafeInteger,
  tokenizer: (value) => typeof value === "string",
  eos_token_id: Number.isSafeInteger,
  bos_token_id: Number.isSafeInteger,
  unk_token_id: (value) => value === null || Number.isSafeInteger(value),
  states: Array.isArray,
  vocabulary_sha256: (value) => typeof value === "string",
};

/**
 * The configuration in the content of `config.json`.
 *
 * @param {string} path
 * @param {Uint8Array} content
 * @returns {BundleConfig}
 * @throws {UnusableFileError} it is none, or one of another format.
 */
export function parseConfig(path, content) {
  const data = parseObject(path, content);
  if (!FORMAT_VERSIONS.includes(data.format_version)) {
    const known = FORMAT_VERSIONS.join(" and ");
    const found = JSON.stringify(data.format_version) ?? "unknown";
    throw new UnusableFileError(path, `bundle format ${found}, where this version of steplm reads ${known}`);
  }
  try {
    for (const [name, fits] of Object.entries(REQUIRED)) {
      if (!(name in data)) throw new Error(`${name} is missing`);
      if (!fits(data[name])) throw new Error(`${name} is ${JSON.stringify(data[name])}`);
    }
    const config = /** @type {BundleConfig} */ ({ window: 0, order: 0, files: {}, ...data });
    checkRanges(config);
    return config;
  } catch (error) {
    throw new UnusableFileError(path, `not a bundle's configuration (${firstLine(error)})`);
  }
}

/**
 * The JSON object in the content of a file.
 *
 * @param {string} path
 * @param {Uint8Array} content
 * @returns {Record<string, any>}
 * @throws {UnusableFileError} it is none.
 */
export function parseObject(path, content) {
  let data;
  try {
    data = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(content));
  } catch {
    throw new UnusableFileError(path, "not JSON");
  }
  if (!data || typeof data !== "object" || Array.isArray(data))
    throw new UnusableFileError(path, "not a JSON object");
  return data;
}

/**
 * A file's content.
 *
 * Graphs, tables and vocabularies must be what the exporter wrote; a vocabulary may have other line ends, as version
 * control converts them. The other files are their owner's to edit.
 *
 * @param {import("./source.js").Files} files
 * @param {BundleConfig} config
 * @param {string} name
 * @returns {Promise<Uint8Array>}
 * @throws {UnusableFileError} it is missing, or its sha256 is another.
 */
export async function readChecked(files, config, name) {
  if (!Object.hasOwn(config.files, name)) throw new UnusableFileError(files.path(CONFIG), `lists no ${name}`);
  let content = await files.read(name);
  if (EDITABLE.includes(name) || (await sha256(content)) === config.files[name]) return content;
  if (VOCABULARY.includes(name)) content = withLineFeeds(content);
  if ((await sha256(content)) !== config.files[name])
    throw new UnusableFileError(
      files.path(name),
      "changed since the export (its sha256 is not that of config.json)",
    );
  return content;
}

/** @param {Uint8Array} bytes */
function withLineFeeds(bytes) {
  return bytes.filter((byte, place) => !(byte === 13 && bytes[place + 1] === 10));
}

/** @param {any} config */
function checkRanges(config) {
  if (config.vocab_size < 1) throw new Error(`vocab_size is ${config.vocab_size}`);
  for (const name of ["eos_token_id", "bos_token_id", "unk_token_id"]) {
    const id = config[name];
    if (id !== null && !(id >= 0 && id < config.vocab_size))
      throw new Error(`${name} is ${id}, where ids are 0 to ${config.vocab_size - 1}`);
  }
  if (!config.states.length) throw new Error("no state");
  const names = new Set();
  for (const [number, state] of config.states.entries()) {
    checkState(number, state);
    if (names.has(state.name)) throw new Error(`two states have the name ${state.name}`);
    names.add(state.name);
  }
  if (!config.files || typeof config.files !== "object" || Array.isArray(config.files))
    throw new Error("files is no object");
  for (const [name, digest] of Object.entries(config.files))
    if (typeof digest !== "string") throw new Error(`the sha256 of ${name} is ${JSON.stringify(digest)}`);
}

/**
 * @param {number} number
 * @param {any} state
 */
function checkState(number, state) {
  const { name, output, dtype, shape } = state ?? {};
  if (typeof name !== "string" || !NAME.test(name) || RESERVED.includes(name))
    throw new Error(`state ${number} has the name ${JSON.stringify(name)}`);
  if (output !== `${name}_out`) throw new Error(`${name} comes out as ${JSON.stringify(output)}`);
  if (dtype !== "float32" && dtype !== "int64") throw new Error(`${name} is ${dtype}, not float32 or int64`);
  const sizes = Array.isArray(shape) ? shape.filter((size) => size !== null) : [];
  const fits =
    Array.isArray(shape) &&
    sizes.length === shape.length - 1 &&
    sizes.length <= MOST_AXES &&
    sizes.every((size) => Number.isSafeInteger(size) && size >= 0 && size <= LARGEST_STATE) &&
    sizes.reduce((product, size) => product * size, 1) <= LARGEST_STATE;
  if (!fits) throw new Error(`${name} has the shape ${JSON.stringify(shape)}`);
}
