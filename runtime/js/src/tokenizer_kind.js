/** Which of the project's own kinds of tokenizer a `tokenizer.json` is. */

/** @typedef {"word" | "char" | "bpe" | "other"} Kind */

/** How the project's own vocabularies spell the token of a line's end. */
export const LINE_BREAK = "\n";
/** How `tokenizer.json` cuts characters and words. */
const ANY_CHARACTER = "[\\s\\S] Isolated";
const WHITE_SPACE = "[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+ Removed";

/**
 * Tell from a `tokenizer.json` which of the project's own kinds it is.
 *
 * @param {any} data
 * @returns {Kind}
 */
export function kindOf({ model, pre_tokenizer: cut, normalizer, added_tokens: added }) {
  if (!cut) return "other";
  const hasLineBreak = (added ?? []).some(
    (/** @type {any} */ token) => token.content === LINE_BREAK && token.special,
  );
  const [first, ...others] = stepsOf(normalizer);
  const isOwn = hasLineBreak && isCrlf(first);
  if (!(first === undefined || isOwn || isLowercase(first)) || !others.every(isLowercase)) return "other";
  // A model that takes words whole, or as unknown ones.
  const isClosed = isOwn && model.type === "WordPiece" && model.continuing_subword_prefix === LINE_BREAK;
  const types = `${isClosed ? "WordLevel" : model.type} ${cut.type}`;
  if (types === "BPE ByteLevel") return cut.add_prefix_space ? "other" : "bpe";
  if (types === "WordLevel WhitespaceSplit") return "word";
  const how = types === "WordLevel Split" ? `${cut.pattern?.Regex} ${cut.behavior}` : "";
  if (how === ANY_CHARACTER) return "char";
  return how === WHITE_SPACE ? "word" : "other";
}

/**
 * What a normalizer consists of, itself or a sequence's parts.
 *
 * @param {any} normalizer
 * @returns {any[]}
 */
export function stepsOf(normalizer) {
  return normalizer ? (normalizer.normalizers ?? [normalizer]) : [];
}

/** @param {any} step */
export function isLowercase(step) {
  return step.type === "Lowercase";
}

/** @param {any} step */
function isCrlf(step) {
  return step?.type === "Replace" && step.pattern?.String === "\r\n" && step.content === LINE_BREAK;
}
