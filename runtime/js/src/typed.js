/** The word that is being typed. */

// Marks are parts of letters: most vowels of Indian scripts are.
const OF_A_WORD = /^[\p{L}\p{N}\p{M}_'’]$/u;
// White space as Python has it, which has control characters more than JavaScript.
const SPACE = /^\s$/u;
const MORE_SPACES = ["\x1c", "\x1d", "\x1e", "\x1f", "\x85"];

/**
 * Cut a text before the word that is being typed, which takes the space before it along.
 *
 * @param {string} text
 * @returns {[string, string]}
 */
export function splitTyped(text) {
  const characters = [...text];
  let start = characters.length;
  while (start && isOfAWord(characters[start - 1])) start--;
  if (start && characters[start - 1] !== "\n" && isSpace(characters[start - 1])) start--;
  return [characters.slice(0, start).join(""), characters.slice(start).join("")];
}

/** @param {string} character */
export function isOfAWord(character) {
  return OF_A_WORD.test(character);
}

/** @param {string} character */
export function isSpace(character) {
  return (SPACE.test(character) && character !== "\ufeff") || MORE_SPACES.includes(character);
}

/**
 * A text without white space at its ends.
 *
 * @param {string} text
 */
export function trimmed(text) {
  const characters = [...text];
  while (characters.length && isSpace(characters[0])) characters.shift();
  while (characters.length && isSpace(characters[characters.length - 1])) characters.pop();
  return characters.join("");
}
