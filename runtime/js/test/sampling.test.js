/** Filters, processors and the sampler on exact small distributions; text as it streams. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { exponentials } from "../src/exponential.js";
import { keepMinP, keepTopK, keepTopP, keepTypical } from "../src/filters.js";
import { History, WINDOW } from "../src/history.js";
import { samplingParams } from "../src/params.js";
import { banRepeatedNgrams, banSequences, penalizeCounts, penalizeRepetition } from "../src/processors.js";
import { Generator } from "../src/random.js";
import { Sampler } from "../src/sampler.js";
import { largest } from "../src/softmax.js";
import { StopScanner } from "../src/stops.js";
import { incomplete } from "../src/stream_decoder.js";
import { Tokenizer } from "../src/tokenizer.js";
import { splitTyped } from "../src/typed.js";

const DRAWS = 20_000;
/** Five standard deviations of a share of DRAWS. */
const SHARE = 5 * Math.sqrt(0.25 / DRAWS);

/** @param {number[]} probabilities */
function logits(...probabilities) {
  return Float32Array.from(probabilities, Math.log);
}

/** @param {Float32Array} kept */
function which(kept) {
  return Array.from(kept.keys()).filter((token) => kept[token] > Number.NEGATIVE_INFINITY);
}

for (const [name, kept, expected] of /** @type {[string, Float32Array, number[]][]} */ ([
  ["top_k", keepTopK(logits(0.1, 0.4, 0.2, 0.3), 2), [1, 3]],
  ["top_k, those equal to the k-th too", keepTopK(logits(0.3, 0.2, 0.3, 0.2), 3), [0, 1, 2, 3]],
  ["top_k of all", keepTopK(logits(0.5, 0.5), 9), [0, 1]],
  ["top_p, the one that crosses it too", keepTopP(logits(0.125, 0.5, 0.125, 0.25), 0.6), [1, 3]],
  ["top_p, at least one", keepTopP(logits(0.9, 0, 0, 0.1), 0.3), [0]],
  ["top_p, of equals the smaller id", keepTopP(logits(0.25, 0.25, 0.25, 0.25), 0.5), [0, 1]],
  ["min_p", keepMinP(logits(0.5, 0.24, 0.26), 0.5), [0, 2]],
  ["typical_p", keepTypical(logits(0.4, 0.3, 0.3), 0.5), [1, 2]],
]))
  test(name, () => assert.deepEqual(which(kept), expected));

test("penalties", () => {
  const values = Float32Array.of(2, -2, 3);
  penalizeRepetition(values, [0, 1], 2);
  assert.deepEqual([...values], [1, -4, 3]);
  penalizeCounts(values, new Map([[2, 3]]), 0.5, 0.25);
  assert.deepEqual([...values], [1, -4, 1.25]);
});

test("bans", () => {
  const values = new Float32Array(6);
  banRepeatedNgrams(values, [1, 2, 3, 1, 2], 3);
  assert.deepEqual(which(values), [0, 1, 2, 4, 5]);
  banSequences(
    values,
    [1, 2],
    [
      [2, 4],
      [1, 2, 5],
      [3, 0],
    ],
  );
  assert.deepEqual(which(values), [0, 1, 2]);
});

for (const params of [{}, { top_p: 0.6 }, { top_k: 2, top_p: 0.9 }, { min_p: 0.4 }, { typical_p: 0.5 }])
  test(`draws have the distribution of ${JSON.stringify(params)}`, () => {
    const given = logits(0.5, 0.25, 0.15, 0.1);
    const {
      top_k: k = 0,
      top_p: p = 1,
      min_p: least = 0,
      typical_p: typical = 1,
    } = /** @type {any} */ (params);
    /** @type {Float32Array} */
    let kept = given;
    if (k) kept = keepTopK(kept, k);
    if (p < 1) kept = keepTopP(kept, p);
    if (least) kept = keepMinP(kept, least);
    if (typical < 1) kept = keepTypical(kept, typical);
    const total = kept.reduce((sum, value) => sum + Math.exp(value), 0);
    const sampler = new Sampler(samplingParams(params), 4);
    const generator = Generator.fromSeed(1);
    const counts = new Float64Array(4);
    for (let draw = 0; draw < DRAWS; draw++) counts[sampler.choose(given, generator)]++;
    for (const [token, count] of counts.entries())
      assert.ok(Math.abs(count / DRAWS - Math.exp(kept[token]) / total) < SHARE, `token ${token}`);
  });

test("logits of any size are drawn from, and what is no number is refused", () => {
  const sampler = new Sampler(samplingParams({}), 300, 7);
  const generator = Generator.fromSeed(0);
  for (const shift of [-1000, 0, 90, 1e30]) {
    const values = new Float32Array(300).fill(shift - 1e4).fill(shift, 5, 6);
    if (shift < 1e30) assert.equal(sampler.choose(values, generator), 5);
  }
  for (const wrong of [Number.NaN, Number.POSITIVE_INFINITY])
    for (const temperature of [0, 1]) {
      const one = new Sampler(samplingParams({ temperature }), 300);
      const values = new Float32Array(300).fill(wrong, 3, 4);
      assert.throws(() => one.choose(values, generator), { name: "NotFiniteError" });
    }
});

