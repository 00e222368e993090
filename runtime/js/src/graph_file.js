/**
 * What is in a graph's file, read as Protocol Buffers before onnxruntime makes a session of it.
 *
 * A bundle's graph is a plain list of operators with their weights beside them: what could open other files or
 * run code of its own (external data, functions, subgraphs, other domains) is refused. The metadata is read
 * here too, since onnxruntime-web does not give it.
 */
import { UnusableFileError } from "./errors.js";

/** @typedef {{number: number, value: number | Uint8Array}} Field a field's number, and its value. */

// Wire types, and numbers of fields as onnx.proto has them.
const VARINT = 0;
const FIXED64 = 1;
const BYTES = 2;
const FIXED32 = 5;
const MODEL = { graph: 7, opset: 8, metadata: 14 };
const GRAPH = { node: 1, initializer: 5 };
const NODE = { operator: 4, attribute: 5, domain: 7 };
const ATTRIBUTE_TENSORS = [5, 10];
/** @type {Record<string, Record<number, string>>} */
const REFUSED = {
  model: { 20: "training information", 25: "functions" },
  graph: { 15: "sparse tensors" },
  attribute: { 6: "subgraphs", 11: "subgraphs", 21: "functions", 22: "sparse tensors", 23: "sparse tensors" },
  tensor: { 13: "external data", 14: "external data" },
};
const DOMAINS = ["", "ai.onnx", "com.microsoft"];
/** Operators that run subgraphs, or call what is not in the file. */
const OPERATORS_REFUSED = ["If", "Loop", "Scan", "SequenceMap"];

class Refused extends Error {}

/**
 * The metadata of a graph that has only what a bundle's graph has.
 *
 * @param {string} path
 * @param {Uint8Array} content
 * @returns {Record<string, string>}
 * @throws {UnusableFileError} it has something else, or is no ONNX file.
 */
export function readGraphFile(path, content) {
  try {
    return readModel(content);
  } catch (error) {
    if (error instanceof Refused)
      throw new UnusableFileError(path, `has ${error.message}, which no graph of a bundle has`);
    throw new UnusableFileError(path, "not an ONNX file, or damaged");
  }
}

/** @param {Uint8Array} model */
function readModel(model) {
  /** @type {Record<string, string>} */
  const metadata = {};
  let graphs = 0;
  for (const { number, value } of fields(model, REFUSED.model)) {
    if (number === MODEL.graph) {
      graphs++;
      checkGraph(message(value));
    } else if (number === MODEL.opset) {
      for (const inner of fields(message(value)))
        if (inner.number === 1 && !DOMAINS.includes(text(inner.value)))
          throw new Refused(`operators of ${text(inner.value)}`);
    } else if (number === MODEL.metadata) {
      let [key, entry] = ["", ""];
      for (const inner of fields(message(value)))
        if (inner.number === 1) key = text(inner.value);
        else if (inner.number === 2) entry = text(inner.value);
      metadata[key] = entry;
    }
  }
  if (!graphs) throw new Error("no graph");
  return metadata;
}

/** @param {Uint8Array} graph */
function checkGraph(graph) {
  for (const { number, value } of fields(graph, REFUSED.graph)) {
    if (number === GRAPH.node) checkNode(message(value));
    else if (number === GRAPH.initializer) checkTensor(message(value));
  }
}

/** @param {Uint8Array} node */
function checkNode(node) {
  let [operator, domain] = ["", ""];
  for (const { number, value } of fields(node)) {
    if (number === NODE.operator) operator = text(value);
    else if (number === NODE.domain) domain = text(value);
    else if (number === NODE.attribute)
      for (const inner of fields(message(value), REFUSED.attribute))
        if (ATTRIBUTE_TENSORS.includes(inner.number)) checkTensor(message(inner.value));
  }
  if (!DOMAINS.includes(domain) || OPERATORS_REFUSED.includes(operator))
    throw new Refused(`the operator ${domain ? `${domain}:` : ""}${operator}`);
}

/** @param {Uint8Array} tensor */
function checkTensor(tensor) {
  for (const _ of fields(tensor, REFUSED.tensor));
}

/**
 * The fields of a message, in their order.
 *
 * @param {Uint8Array} bytes
 * @param {Record<number, string>} [refused] fields that may only be 0 or empty.
 * @returns {Generator<Field>}
 */
function* fields(bytes, refused = {}) {
  let position = 0;
  while (position < bytes.length) {
    const tag = varint(bytes, position);
    const [number, wire] = [tag.value >>> 3, tag.value & 7];
    let start = tag.end;
    /** @type {number | Uint8Array} */
    let value;
    if (wire === VARINT) {
      const found = varint(bytes, start);
      [value, position] = [found.value, found.end];
    } else {
      let size = { [FIXED64]: 8, [FIXED32]: 4 }[wire] ?? Number.NaN;
      if (wire === BYTES) {
        const found = varint(bytes, start);
        [size, start] = [found.value, found.end];
      }
      position = start + size;
      if (!(position <= bytes.length)) throw new Error("a field is cut off");
      value = bytes.subarray(start, position);
    }
    if (!number) throw new Error("no field's number");
    if (number in refused && (typeof value === "number" ? value : value.length))
      throw new Refused(refused[number]);
    yield { number, value };
  }
}

/**
 * The integer at a position, and the position after it; large ones lose their low bits, which nothing here
 * looks at.
 *
 * @param {Uint8Array} bytes
 * @param {number} start
 */
function varint(bytes, start) {
  let [value, factor, end] = [0, 1, start];
  while (true) {
    if (end >= bytes.length || end - start >= 10) throw new Error("an integer is cut off, or too long");
    const byte = bytes[end++];
    value += (byte & 0x7f) * factor;
    factor *= 128;
    if (byte < 0x80) return { value, end };
  }
}

/** @param {number | Uint8Array} value */
function message(value) {
  if (typeof value === "number") throw new Error("an integer, where a message is needed");
  return value;
}

/** @param {number | Uint8Array} value */
function text(value) {
  return new TextDecoder("utf-8", { fatal: true }).decode(message(value));
}
