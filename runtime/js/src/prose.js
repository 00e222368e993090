/** Whether what stands between white space in a text is words, as of prose; with the limits of Python's runtime. */

const LARGEST_LOSS = 50; // nats: what stands between spaces is no words, where they cost more on average
const FEWEST_ORDINARY = 0.75; // prose has 0.85 to 1, code 0.5 to 0.7
const FEWEST_IN_A_LINE = 2; // a list of names has one
/** Scripts that are written without spaces: Thai to Lao, Burmese, Khmer, Japanese, Chinese. */
const NO_SPACES =
  "\\u0e00-\\u0eff\\u1000-\\u109f\\u1780-\\u17ff\\u3040-\\u30ff\\u3400-\\u9fff\\uf900-\\ufaff\\u{20000}-\\u{3ffff}";
const SPACE = "\\s\\x1c-\\x1f\\x85";
const LETTER = `[^\\x00-\\x40\\x5b-\\x60\\x7b-\\x7f${SPACE}${NO_SPACES}]`;
const MARK = `[^\\p{L}\\p{N}_${SPACE}]`;
const JOINED = `(?:${LETTER}|['.\\-](?=${LETTER})){0,23}`;
/** Up to 24 letters, also with a dot, hyphen or apostrophe between two of them, and punctuation around. */
const ORDINARY = new RegExp(
  `(?<![^${SPACE}])${MARK}{0,3}${LETTER}${JOINED}${MARK}{0,4}(?![^${SPACE}])`,
  "gu",
);
/** White space of Unicode, which is not quite that of JavaScript. */
const WORD = /[^\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+/gu;

/**
 * @typedef {object} Counted
 * @property {number} bytes the text's length in UTF-8, a byte for each line break.
 * @property {number} words what stands between white space, and one for each line's end.
 * @property {number} lines
 * @property {number} ordinary how many of the words look like words of prose.
 */

/**
 * @param {string} text whose last line is ended.
 * @returns {Counted}
 */
export function countText(text) {
  const lines = text.split("\n").length - 1;
  return {
    bytes: new TextEncoder().encode(text).length,
    words: (text.match(WORD)?.length ?? 0) + lines,
    lines,
    ordinary: text.match(ORDINARY)?.length ?? 0,
  };
}

/**
 * @param {number} loss a word's, in nats.
 * @param {Counted} counted
 */
export function hasWords(loss, { words, lines, ordinary }) {
  const inLines = words - lines;
  return loss <= LARGEST_LOSS && inLines >= FEWEST_IN_A_LINE * lines && ordinary >= FEWEST_ORDINARY * inLines;
}
