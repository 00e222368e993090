/** Generation: texts from a prompt or a session, token by token. */
import { pause } from "#platform";
import { NotFiniteError } from "./errors.js";
import { checkNumber, checkSeed, samplingParams } from "./params.js";
import { processorsOf } from "./processors.js";
import { Sampler } from "./sampler.js";
import { Session } from "./session.js";
import { largest, logSoftmax } from "./softmax.js";

/**
 * What one step added to a text.
 *
 * @typedef {object} Piece
 * @property {string} text that became certain; may be empty.
 * @property {number | null} token the token's id; null where the text ended without one more.
 * @property {"length" | "stop" | "stuck" | null} finish why the text ended, on its last piece; `stuck` where no
 *   token is allowed.
 * @property {number} [logProbability] the model's, before temperature and penalties, where it was asked for.
 * @property {{token: number, logProbability: number}[]} [alternatives] the most probable tokens, best first.
 */

const LONGEST_TURN = 8; // milliseconds between two pauses, in which a page or a worker hears of other things

/**
 * Generate one text.
 *
 * @param {import("./model.js").Model} model
 * @param {string | Session} [prompt] what the text continues; the text does not repeat it. A session goes on where
 *   it is, with its own generator, and is where the text ends afterwards.
 * @param {Partial<import("./params.js").SamplingParams>} [params]
 * @param {{seed?: number | bigint, index?: number | bigint, signal?: AbortSignal}} [options] the generator's seed,
 *   which of its samples, and what ends the text early: by throwing its reason.
 * @returns {AsyncGenerator<string, void, void>} text as it becomes certain.
 * @throws {RangeError} an argument is out of its range.
 * @throws {NotFiniteError} the model's logits are NaN or infinite.
 */
export async function* generate(model, prompt = "", params = {}, { seed = 0, index = 0, signal } = {}) {
  checkSeed("seed", seed);
  checkSeed("index", index);
  const own = !(prompt instanceof Session);
  const session = own ? await Session.start(model, prompt, { seed, index, signal }) : prompt;
  for await (const piece of generatePieces(session, params, { signal })) {
    const rest = own && piece.finish && piece.finish !== "stop" ? session.flush() : "";
    if (piece.text + rest) yield piece.text + rest;
  }
}

/**
 * Continue a session, with each token's id.
 *
 * The session is where its text ends afterwards, also when the iteration is broken off. What it holds back of an
 * unfinished character or of the beginning of a stop string stays in it, for {@link Session.flush}.
 *
 * @param {Session} session
 * @param {Partial<import("./params.js").SamplingParams>} [given]
 * @param {{signal?: AbortSignal}} [options]
 * @returns {AsyncGenerator<Piece, void, void>}
 */
export async function* generatePieces(session, given = {}, { signal } = {}) {
  const { model } = session;
  const params = samplingParams(given, model.vocabSize);
  const processors = processorsOf(params, model.tokenizer);
  const sampler = new Sampler(params, model.vocabSize, params.allow_unk ? null : model.tokenizer.unkId);
  const scansStops = params.stop.length > 0 || session.stops.held !== "";
  let turn = performance.now();
  for (let left = params.max_tokens; left > 0; left--) {
    if (performance.now() - turn > LONGEST_TURN) {
      await pause();
      turn = performance.now();
    }
    signal?.throwIfAborted();
    const { logits, state } = await model.step([session.token], session.state);
    const processed = processors.length ? logits.slice() : logits;
    for (const process of processors) process(processed, session.history);
    if (processors.length && !processed.some((logit) => logit > Number.NEGATIVE_INFINITY)) {
      if (logits.some(Number.isNaN)) throw new NotFiniteError();
      yield { text: "", token: null, finish: "stuck" };
      return;
    }
    const token = sampler.choose(processed, session.generator);
    const piece = take(session, token, state, params.stop, scansStops, left === 1);
    yield params.logprobs === null
      ? piece
      : { ...piece, ...logProbabilities(logits, token, params.logprobs) };
    if (piece.finish) return;
  }
}

/**
 * The most probable next tokens.
 *
 * @param {import("./model.js").Model} model
 * @param {string | Session} [prompt] the text so far; a session stays as it is.
 * @param {number} [k] how many.
 * @param {{allowUnk?: boolean, lineBreaks?: boolean}} [options] whether the token of unknown words, or of a line's end,
 *   may be one of them.
 * @returns {Promise<{text: string, probability: number}[]>} what each would add to the text, the most probable first.
 */
export async function nextTokens(model, prompt = "", k = 5, { allowUnk = false, lineBreaks = true } = {}) {
  checkNumber("k", k, "whole", { low: 1, high: model.vocabSize });
  const session = prompt instanceof Session ? prompt : await Session.start(model, prompt);
  const { logits } = await model.step([session.token], session.state);
  const values = logSoftmax(logits);
  if (!values.every((value) => value === Number.NEGATIVE_INFINITY || Number.isFinite(value)))
    throw new NotFiniteError();
  const { unkId, eosId } = model.tokenizer;
  const leftOut = [allowUnk ? null : unkId, lineBreaks ? null : eosId];
  const best = largest(values, Math.min(k + 2, values.length)).filter((token) => !leftOut.includes(token));
  return best.slice(0, k).map((token) => {
    const decoder = session.decoder.copy();
    return { text: decoder.push(token) + decoder.flush(), probability: Math.exp(values[token]) };
  });
}

/**
 * Add a token to a session's text.
 *
 * @param {Session} session
 * @param {number} token
 * @param {import("./state.js").State} state before it is read.
 * @param {string[]} stops
 * @param {boolean} scansStops
 * @param {boolean} last
 * @returns {Piece}
 */
function take(session, token, state, stops, scansStops, last) {
  session.state = state;
  session.token = token;
  session.position++;
  session.history.push(token);
  const text = session.decoder.push(token);
  const finish = last ? "length" : null;
  if (!scansStops) return { text, token, finish };
  const found = session.stops.push(text, stops);
  return { text: found.text, token, finish: found.stopped ? "stop" : finish };
}

/**
 * @param {Float32Array} logits
 * @param {number} token
 * @param {number} count
 */
function logProbabilities(logits, token, count) {
  const values = logSoftmax(logits);
  const best = largest(values, count).map((other) => ({ token: other, logProbability: values[other] }));
  return { logProbability: values[token], alternatives: best };
}
