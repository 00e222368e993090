/** Turns tokens into text as they come, never half a character. */

/** @typedef {import("./tokenizer.js").Tokenizer} Tokenizer */

/**
 * Where a decoder is, as a saved session has it.
 *
 * @typedef {object} DecoderState
 * @property {string} undecoded bytes of an incomplete character, hexadecimal.
 * @property {boolean} line_start whether a line begins.
 * @property {number[]} recent for kind `other`: the ids since the last line break, or the last 8.
 * @property {number} shown how many of them were shown.
 */

const CONTEXT = 8;
const UTF8 = new TextDecoder("utf-8", { ignoreBOM: true });

export class StreamDecoder {
  /**
   * @param {Tokenizer} tokenizer
   * @param {DecoderState} [state]
   */
  constructor(tokenizer, state = { undecoded: "", line_start: true, recent: [], shown: 0 }) {
    this._tokenizer = tokenizer;
    this._bytes = Uint8Array.from(state.undecoded.match(/../g) ?? [], (byte) => Number.parseInt(byte, 16));
    this._lineStart = state.line_start;
    this._recent = [...state.recent];
    this._shown = state.shown;
  }

  /**
   * A decoder for what comes after the tokens `after`.
   *
   * @param {Tokenizer} tokenizer
   * @param {number[]} after
   */
  static after(tokenizer, after) {
    const decoder = new StreamDecoder(tokenizer);
    decoder._lineStart = !after.length || after.at(-1) === tokenizer.eosId;
    if (tokenizer.kind === "other") for (const token of after.slice(-CONTEXT)) decoder._pushOther(token);
    return decoder;
  }

  /**
   * The text that became certain with `token`; may be empty.
   *
   * @param {number} token
   */
  push(token) {
    const { kind, eosId, tokenBytes } = this._tokenizer;
    if (kind === "other") return this._pushOther(token);
    const whole = this._bytes.length ? undefined : this._tokenizer.wholeText(token);
    const space = kind === "word" && !this._lineStart && token !== eosId ? [32] : [];
    this._lineStart = token === eosId;
    if (whole !== undefined) return space.length ? ` ${whole}` : whole;
    const bytes = Uint8Array.of(...this._bytes, ...space, ...tokenBytes[token]);
    const end = bytes.length - incomplete(bytes);
    this._bytes = bytes.slice(end);
    return UTF8.decode(bytes.subarray(0, end));
  }

  /** What is left of a character that was never completed, as U+FFFD. */
  flush() {
    if (this._tokenizer.kind === "other") return this._fresh();
    const text = UTF8.decode(this._bytes);
    this._bytes = new Uint8Array();
    return text;
  }

  /** A second decoder from here; neither changes the other. */
  copy() {
    return new StreamDecoder(this._tokenizer, this.toJSON());
  }

  /** @returns {DecoderState} */
  toJSON() {
    return {
      undecoded: Array.from(this._bytes, (byte) => byte.toString(16).padStart(2, "0")).join(""),
      line_start: this._lineStart,
      recent: [...this._recent],
      shown: this._shown,
    };
  }

  /** @param {number} token */
  _pushOther(token) {
    if (token === this._tokenizer.eosId) {
      const text = `${this._fresh()}\n`;
      [this._recent, this._shown] = [[], 0];
      return text;
    }
    this._recent.push(token);
    const text = this._fresh();
    if (!text || text.endsWith("\ufffd")) return ""; // perhaps half a character
    this._shown = Math.min(this._recent.length, CONTEXT);
    this._recent = this._recent.slice(-CONTEXT);
    return text;
  }

  /** The text of the tokens that have not been shown. */
  _fresh() {
    const before = this._tokenizer.decodeOther(this._recent.slice(0, this._shown));
    return this._tokenizer.decodeOther(this._recent).slice(before.length);
  }
}

/**
 * How many bytes at the end begin a character of UTF-8 that more bytes could complete.
 *
 * @param {Uint8Array} bytes
 */
export function incomplete(bytes) {
  for (let length = 1; length <= Math.min(3, bytes.length); length++) {
    const first = bytes[bytes.length - length];
    if (first >= 0x80 && first < 0xc0) continue;
    const needed = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
    if (first < 0xc2 || first > 0xf4 || length >= needed) return 0;
    return length === 1 || canFollow(first, bytes[bytes.length - length + 1]) ? length : 0;
  }
  return 0;
}

/**
 * Whether a second byte can follow a first one: what is too long, a surrogate or too large is excluded.
 *
 * @param {number} first
 * @param {number} second
 */
function canFollow(first, second) {
  if (first === 0xe0) return second >= 0xa0;
  if (first === 0xed) return second < 0xa0;
  if (first === 0xf0) return second >= 0x90;
  if (first === 0xf4) return second < 0x90;
  return true;
}
