/**
 * Whole words for what is being typed: `I do not kn` goes on as *know*, *known* ...
 *
 * A word may be spelled by several sequences of tokens; its probability is the sum over those that were found.
 */
import { exponentials } from "./exponential.js";
import { checkNumber } from "./params.js";
import { Session } from "./session.js";
import { largest } from "./softmax.js";
import { joinStates, stateOf } from "./state.js";
import { isOfAWord, isSpace, splitTyped, trimmed } from "./typed.js";
import { decodeWord, Vocabulary } from "./vocabulary.js";

const ROWS = 16; // the most beginnings of words that are read in one call
const CALLS = 12;
const NEGLIGIBLE = 1e-3; // words this much less probable than the best one are not looked for
const LONGEST = 64; // bytes of a word; what is longer is none

/** @typedef {{word: string, probability: number}} Suggestion a word without white space, as a whole. */

/**
 * What is to be read: the logarithm of its probability, its place in the order, its bytes, what is left of the typed
 * text, the token, and the state before it.
 *
 * @typedef {{value: number, order: number, spelled: string, rest: string, token: number,
 *   state: import("./state.js").State}} Node
 */

/**
 * The most probable words that begin as typed, or that come next where the text ends in white space.
 *
 * @param {import("./model.js").Model} model
 * @param {string | Session} prompt the text so far, whose last word is completed; a session stays as it is.
 * @param {number} [k] how many words, at least 1.
 * @param {{typed?: string, lineBreaks?: boolean}} [options] the beginning of the word, where it is not in the prompt: a
 *   session's word has a space before it, except at a line's start and where `typed` brings its own; and whether the
 *   end of the line may be one of the words, as `"\n"`, where nothing is typed yet.
 * @returns {Promise<Suggestion[]>} the most probable first; there may be fewer than k.
 * @throws {RangeError} k is out of its range.
 */
export async function suggest(model, prompt, k = 5, { typed, lineBreaks = false } = {}) {
  if (prompt instanceof Session) return suggestAfter(prompt, typed ?? "", k, { adds: true, lineBreaks });
  const [context, spelled] = typed === undefined ? splitTyped(prompt) : [prompt, typed];
  return suggestAfter(await Session.start(model, context), spelled, k, { lineBreaks });
}

/**
 * As {@link suggest}, for what is typed after a session's text.
 *
 * @param {Session} session stays as it is.
 * @param {string} typed
 * @param {number} k
 * @param {{adds?: boolean, lineBreaks?: boolean}} [options] whether a word within a line gets a space before it.
 * @returns {Promise<Suggestion[]>}
 */
export async function suggestAfter(session, typed, k, { adds = false, lineBreaks = false } = {}) {
  checkNumber("k", k, "whole", { low: 1, high: 1000 });
  const { model, token, state } = session;
  const { eosId, lowercases } = model.tokenizer;
  const search = new Search(model, k, lineBreaks);
  const spaced = token === eosId ? search.vocabulary.spacesLines : adds;
  const spelled = lowercases ? typed.toLowerCase() : typed;
  await search.begin(token, state, spaced && !isSpace(spelled.slice(0, 1)) ? ` ${spelled}` : spelled);
  for (let calls = 0; calls < CALLS && !search.isDecided; calls++) await search.read();
  return search.best();
}

/** A best-first search over the tokens that spell words. */
class Search {
  /**
   * @param {import("./model.js").Model} model
   * @param {number} k
   * @param {boolean} lineBreaks
   */
  constructor(model, k, lineBreaks) {
    this._model = model;
    this._k = k;
    this._lineBreaks = lineBreaks;
    this.vocabulary = Vocabulary.of(model.tokenizer);
    /** @type {Map<string, number>} */
    this._words = new Map();
    /** @type {Node[]} Not sorted: it is searched once a call. */
    this._open = [];
    this._order = 0;
  }

  /**
   * Read the last token; go on with every token that may spell the text.
   *
   * @param {number} token
   * @param {import("./state.js").State} before
   * @param {string} spelled
   */
  async begin(token, before, spelled) {
    const { logits, state } = await this._model.step([token], before);
    // Words have their spaces between them.
    const rest = this.vocabulary.kind === "word" ? trimmed(spelled) : spelled;
    const row = this._row(logits);
    const { eosId } = this._model.tokenizer;
    if (this._lineBreaks && !trimmed(rest)) this._words.set("\n", Math.exp(logits[eosId] - row.normalizer));
    this._spell(row, 0, "", binary(rest), state);
  }

