/** A bundle comes from a folder, a URL, files or memory, and a wrong one gives one clear error. */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { join } from "node:path";
import { test } from "node:test";
import { pathToFileURL } from "node:url";
import { load } from "../src/index.js";
import { plainSha256 } from "../src/sha256.js";
import { BUNDLE } from "./cases.js";

const NAMES = [
  "config.json",
  "generation_config.json",
  "tokenizer.json",
  "tokenizer_config.json",
  "tokens.txt",
  "onnx/model.onnx",
  "onnx/model_quantized.onnx",
];
/** @type {Map<string, Uint8Array>} */
const FILES = new Map();
for (const name of NAMES) FILES.set(name, new Uint8Array(await readFile(join(BUNDLE, name))));

/**
 * The fixture with some files changed, and hashes that fit, as a bundle of another exporter would be.
 *
 * @param {Record<string, Uint8Array | string>} changes
 * @param {Record<string, any>} [settings] of config.json.
 */
function changed(changes, settings = {}) {
  /** @type {Map<string, Uint8Array | string>} */
  const files = new Map(FILES);
  for (const [name, content] of Object.entries(changes)) files.set(name, content);
  const config = { ...JSON.parse(Buffer.from(file("config.json")).toString()), ...settings };
  for (const [name, content] of files)
    if (name in config.files) config.files[name] = createHash("sha256").update(content).digest("hex");
  files.set("config.json", JSON.stringify(config));
  return files;
}

/** @param {string} name */
function file(name) {
  return /** @type {Uint8Array} */ (FILES.get(name));
}

/**
 * @param {string} name
 * @param {(value: any) => void} change
 */
function json(name, change) {
  const value = JSON.parse(Buffer.from(file(name)).toString());
  change(value);
  return JSON.stringify(value);
}

/** A graph's file with one field more: a number below 16, and a text. */
function withField(/** @type {number} */ number, /** @type {string} */ text) {
  const bytes = Buffer.from(text);
  return Buffer.concat([file("onnx/model.onnx"), Buffer.from([(number << 3) | 2, bytes.length]), bytes]);
}

test("the same model comes from every source", async () => {
  const server = createServer(async (request, response) => {
    const content = FILES.get(String(request.url).replace("/a%20bundle/", ""));
    response.writeHead(content ? 200 : 404).end(content);
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", () => resolve(null)));
  const { port } = /** @type {import("node:net").AddressInfo} */ (server.address());
  const chosen = NAMES.map((name) => {
    const one = new File([Buffer.from(file(name))], name.replace(/.*\//, ""));
    return Object.defineProperty(one, "webkitRelativePath", { value: `chosen/${name}` });
  });
  const sources = [
    BUNDLE,
    pathToFileURL(BUNDLE),
    `http://127.0.0.1:${port}/a%20bundle`,
    new URL(`http://127.0.0.1:${port}/a%20bundle/`),
    FILES,
    Object.fromEntries(FILES),
    chosen,
    (/** @type {string} */ name) => FILES.get(name),
  ];
  for (const source of sources) {
    const model = await load(source, { engine: "native", precision: "int8" });
    assert.equal(model.identity, model.config.files["onnx/model_quantized.onnx"]);
    await model.release();
  }
  await assert.rejects(load(`http://127.0.0.1:${port}/none`), /the bundle's file is missing/);
  server.close();
});

for (const [problem, source, message] of /** @type {[string, () => any, RegExp][]} */ ([
  ["no folder", () => "no/such/folder", /^no\/such\/folder\/config.json: the bundle's file is missing$/],
  ["no JSON", () => new Map([["config.json", "{"]]), /config.json: not JSON/],
  ["another format", () => changed({}, { format_version: 99 }), /bundle format 99, where .* reads 1 and 2/],
  ["a field is missing", () => changed({}, { states: undefined }), /states is missing/],
  [
    "a changed file",
    () => ({ ...Object.fromEntries(FILES), "tokens.txt": "a 0\n" }),
    /tokens.txt: changed since the export/,
  ],
  ["a file is missing", () => new Map([...FILES].filter(([name]) => name !== "tokenizer.json")), /missing/],
  ["another vocabulary", () => changed({}, { vocabulary_sha256: "0" }), /vocabulary_sha256 is/],
  [
    "a tokenizer with a word more",
    () => changed({ "tokenizer.json": json("tokenizer.json", (value) => (value.model.vocab.more = 200)) }),
    /vocab_size is 201, not 200/,
  ],
  ["a state's name", () => changed({}, { states: [{ name: "../h" }] }), /state 0 has the name/],
  ["another size", () => changed({}, { hidden_size: 25 }), /hidden_size is 24, not 25/],
  [
    "another shape",
    () => changed({}, { states: [state("h", 24), state("c", 23)] }),
    /c_out is float32 \[2,null,24\], where config.json says float32 \[2,null,23\]/,
  ],
  [
    "a state that the graph lacks",
    () => changed({}, { states: [state("h", 24), state("d", 24)] }),
    /the tensor c/,
  ],
  ["no graph", () => changed({ "onnx/model.onnx": "no graph" }), /model.onnx: not an ONNX file, or damaged/],
  ["a cut graph", () => changed({ "onnx/model.onnx": file("onnx/model.onnx").slice(0, 5000) }), /damaged/],
  [
    "an operator's domain",
    () => changed({ "onnx/model.onnx": withField(8, "\n\x04evil") }),
    /operators of evil/,
  ],
  ["wrong defaults", () => changed({ "generation_config.json": '{"top_p": 7}' }), /top_p must be above 0/],
]))
  test(`refused: ${problem}`, async () => {
    await assert.rejects(load(source(), { engine: "native" }), { name: "UnusableFileError", message });
  });

test("a vocabulary may have other line ends, and settings their owner's values", async () => {
  const lines = Buffer.from(file("tokens.txt")).toString().replaceAll("\n", "\r\n");
  const defaults = '{"top_k": 3}';
  const source = { ...Object.fromEntries(FILES), "tokens.txt": lines, "generation_config.json": defaults };
  const model = await load(source, { engine: "native" });
  assert.equal(model.defaults.top_k, 3);
});

test("what is not there is said", async () => {
  await assert.rejects(
    load(BUNDLE, /** @type {any} */ ({ precision: "int4" })),
    /precision must be fp32 or int8/,
  );
  const files = json("config.json", (value) => delete value.files["onnx/model_quantized.onnx"]);
  const source = { ...Object.fromEntries(FILES), "config.json": files };
  await assert.rejects(load(source, { precision: "int8" }), /export it with --quantize int8/);
});

test("hashes without WebCrypto are those of it", () => {
  for (const length of [0, 1, 55, 56, 63, 64, 65, 1000, 200_001]) {
    const bytes = Uint8Array.from({ length }, (_, place) => (place * 31) % 251);
    assert.equal(
      Buffer.from(plainSha256(bytes)).toString("hex"),
      createHash("sha256").update(bytes).digest("hex"),
    );
  }
});

/**
 * @param {string} name
 * @param {number} width
 */
function state(name, width) {
  return { name, output: `${name}_out`, dtype: "float32", shape: [2, null, width] };
}
