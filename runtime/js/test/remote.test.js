/** A model in a worker gives what it gives here, and its work can be broken off. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { Worker } from "node:worker_threads";
import { generate, load, Session, score, suggest } from "../src/index.js";
import { RemoteModel } from "../src/remote.js";
import { BUNDLE } from "./cases.js";

const WORKER = new URL("../src/worker.js", import.meta.url);
const PARAMS = { max_tokens: 30, top_p: 0.9 };
const ENDLESS = { max_tokens: 1e9 };

/** @param {AsyncIterable<string>} pieces */
async function textOf(pieces) {
  let text = "";
  for await (const piece of pieces) text += piece;
  return text;
}

test("a worker", async (t) => {
  const model = await load(BUNDLE, { engine: "native" });
  const remote = await RemoteModel.load(new Worker(WORKER), BUNDLE, { engine: "native" });
  assert.equal(remote.identity, model.identity);
  assert.deepEqual(remote.defaults, model.defaults);

  await t.test("text, words and scores are the model's", async () => {
    const text = "the keeper of the";
    const options = { seed: 2n ** 40n, index: 3 };
    assert.equal(
      await textOf(remote.generate(text, PARAMS, options)),
      await textOf(generate(model, text, PARAMS, options)),
    );
    assert.deepEqual(await remote.suggest(text, 4), await suggest(model, text, 4));
    assert.deepEqual(await remote.draft.suggest(text, 4), await suggest(model, text, 4));
    assert.equal((await remote.score(text)).perplexity, (await score(model, text)).perplexity);
  });

  await t.test("sessions are forked, saved and restored", async () => {
    const session = await remote.start("the keeper", { seed: 4 });
    const local = await Session.start(model, "the keeper", { seed: 4 });
    const fork = await session.fork({ seed: 9 });
    assert.deepEqual(await session.save(), local.save());
    const expected = await textOf(generate(model, local.fork({ seed: 9 }), PARAMS));
    assert.equal(await textOf(remote.generate(fork, PARAMS)), expected);
    const again = await remote.restore(await session.save());
    assert.equal(await textOf(remote.generate(again, PARAMS)), await textOf(generate(model, local, PARAMS)));
    await again.release();
    await assert.rejects(again.save(), /released/);
  });

  await t.test("errors come as they are", async () => {
    await assert.rejects(remote.restore(new Uint8Array(9)), {
      name: "UnusableFileError",
      message: /not a session/,
    });
    await assert.rejects(textOf(remote.generate("", { top_k: -1 })), {
      name: "RangeError",
      message: /at least 0/,
    });
  });

  await t.test("endless text is broken off, and the worker is free", async () => {
    const controller = new AbortController();
    await assert.rejects(async () => {
      for await (const _ of remote.generate("", ENDLESS, { signal: controller.signal })) controller.abort();
    }, /aborted/);
    for await (const _ of remote.generate("", ENDLESS)) break;
    assert.equal((await remote.suggest("the ", 2)).length, 2);
  });
  remote.close();
  await model.release();
});

test("a worker that cannot run is said to have failed", async () => {
  const broken = new Worker("throw new Error('no such thing')", { eval: true });
  await assert.rejects(RemoteModel.load(broken, BUNDLE), /the worker failed: no such thing/);
});

test("text in one's own thread leaves turns to others, and can be broken off", async () => {
  const model = await load(BUNDLE, { engine: "native" });
  const controller = new AbortController();
  setTimeout(() => controller.abort(), 30);
  await assert.rejects(textOf(generate(model, "", ENDLESS, { signal: controller.signal })), /aborted/);
  const session = await Session.start(model, "the");
  for await (const _ of generate(model, session, ENDLESS)) break;
  assert.equal(session.position, 2);
  await model.release();
});
