/** Scoring: the probability that a model gives to a text, from a zero state that has read one line's end. */
import { pause } from "#platform";
import { logNormalizer } from "./softmax.js";

const READ_TOKENS = 64;
const LARGEST_LOSS = 700;
const LARGEST_WORD_LOSS = 50; // nats: what stands between spaces is no words, where they cost more on average
const WORD = /[^\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+/gu;

/** The score that a model gives to a text. */
export class Score {
  /**
   * @param {number[]} ids the tokens that were predicted.
   * @param {number[]} logProbabilities of each, natural logarithm.
   * @param {number} unknown how many of them were unknown words.
   * @param {number} bytes the text's length in UTF-8, a byte for each line break.
   * @param {number} words what stands between white space, and one for each line's end.
   */
  constructor(ids, logProbabilities, unknown, bytes, words) {
    this.ids = ids;
    this.logProbabilities = logProbabilities;
    this.unknown = unknown;
    this.bytes = bytes;
    this.words = words;
    /** The sum over all tokens. */
    this.logProbability = logProbabilities.reduce((sum, value) => sum + value, 0);
  }

  /** How many tokens were predicted. */
  get tokens() {
    return this.ids.length;
  }

  /** Per token. */
  get perplexity() {
    return Math.exp(Math.min(-this.logProbability / this.tokens, LARGEST_LOSS));
  }

  /** Comparable between tokenizers, where no token is an unknown word. */
  get bitsPerByte() {
    return -this.logProbability / Math.LN2 / this.bytes;
  }

  /** Comparable between tokenizers as well; null for a text without word breaks. */
  get perplexityPerWord() {
    const loss = -this.logProbability / this.words;
    return loss <= LARGEST_WORD_LOSS ? Math.exp(loss) : null;
  }
}

/**
 * Score a text, as `lm-score` scores a file of it: its last line ends with a line break, whether or not one stands
 * there.
 *
 * @param {import("./model.js").Model} model
 * @param {string} text
 * @param {{signal?: AbortSignal}} [options]
 * @returns {Promise<Score>}
 * @throws {RangeError} the text is empty.
 */
export async function score(model, text, { signal } = {}) {
  const { eosId, unkId } = model.tokenizer;
  const lines = text.replace(/^\ufeff/, "").replaceAll("\r\n", "\n");
  if (!lines) throw new RangeError("the text is empty: there is nothing to score");
  const ended = lines.endsWith("\n") ? lines : `${lines}\n`;
  const ids = model.tokenizer.encode(ended);
  const before = [eosId, ...ids];
  /** @type {number[]} */
  const values = [];
  let state = model.zeroState();
  for (let start = 0; start < ids.length; start += READ_TOKENS) {
    await pause();
    signal?.throwIfAborted();
    const end = Math.min(start + READ_TOKENS, ids.length);
    const found = await model.step(before.slice(start, end), state);
    values.push(...logProbabilitiesAt(found.logits, ids.slice(start, end)));
    state = found.state;
  }
  const words = (lines.match(WORD)?.length ?? 0) + (ended.match(/\n/g)?.length ?? 0);
  const unknown = ids.filter((token) => token === unkId).length;
  return new Score(ids, values, unknown, new TextEncoder().encode(ended).length, words);
}

/**
 * The log-probability of each target.
 *
 * @param {Float32Array} logits `(time, vocab)`.
 * @param {number[]} targets `(time)`.
 */
export function logProbabilitiesAt(logits, targets) {
  const vocabSize = logits.length / targets.length;
  return targets.map((target, place) => {
    const row = logits.subarray(place * vocabSize, (place + 1) * vocabSize);
    return row[target] - logNormalizer(row);
  });
}
