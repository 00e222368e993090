/** A text that is being written: read as it changes, each part once. */
import { pause } from "#platform";
import { History, WINDOW } from "./history.js";
import { Generator } from "./random.js";
import { logProbabilitiesAt } from "./score.js";
import { Session } from "./session.js";
import { splitTyped } from "./typed.js";
import { suggestAfter } from "./words.js";

/** @typedef {{signal?: AbortSignal}} Options */

const READ_TOKENS = 32;
const STATES_KEPT = 512;

/** Keeps the states along a text, so that a keystroke costs what it changed. Its calls run one after the other. */
export class Draft {
  /** @param {import("./model.js").Model} model */
  constructor(model) {
    this._model = model;
    /** @type {number[]} The text's ids, after the line's end that a zero state reads. */
    this._ids = [model.tokenizer.eosId];
    /** @type {Map<number, import("./state.js").State>} By the number of ids that were read. */
    this._states = new Map([[0, model.zeroState()]]);
    /** @type {number[]} The log-probability of each id from 1 on. */
    this._values = [];
    /** @type {Promise<unknown>} */
    this._last = Promise.resolve();
  }

  /**
   * The most probable words for the one that is being typed, as `suggest` gives them.
   *
   * @param {string} text
   * @param {number} [k]
   * @param {Options} [options]
   */
  async suggest(text, k = 5, options = {}) {
    const [context, typed] = splitTyped(text);
    return suggestAfter(await this.session(context, options), typed, k);
  }

  /**
   * A session that goes on after a text.
   *
   * @param {string} text
   * @param {Options & {seed?: number | bigint, index?: number | bigint}} [options]
   */
  session(text, { seed = 0, index = 0, signal } = {}) {
    return this._alone(async () => {
      const ids = this._take(text);
      return new Session(this._model, {
        state: await this._read(ids.length - 1, signal),
        token: ids[ids.length - 1],
        generator: Generator.fromSeed(seed, index),
        decoder: this._model.tokenizer.decoder(ids.slice(1)),
        history: new History(ids.slice(1).slice(-WINDOW)),
        position: ids.length - 1,
      });
    });
  }

  /**
   * What each token of a text says, and how surprising it is.
   *
   * @param {string} text
   * @param {Options} [options]
   * @returns {Promise<{text: string, bits: number}[]>} their texts together are the text, but for white space that
   *   the tokenizer does not keep.
   */
  surprisal(text, { signal } = {}) {
    return this._alone(async () => {
      const ids = this._take(text);
      while (this._values.length < ids.length - 1) {
        signal?.throwIfAborted();
        const start = this._values.length;
        const end = Math.min(start + READ_TOKENS, ids.length - 1);
        const { logits, state } = await this._model.step(ids.slice(start, end), await this._read(start));
        this._values.push(...logProbabilitiesAt(logits, ids.slice(start + 1, end + 1)));
        this._keep(end, state);
        await pause();
      }
      const decoder = this._model.tokenizer.decoder();
      return ids.slice(1).map((token, place) => {
        return { text: decoder.push(token), bits: -this._values[place] / Math.LN2 };
      });
    });
  }

  /**
   * @template T
   * @param {() => Promise<T>} work
   * @returns {Promise<T>}
   */
  _alone(work) {
    const mine = this._last.then(work, work);
    this._last = mine.catch(() => {});
    return mine;
  }

  /**
   * The ids of a text; what was read of another one is forgotten from where they differ.
   *
   * @param {string} text
   */
  _take(text) {
    const ids = [this._model.tokenizer.eosId, ...this._model.tokenizer.encode(text)];
    let same = 1;
    while (same < Math.min(ids.length, this._ids.length) && ids[same] === this._ids[same]) same++;
    if (same < Math.min(ids.length, this._ids.length)) {
      for (const place of this._states.keys()) if (place > same) this._states.delete(place);
      this._values.length = Math.min(this._values.length, same - 1);
    }
    if (same < ids.length) this._ids = ids; // else it is the beginning of what is known
    return ids;
  }

  /**
   * The state after the first `count` ids.
   *
   * @param {number} count
   * @param {AbortSignal} [signal]
   */
  async _read(count, signal) {
    let nearest = 0;
    for (const place of this._states.keys()) if (place <= count && place > nearest) nearest = place;
    const before = this._states.get(nearest) ?? this._model.zeroState();
    if (nearest === count) return before;
    const state = await this._model.read(this._ids.slice(nearest, count), before, signal);
    this._keep(count, state);
    return state;
  }

  /**
   * @param {number} count
   * @param {import("./state.js").State} state
   */
  _keep(count, state) {
    this._states.set(count, state);
    const [oldest] = this._states.keys();
    if (this._states.size > STATES_KEPT) this._states.delete(oldest);
  }
}
