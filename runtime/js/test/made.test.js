/** A bundle that Python made, of whatever family and tokenizer, gives here what Python found in it. */
import assert from "node:assert/strict";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import {
  Draft,
  generate,
  generatePieces,
  load,
  nextTokens,
  Session,
  samplingParams,
  score,
  suggest,
} from "../src/index.js";
import { CLOSE, fromBase64, largestDifference, MADE } from "./cases.js";

/** @typedef {import("../src/model.js").Model} Model */

const PARAMS = { max_tokens: 25, temperature: 0.9, top_k: 30 };

test("a bundle made by Python", { skip: MADE ? false : "tests/runtime/test_js.py runs it" }, async (t) => {
  const folder = String(MADE);
  const cases = JSON.parse(await readFile(join(folder, "cases.json"), "utf8"));
  const engine = /** @type {"wasm" | "native"} */ (process.env.STEPLM_ENGINE ?? "native");
  const model = await load(cases.bundle, { engine });

  for (const { text, ids, decoded } of cases.encoded)
    await t.test(`text to ids and back: ${JSON.stringify(text)}`, () => {
      assert.deepEqual(model.tokenizer.encode(text), ids);
      assert.equal(model.tokenizer.decode(ids), decoded);
    });

  await t.test("logits are Python's", async () => {
    const { logits } = await model.step([model.tokenizer.eosId], model.zeroState());
    assert.ok(largestDifference(logits, cases.first_logits) < CLOSE);
  });

  await t.test("scores are Python's", async () => {
    for (const one of cases.scored) {
      const { logProbabilities, counted, bitsPerByte, perplexityPerWord } = await score(model, one.text);
      assert.ok(largestDifference(logProbabilities, one.log_probabilities) < CLOSE);
      assert.deepEqual([counted.bytes, counted.words, counted.lines, counted.ordinary], one.counted);
      assert.equal(bitsPerByte === null, one.bits_per_byte === null);
      assert.equal(perplexityPerWord === null, one.perplexity_per_word === null);
    }
  });

  for (const one of cases.sampled)
    await t.test(`text is Python's: ${JSON.stringify(one.params)}`, async () => {
      const { prompt, params, seed, index } = one;
      assert.equal(await textOf(generate(model, prompt, params, { seed, index })), one.text);
    });

  for (const { text, line_breaks: lineBreaks, words } of cases.typed)
    await t.test(`words are Python's: ${JSON.stringify(text)}, ${lineBreaks}`, async () => {
      const draft = new Draft(model);
      await draft.suggest("Another text, longer than", 4);
      const found = await suggest(model, text, 4, { lineBreaks });
      for (const one of lineBreaks ? [found] : [found, await draft.suggest(text, 4)]) {
        assert.deepEqual(
          one.map(({ word }) => word),
          words.map((/** @type {[string, number]} */ [word]) => word),
        );
        const probabilities = one.map(({ probability }) => probability);
        const expected = words.map((/** @type {[string, number]} */ [, probability]) => probability);
        assert.ok(largestDifference(probabilities, expected) < CLOSE);
      }
    });

  await t.test("next tokens are Python's", async () => {
    const found = await nextTokens(model, "the keeper of the", 6);
    assert.deepEqual(
      found.map(({ text }) => text),
      cases.suggested.map((/** @type {[string, number]} */ [text]) => text),
    );
  });

  await t.test("a session that Python saved goes on", async () => {
    const { file, params, ids } = cases.session;
    assert.deepEqual(await idsOf(Session.restore(model, fromBase64(file)), params), ids);
  });

  await t.test("a session is saved for Python", async () => {
    const session = await Session.start(model, "the keeper", { seed: 2 ** 40 });
    await idsOf(session, PARAMS);
    await writeFile(join(folder, "from_js.npz"), session.save());
    const ids = await idsOf(session, PARAMS);
    await writeFile(join(folder, "from_js.json"), JSON.stringify({ params: PARAMS, ids }));
  });

  for (const { params, message } of cases.refused)
    await t.test(`refused in the same words: ${JSON.stringify(params)}`, () => {
      const capital = message.replace(/\bTrue\b/, "true").replace(/\bFalse\b/, "false");
      assert.throws(() => samplingParams(params), { name: "RangeError", message: capital });
    });

  await t.test("a text is read bit for bit the same, whole or in parts", async () => {
    const text = "The keeper of the clock went down.\nThe ferry was late, and so were they.";
    const whole = await Session.start(model, text, { seed: 3 });
    const draft = new Draft(model);
    for (let end = 0; end < text.length; end += 7) await draft.session(text.slice(0, end));
    await draft.surprisal(text);
    const parts = await draft.session(text, { seed: 3 });
    assert.deepEqual(parts.save(), whole.save());
  });

  await t.test("surprisals are those of the score", async () => {
    const text = "The keeper of the clock";
    const draft = new Draft(model);
    await draft.surprisal("The keeper's dog");
    const found = await draft.surprisal(text);
    const { logProbabilities } = await score(model, text);
    const bits = logProbabilities.slice(0, -1).map((value) => -value / Math.LN2);
    assert.ok(
      largestDifference(
        found.map((part) => part.bits),
        bits,
      ) < CLOSE,
    );
  });
  await model.release();
});

/** @param {AsyncIterable<string>} pieces */
async function textOf(pieces) {
  let text = "";
  for await (const piece of pieces) text += piece;
  return text;
}

/**
 * @param {Session} session
 * @param {Partial<import("../src/params.js").SamplingParams>} params
 */
async function idsOf(session, params) {
  const ids = [];
  for await (const piece of generatePieces(session, params)) ids.push(piece.token);
  return ids;
}