test("greedy takes the smaller id among equals, and never the banned one", () => {
  const sampler = new Sampler(samplingParams({ temperature: 0 }), 4, 1);
  assert.equal(sampler.choose(Float32Array.of(1, 9, 3, 3), Generator.fromSeed(0)), 2);
});

test("the history is a window", () => {
  const history = new History(Array.from({ length: 5000 }, (_, place) => place % 7));
  assert.equal(history.tokens.length, WINDOW);
  history.push(100);
  const counted = new Map();
  for (const token of history.tokens) counted.set(token, (counted.get(token) ?? 0) + 1);
  assert.deepEqual([...history.counts].sort(), [...counted].sort());
});

test("stop strings come in parts", () => {
  const scanner = new StopScanner();
  assert.deepEqual(scanner.push("one st", ["stop"]), { text: "one ", stopped: false });
  assert.deepEqual(scanner.push("art st", ["stop"]), { text: "start ", stopped: false });
  assert.deepEqual(scanner.push("opped", ["stop"]), { text: "", stopped: true });
});

test("a character's bytes are held back until it is complete, whatever the cut", () => {
  const text = "aé日🚀z";
  // A token for each byte, by GPT-2's alphabet.
  const printable = (/** @type {number} */ byte) =>
    (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte !== 0xad && byte < 0x100);
  const others = Array.from({ length: 256 }, (_, byte) => byte).filter((byte) => !printable(byte));
  const alphabet = Array.from({ length: 256 }, (_, byte) =>
    String.fromCharCode(printable(byte) ? byte : 256 + others.indexOf(byte)),
  );
  const vocab = Object.fromEntries(["\n", ...alphabet].map((token, id) => [token, id]));
  const model = { type: "BPE", vocab, merges: [] };
  const byteLevel = { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true };
  const others_ = { added_tokens: [], normalizer: null, post_processor: null, decoder: byteLevel };
  const tokenizer = new Tokenizer(JSON.stringify({ ...others_, model, pre_tokenizer: byteLevel }), 0);
  assert.equal(tokenizer.kind, "bpe");
  const bytes = [...new TextEncoder().encode(text)];
  const decoder = tokenizer.decoder();
  const parts = bytes.map((byte) => decoder.push(byte + 1));
  assert.equal(parts.join(""), text);
  assert.ok(parts.every((part) => !part.includes("\ufffd")));
  const cut = tokenizer.decoder();
  assert.equal(
    [0xf0, 0x9f, 0x61, 0xe2, 0x82].map((byte) => cut.push(byte + 1)).join("") + cut.flush(),
    "\ufffda\ufffd",
  );
});

test("what can be completed in UTF-8 is known", () => {
  for (const [bytes, left] of /** @type {[number[], number][]} */ ([
    [[0x61], 0],
    [[0xc3], 1],
    [[0xe2, 0x82], 2],
    [[0xf0, 0x9f, 0x9a], 3],
    [[0xed, 0xa0], 0],
    [[0xc0], 0],
    [[0xf5], 0],
    [[0x80], 0],
    [[0xc3, 0xa9], 0],
  ]))
    assert.equal(incomplete(Uint8Array.from(bytes)), left);
});

test("exponentials are the library's", () => {
  const values = Float32Array.from({ length: 4000 }, (_, place) => place / 3 - 900);
  const found = new Float64Array(values.length);
  for (const [scale, shift] of [
    [1, 0],
    [0.7, 3],
    [4, 80],
  ]) {
    exponentials(values, scale, shift, found);
    for (const [place, value] of values.entries()) {
      const expected = Math.exp(Math.fround(value * scale) - shift);
      assert.ok(found[place] === expected || Math.abs(found[place] / expected - 1) < 1e-10, String(value));
    }
  }
  exponentials(Float32Array.of(Number.NaN, Number.NEGATIVE_INFINITY, 0), 1, 0, found);
  assert.deepEqual([...found.subarray(0, 3)], [Number.NaN, 0, 1]);
});

test("the largest come first, the smaller id among equals", () => {
  assert.deepEqual(largest([1, 5, 3, 5, 4], 3), [1, 3, 4]);
  assert.deepEqual(largest([1, 5, 3, 5, 4], 9, [4, 0]), [4, 0]);
  assert.deepEqual(largest([1], 0), []);
});

test("a text is cut before the word that is being typed", () => {
  assert.deepEqual(splitTyped("I do not kn"), ["I do not", " kn"]);
  assert.deepEqual(splitTyped("one\ntw"), ["one\n", "tw"]);
  assert.deepEqual(splitTyped("don't "), ["don't", " "]);
});

test("parameters are checked by name, type and range", () => {
  assert.throws(() => samplingParams(/** @type {any} */ ({ topk: 1 })), /topk is no sampling parameter/);
  assert.throws(() => samplingParams(/** @type {any} */ ({ regex: "a" })), /regex is not available/);
  assert.throws(() => samplingParams({ logit_bias: { 9: 1 } }, 9), /ids from 0 to 8, got 9/);
  assert.throws(() => samplingParams({ logit_bias: { 1: 1e5 } }), /within 10000 of 0/);
  assert.deepEqual(samplingParams({ logit_bias: { 3: -1, 2: Number.NEGATIVE_INFINITY } }).logit_bias, [
    [2, Number.NEGATIVE_INFINITY],
    [3, -1],
  ]);
});
