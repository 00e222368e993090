/** The number of the last tokens, of prompt and text, that penalties see. */
export const WINDOW = 1024;

/** The last tokens of a text, which penalties and bans look back at, and how often each occurs. */
export class History {
  /** @param {Iterable<number>} [tokens] */
  constructor(tokens = []) {
    /** @type {number[]} */
    this._tokens = [];
    /** @type {Map<number, number>} */
    this._counts = new Map();
    this._counted = { start: 0, stop: 0 }; // which of the tokens are counted
    for (const token of tokens) this.push(token);
  }

  /** The tokens, oldest first. */
  get tokens() {
    return this._tokens.slice(-WINDOW);
  }

  /** How often each token occurs; counted only when a penalty asks. */
  get counts() {
    const start = Math.max(0, this._tokens.length - WINDOW);
    for (let place = this._counted.stop; place < this._tokens.length; place++) {
      const token = this._tokens[place];
      this._counts.set(token, (this._counts.get(token) ?? 0) + 1);
    }
    for (let place = this._counted.start; place < start; place++) {
      const left = (this._counts.get(this._tokens[place]) ?? 0) - 1;
      if (left) this._counts.set(this._tokens[place], left);
      else this._counts.delete(this._tokens[place]);
    }
    this._counted = { start, stop: this._tokens.length };
    return this._counts;
  }

  /** @param {number} token */
  push(token) {
    this._tokens.push(token);
    if (this._tokens.length < 4 * WINDOW) return;
    this._tokens = this._tokens.slice(-WINDOW);
    this._counts.clear();
    this._counted = { start: 0, stop: 0 };
  }

  /** A second history from here; neither changes the other. */
  copy() {
    return new History(this.tokens);
  }
}
