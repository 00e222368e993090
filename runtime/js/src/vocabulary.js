/** A tokenizer's tokens by their bytes, which are kept as strings with a character for each byte. */

import { isOfAWord } from "./typed.js";

/** @typedef {import("./tokenizer.js").Tokenizer} Tokenizer */

const UTF8 = new TextDecoder("utf-8", { ignoreBOM: true });
const REPLACEMENT = "\xef\xbf\xbd";

/** @type {WeakMap<Tokenizer, Vocabulary>} */
const MADE = new WeakMap();

export class Vocabulary {
  /** @param {Tokenizer} tokenizer */
  constructor(tokenizer) {
    const { kind, eosId, unkId } = tokenizer;
    this.kind = kind;
    this.bytes = tokenizer.tokenBytes.map((bytes) => String.fromCharCode(...bytes));
    // SentencePiece and its like spell a space so.
    if (kind === "other") this.bytes = this.bytes.map((bytes) => bytes.replaceAll("\xe2\x96\x81", " "));
    /** Whether the tokenizer puts a space before the first word of a line, as SentencePiece does. */
    this.spacesLines = kind === "other" && spacesLines(tokenizer, this.bytes);
    const spells = (/** @type {number} */ token) =>
      token !== eosId && token !== unkId && this.bytes[token] !== "";
    const ids = Array.from(this.bytes.keys());
    this._ids = ids.filter(spells).sort((a, b) => (this.bytes[a] < this.bytes[b] ? -1 : 1));
    this._byBytes = new Map(this._ids.map((token) => [this.bytes[token], token]));
    /** The tokens that make a word longer. */
    this.within = ids.filter((token) => spells(token) && goesOn(this.bytes[token]));
    /** For each token whether a word has ended before it. */
    this.isEnd = new Uint8Array(ids.length).fill(1);
    for (const token of this.within) this.isEnd[token] = 0;
  }

  /**
   * A tokenizer's vocabulary, made once.
   *
   * @param {Tokenizer} tokenizer
   */
  static of(tokenizer) {
    const made = MADE.get(tokenizer) ?? new Vocabulary(tokenizer);
    MADE.set(tokenizer, made);
    return made;
  }

  /**
   * The tokens that begin with `prefix`.
   *
   * @param {string} prefix
   */
  beginningWith(prefix) {
    if (!prefix) return this._ids;
    const start = this._place(prefix);
    let end = start;
    while (end < this._ids.length && this.bytes[this._ids[end]].startsWith(prefix)) end++;
    return this._ids.slice(start, end);
  }

  /**
   * The tokens that `text` begins with and goes on after.
   *
   * @param {string} text
   */
  beginningOf(text) {
    const tokens = [];
    for (let length = 1; length < text.length; length++) {
      const token = this._byBytes.get(text.slice(0, length));
      if (token !== undefined) tokens.push(token);
    }
    return tokens;
  }

  /** @param {string} prefix */
  _place(prefix) {
    let [low, high] = [0, this._ids.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.bytes[this._ids[middle]] < prefix) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}

/**
 * Whether a line's first word is the token of a word after a space.
 *
 * @param {Tokenizer} tokenizer
 * @param {string[]} spelled
 */
function spacesLines(tokenizer, spelled) {
  const words = spelled.filter((bytes) => bytes.startsWith(" ")).map((bytes) => decodeWord(bytes).slice(1));
  const word = words.find((one) => /^\p{L}+$/u.test(one));
  return word !== undefined && spelled[tokenizer.encode(word)[0]].startsWith(" ");
}

/**
 * The text of bytes, without those that are none.
 *
 * @param {string} bytes
 */
export function decodeWord(bytes) {
  const parts = bytes.split(REPLACEMENT).map((part) => {
    const array = Uint8Array.from(part, (byte) => byte.charCodeAt(0));
    return UTF8.decode(array).replaceAll("\ufffd", "");
  });
  return parts.join("\ufffd");
}

/**
 * Whether a token that stands after a word's letters belongs to the word; part of a character does.
 *
 * @param {string} bytes
 */
function goesOn(bytes) {
  const [first] = decodeWord(bytes);
  return first === undefined ? bytes !== "" : isOfAWord(first);
}
