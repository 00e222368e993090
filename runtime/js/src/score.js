/** Scoring: the probability that a model gives to a text, from a zero state that has read one line's end. */
import { pause } from "#platform";
import { countText, hasWords } from "./prose.js";
import { logNormalizer } from "./softmax.js";

const READ_TOKENS = 64;
const LARGEST_LOSS = 700;
const MOST_UNKNOWN = 0.001; // the largest share of unknown tokens at which bits a byte compare

/** The score that a model gives to a text. */
export class Score {
  /**
   * @param {number[]} ids the tokens that were predicted.
   * @param {number[]} logProbabilities of each, natural logarithm.
   * @param {number} unknown how many of them were unknown words.
   * @param {import("./prose.js").Counted} counted
   */
  constructor(ids, logProbabilities, unknown, counted) {
    this.ids = ids;
    this.logProbabilities = logProbabilities;
    this.unknown = unknown;
    /** The text's bytes, words and lines. */
    this.counted = counted;
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

  /** Comparable between tokenizers; null where more than 0.1 % of the tokens are unknown words. */
  get bitsPerByte() {
    if (this.unknown > MOST_UNKNOWN * this.tokens) return null;
    return -this.logProbability / Math.LN2 / this.counted.bytes;
  }

  /** Comparable between tokenizers as well; null where the text has no words, as names, code and DNA have none. */
  get perplexityPerWord() {
    const loss = -this.logProbability / this.counted.words;
    return hasWords(loss, this.counted) ? Math.exp(loss) : null;
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
  const unknown = ids.filter((token) => token === unkId).length;
  return new Score(ids, values, unknown, countText(ended));
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
