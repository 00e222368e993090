/**
 * The tokenizer: text to token ids and back.
 *
 * One rule holds for every kind: a line's end is one token. So a text is encoded line by line. Words and
 * characters are cut here; BPE and tokenizers of other makers by `@huggingface/tokenizers`.
 */
import { Tokenizer as Library } from "@huggingface/tokenizers";
import { firstLine } from "./errors.js";
import { sha256 } from "./sha256.js";
import { StreamDecoder } from "./stream_decoder.js";
import { isLowercase, kindOf, LINE_BREAK, stepsOf } from "./tokenizer_kind.js";

/** @typedef {import("./tokenizer_kind.js").Kind} Kind */

/** What people call the token of a line's end, however it is spelled. */
const EOS = "<eos>";
/** How it is spelled, also by other makers of tokenizer.json. */
const EOS_SPELLINGS = [LINE_BREAK, EOS, "</s>", "<sos/eos>", "<|endoftext|>", "<|end_of_text|>", "[SEP]"];
/** White space of Unicode, which is not quite that of JavaScript. */
const WORD = /[^\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+/gu;
const UTF8 = new TextDecoder("utf-8", { ignoreBOM: true });
const LINES_KEPT = 4096;

/** Encodes and decodes text; made from the text of a `tokenizer.json`. */
export class Tokenizer {
  /**
   * @param {string} json the file's text.
   * @param {number} eosId the id that ends a line.
   * @param {number | null} [unkId] the id of words that are not in the vocabulary.
   * @param {Record<string, any>} [config] `tokenizer_config.json`.
   * @throws {Error} it is no tokenizer, one with holes in its ids, or of another end-of-line token.
   */
  constructor(json, eosId, unkId = null, config = {}) {
    const data = parse(json);
    const vocabulary = vocabularyOf(data);
    /** The tokens in the order of their ids. */
    this.tokens = [...vocabulary.keys()].sort((a, b) => id(vocabulary, a) - id(vocabulary, b));
    this.vocabSize = this.tokens.length;
    if (!this.vocabSize || this.tokens.some((token, place) => vocabulary.get(token) !== place))
      throw new Error(`the ${this.vocabSize} token ids are not 0 to ${this.vocabSize - 1}`);
    if (!EOS_SPELLINGS.includes(this.tokens[eosId]))
      throw new Error(`token ${eosId}, ${JSON.stringify(this.tokens[eosId])}, ends no line`);
    if (this.tokens[eosId] === LINE_BREAK) this.tokens[eosId] = EOS;
    /** The id that ends a line, and that a model has read before its first token. */
    this.eosId = eosId;
    /** The id of words that are not in the vocabulary; null where every text can be spelled. */
    this.unkId = unkId;
    /** @type {Kind} How text is cut. */
    this.kind = kindOf(data);
    /** Whether every text is read in lower case. */
    this.lowercases = stepsOf(data.normalizer).some(isLowercase);
    this._vocabulary = vocabulary;
    this._library =
      this.kind === "word" || this.kind === "char" ? undefined : library(data, this.kind, config);
    /** @type {Map<number, string | undefined>} */
    this._wholeTexts = new Map();
    /** @type {Map<string, number[]>} The ids of the last lines, of which an editor changes one. */
    this._lines = new Map();
    /** What each id stands for in a text, as UTF-8 (part of a character, for byte-level BPE). */
    this.tokenBytes = this.tokens.map((token) => bytesOf(token, this.kind));
    this.tokenBytes[this.eosId] = Uint8Array.of(10);
  }

  /** The sha256 of the tokens in order of id, each ended by a line break (hexadecimal). */
  vocabularySha256() {
    return sha256(new TextEncoder().encode(this.tokens.map((token) => `${token}\n`).join("")));
  }

  /**
   * The ids of a text, each line break as {@link eosId}; none is added at the end.
   *
   * @param {string} text
   * @returns {number[]}
   * @throws {Error} the text has half a surrogate pair, which no UTF-8 text can have.
   */
  encode(text) {
    if (/\p{Surrogate}/u.test(text)) throw new Error("the text has half a surrogate pair");
    const ids = [];
    for (const [number, line] of text.replaceAll("\r\n", "\n").split("\n").entries()) {
      if (number) ids.push(this.eosId);
      for (const token of this._encodeLine(line)) ids.push(token);
    }
    return ids;
  }

  /**
   * The text of ids, taken to begin at the start of a line.
   *
   * @param {Iterable<number>} ids
   */
  decode(ids) {
    const decoder = this.decoder();
    let text = "";
    for (const token of ids) text += decoder.push(token);
    return text + decoder.flush();
  }

  /**
   * A decoder for tokens that come one at a time, after the tokens `after`.
   *
   * @param {number[]} [after]
   */
  decoder(after = []) {
    return StreamDecoder.after(this, after);
  }

  /**
   * A token's text, where it is no part of a character; found once.
   *
   * @param {number} token
   * @returns {string | undefined}
   */
  wholeText(token) {
    if (!this._wholeTexts.has(token)) {
      const bytes = this.tokenBytes[token];
      const text = UTF8.decode(bytes);
      this._wholeTexts.set(token, text.includes("\ufffd") ? undefined : text);
    }
    return this._wholeTexts.get(token);
  }

  /**
   * The library's text of tokens, for kind `other`.
   *
   * @param {number[]} ids
   * @returns {string}
   */
  decodeOther(ids) {
    const options = { skip_special_tokens: false, clean_up_tokenization_spaces: false };
    return ids.length && this._library ? this._library.decode(ids, options) : "";
  }

  /** @param {string} line */
  _encodeLine(line) {
    let ids = this._lines.get(line);
    if (ids) this._lines.delete(line);
    else ids = this._cut(line);
    this._lines.set(line, ids);
    if (this._lines.size > LINES_KEPT) this._lines.delete(this._lines.keys().next().value ?? "");
    return ids;
  }

  /**
   * @param {string} line
   * @returns {number[]}
   */
  _cut(line) {
    // The library does it for kind `other`, among the other steps that it has.
    const text =
      this.lowercases && this.kind !== "other"
        ? Array.from(line, (character) => character.toLowerCase()).join("")
        : line;
    if (this._library) {
      const { ids } = this._library.encode(text, { add_special_tokens: false });
      return ids.map((/** @type {number | undefined} */ token) => this._known(token, line));
    }
    const units = this.kind === "word" ? (text.match(WORD) ?? []) : [...text];
    return units.map((unit) => this._known(this._vocabulary.get(unit), unit));
  }

  /**
   * @param {number | undefined} token
   * @param {string} text
   */
  _known(token, text) {
    const known = token ?? this.unkId;
    if (known === null) throw new Error(`the vocabulary cannot spell ${JSON.stringify(text.slice(0, 40))}`);
    return known;
  }
}

/** @param {string} json */
function parse(json) {
  try {
    const data = JSON.parse(json);
    if (data && typeof data === "object" && data.model && typeof data.model === "object") return data;
  } catch (error) {
    throw new Error(`not a tokenizer.json: ${firstLine(error)}`);
  }
  throw new Error("not a tokenizer.json: no model in it");
}

/**
 * @param {any} data
 * @returns {Map<string, number>} each token's id.
 */
function vocabularyOf(data) {
  const { vocab } = data.model;
  const listed = Array.isArray(vocab)
    ? vocab.map((entry, place) => /** @type {[string, number]} */ ([entry[0], place]))
    : Object.entries(vocab ?? {});
  const vocabulary = /** @type {Map<string, number>} */ (new Map(listed));
  for (const { content, id } of data.added_tokens ?? []) vocabulary.set(content, id);
  return vocabulary;
}

/**
 * @param {Map<string, number>} vocabulary
 * @param {string} token
 */
function id(vocabulary, token) {
  return /** @type {number} */ (vocabulary.get(token));
}

/**
 * The library's tokenizer, to which the names of special tokens are text and which adds none.
 *
 * @param {any} data
 * @param {Kind} kind
 * @param {Record<string, any>} config
 */
function library(data, kind, config) {
  const special = (/** @type {any} */ token) => token.special;
  const added = (data.added_tokens ?? []).filter((/** @type {any} */ token) => !special(token));
  try {
    const normalizer = kind === "other" ? data.normalizer : null;
    return new Library({ ...data, normalizer, added_tokens: added, post_processor: null }, config);
  } catch (error) {
    throw new Error(`not a tokenizer.json: ${firstLine(error)}`);
  }
}

/** GPT-2's alphabet of bytes: Latin-1's printable characters, then the other bytes from U+0100 on. */
const BYTE_OF = byteAlphabet();

function byteAlphabet() {
  const printable = (/** @type {number} */ byte) =>
    (byte >= 0x21 && byte < 0x7f) || (byte >= 0xa1 && byte !== 0xad && byte < 0x100);
  const bytes = Array.from({ length: 256 }, (_, byte) => byte);
  const others = bytes.filter((byte) => !printable(byte));
  return new Map([
    ...bytes
      .filter(printable)
      .map((byte) => /** @type {[string, number]} */ ([String.fromCharCode(byte), byte])),
    ...others.map(
      (byte, place) => /** @type {[string, number]} */ ([String.fromCharCode(256 + place), byte]),
    ),
  ]);
}

/**
 * @param {string} token
 * @param {Kind} kind
 */
function bytesOf(token, kind) {
  const bytes = kind === "bpe" ? [...token].map((character) => BYTE_OF.get(character)) : [undefined];
  return bytes.includes(undefined)
    ? new TextEncoder().encode(token)
    : Uint8Array.from(/** @type {number[]} */ (bytes));
}
