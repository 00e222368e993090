/** The fixture bundle has what tests/fixtures/cases.json says, in both engines. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { generatePieces, load, Session, score } from "../src/index.js";
import { NgramTables } from "../src/ngram.js";
import { Generator } from "../src/random.js";
import { logSoftmax } from "../src/softmax.js";
import { BUNDLE, CASES, CLOSE, ENGINES, fromBase64, largestDifference, OLD_BUNDLE } from "./cases.js";

for (const { seed, index, state, inc, uniforms } of CASES.generators)
  test(`the generator of seed ${seed}, index ${index} is numpy's`, () => {
    const generator = Generator.fromSeed(BigInt(seed), BigInt(index));
    assert.equal(String(generator.state), state);
    assert.equal(String(generator.inc), inc);
    assert.deepEqual(
      uniforms.map(() => generator.random()),
      uniforms,
    );
  });

test("tables give the listed log-probabilities", () => {
  const { file, ids, log_probabilities: expected } = CASES.ngram;
  const tables = new NgramTables(fromBase64(file));
  const row = new Float32Array(tables.vocabSize);
  let nodes = tables.read([], tables.eosId);
  const found = ids.map((/** @type {number} */ token) => {
    tables.fill(row, nodes);
    nodes = tables.read(nodes, token);
    return row[token];
  });
  assert.ok(largestDifference(found, expected) < CLOSE);
});

test("a bundle of format 1 is read as one of format 2", async () => {
  const [old, now] = [await load(OLD_BUNDLE, { engine: "native" }), await load(BUNDLE, { engine: "native" })];
  assert.equal(old.config.format_version, 1);
  assert.equal(old.tokenizer.kind, now.tokenizer.kind);
  for (const { text, ids } of CASES.encoded)
    if (!text.includes("<eos>")) assert.deepEqual(old.tokenizer.encode(text), ids);
  assert.deepEqual(old.tokenizer.tokens, now.tokenizer.tokens);
  const found = await score(old, CASES.scored.text);
  assert.deepEqual(found.ids, CASES.scored.ids);
});

for (const engine of ENGINES)
  test(engine, async (t) => {
    const model = await load(BUNDLE, { engine });
    assert.equal(model.provider, engine === "wasm" ? "wasm" : "cpu");

    for (const { text, ids, decoded } of CASES.encoded)
      await t.test(`text to ids and back: ${JSON.stringify(text)}`, () => {
        assert.deepEqual(model.tokenizer.encode(text), ids);
        assert.equal(model.tokenizer.decode(ids), decoded);
      });

    await t.test("the first step is as listed", async () => {
      const { logits, state } = await model.step([model.tokenizer.eosId], model.zeroState());
      assert.ok(largestDifference(logits, CASES.first_step.logits) < CLOSE);
      for (const [place, { name }] of model.states.entries()) {
        const data = /** @type {Float32Array} */ (state[place].data);
        assert.ok(largestDifference(data, CASES.first_step.state[name]) < CLOSE);
      }
    });

    await t.test("a text is scored as listed", async () => {
      const { scored } = CASES;
      const found = await score(model, scored.text);
      assert.deepEqual(found.ids, scored.ids);
      assert.ok(largestDifference(found.logProbabilities, scored.log_probabilities) < CLOSE);
      assert.ok(Math.abs(found.perplexity / scored.perplexity - 1) < CLOSE);
      const bits = -found.logProbability / Math.LN2 / found.counted.bytes;
      assert.ok(Math.abs(bits / scored.bits_per_byte - 1) < CLOSE);
      assert.equal(found.bitsPerByte, null); // too many of its words are unknown
      assert.ok(Math.abs(Number(found.perplexityPerWord) / scored.perplexity_per_word - 1) < CLOSE);
    });

    for (const one of [CASES.greedy, ...CASES.sampled])
      await t.test(`text is drawn as listed: ${JSON.stringify(one.params)}`, async () => {
        const session = await Session.start(model, one.prompt, {
          seed: BigInt(one.seed),
          index: BigInt(one.index),
        });
        /** @type {number[]} */
        const used = [];
        const { random } = session.generator;
        session.generator.random = function () {
          used.push(random.call(this));
          return used[used.length - 1];
        };
        const found = {
          ids: /** @type {(number | null)[]} */ ([]),
          text: "",
          values: /** @type {number[]} */ ([]),
        };
        for await (const piece of generatePieces(session, { ...one.params, logprobs: 0 })) {
          found.ids.push(piece.token);
          found.text += piece.text;
          found.values.push(Number(piece.logProbability));
        }
        assert.deepEqual(found.ids, one.ids);
        assert.equal(found.text + session.flush(), one.text);
        assert.deepEqual(used, one.uniforms);
        assert.ok(largestDifference(found.values, one.log_probabilities) < CLOSE);
      });

    await t.test("a session that Python saved goes on as listed, again after it was saved here", async () => {
      const { file, params, ids } = CASES.session;
      const session = Session.restore(model, fromBase64(file));
      const again = Session.restore(model, session.save());
      for (const one of [session, again, again.copy()].slice(0, 2)) {
        const found = [];
        for await (const piece of generatePieces(one, params)) found.push(piece.token);
        assert.deepEqual(found, ids);
      }
    });

    await t.test("log-probabilities sum to 1", async () => {
      const { logits } = await model.step([1, 2, 3, 4], model.zeroState(2), 2);
      for (const row of [0, 1, 2, 3]) {
        const values = logSoftmax(logits.subarray(row * model.vocabSize, (row + 1) * model.vocabSize));
        const sum = values.reduce((all, value) => all + Math.exp(value), 0);
        assert.ok(Math.abs(sum - 1) < CLOSE);
      }
    });
    await model.release();
  });