  /** Whether no word that is still to be read can come among the best. */
  get isDecided() {
    if (!this._open.length) return true;
    const best = this.best();
    const likeliest = Math.exp(this._open.reduce((most, { value }) => Math.max(most, value), -Infinity));
    const found = best.length === this._k && best[best.length - 1].probability >= likeliest;
    return found || (best.length > 0 && likeliest < NEGLIGIBLE * best[0].probability);
  }

  /** The most probable words so far. */
  best() {
    const words = Array.from(this._words, ([word, probability]) => ({ word, probability }));
    return words.sort((a, b) => b.probability - a.probability).slice(0, this._k);
  }

  /** Read the most probable beginnings, all in one call. */
  async read() {
    this._open.sort((a, b) => b.value - a.value || a.order - b.order);
    const nodes = this._open.splice(0, ROWS);
    const { states } = this._model;
    const joined = joinStates(
      states,
      nodes.map((node) => node.state),
    );
    const ids = nodes.map((node) => node.token);
    const { logits, state } = await this._model.step(ids, joined, nodes.length);
    const size = logits.length / nodes.length;
    for (const [row, { value, spelled, rest }] of nodes.entries()) {
      const values = this._row(logits.subarray(row * size, (row + 1) * size));
      const own = stateOf(states, state, nodes.length, row);
      if (rest) this._spell(values, value, spelled, rest, own);
      else this._goOn(values, value, spelled, own);
    }
  }

  /**
   * Logits with what makes them log-probabilities, and the sum of the tokens before which a word has ended.
   *
   * @param {Float32Array} logits
   */
  _row(logits) {
    const { isEnd } = this.vocabulary;
    let highest = Number.NEGATIVE_INFINITY;
    for (let token = 0; token < logits.length; token++) if (logits[token] > highest) highest = logits[token];
    const weights = new Float64Array(logits.length);
    exponentials(logits, 1, highest, weights);
    let [sum, ends] = [0, 0];
    for (let token = 0; token < logits.length; token++) {
      sum += weights[token];
      if (isEnd[token]) ends += weights[token];
    }
    return { logits, normalizer: highest + Math.log(sum), ends: ends / sum };
  }

  /**
   * Go on with the tokens that spell what is left of the typed text, or begin as it does.
   *
   * @param {ReturnType<Search["_row"]>} row
   * @param {number} soFar
   * @param {string} spelled
   * @param {string} rest
   * @param {import("./state.js").State} state
   */
  _spell({ logits, normalizer }, soFar, spelled, rest, state) {
    const { bytes, kind } = this.vocabulary;
    for (const token of this._likeliest(logits, this.vocabulary.beginningWith(rest))) {
      const value = soFar + logits[token] - normalizer;
      if (kind === "word") this._add(spelled + bytes[token], value);
      else this._push(value, spelled + bytes[token], "", token, state);
    }
    for (const token of this.vocabulary.beginningOf(rest)) {
      const value = soFar + logits[token] - normalizer;
      this._push(value, spelled + bytes[token], rest.slice(bytes[token].length), token, state);
    }
  }

  /**
   * Take the word as it stands, as far as it may end here, and go on with what makes it longer.
   *
   * @param {ReturnType<Search["_row"]>} row
   * @param {number} soFar
   * @param {string} spelled
   * @param {import("./state.js").State} state
   */
  _goOn({ logits, normalizer, ends }, soFar, spelled, state) {
    this._add(spelled, soFar + Math.log(Math.max(ends, 1e-300)));
    if (spelled.length >= LONGEST) return;
    for (const token of this._likeliest(logits, this.vocabulary.within)) {
      const value = soFar + logits[token] - normalizer;
      this._push(value, spelled + this.vocabulary.bytes[token], "", token, state);
    }
  }

  /**
   * @param {Float32Array} logits
   * @param {ArrayLike<number>} ids
   */
  _likeliest(logits, ids) {
    return largest(logits, Math.max(2 * this._k, ROWS), ids);
  }

  /**
   * @param {number} value
   * @param {string} spelled
   * @param {string} rest
   * @param {number} token
   * @param {import("./state.js").State} state
   */
  _push(value, spelled, rest, token, state) {
    this._open.push({ value, order: this._order++, spelled, rest, token, state });
  }

  /**
   * @param {string} spelled
   * @param {number} value
   */
  _add(spelled, value) {
    const word = trimmed(decodeWord(spelled));
    if (word && [...word].every(isOfAWord))
      this._words.set(word, (this._words.get(word) ?? 0) + Math.exp(value));
  }
}

/**
 * A text's bytes in UTF-8, as a string with a character for each.
 *
 * @param {string} text
 */
function binary(text) {
  return String.fromCharCode(...new TextEncoder().encode(text));
}
