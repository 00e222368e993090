/**
 * Processors: what changes the logits of a text's next token by the text so far, in the order of Hugging Face
 * `transformers`. Each changes the logits in place, in float32 as Python does.
 */

/**
 * @typedef {import("./history.js").History} History
 * @typedef {(logits: Float32Array, history: History) => void} Processor
 */

const NEVER = Number.NEGATIVE_INFINITY;
const { fround } = Math;

/**
 * The chain of processors that parameters ask for; empty where only the sampler has work to do.
 *
 * @param {ReturnType<typeof import("./params.js").samplingParams>} params
 * @param {import("./tokenizer.js").Tokenizer} tokenizer
 * @returns {Processor[]}
 */
export function processorsOf(params, tokenizer) {
  /** @type {Processor[]} */
  const chain = [];
  if (params.logit_bias.length) chain.push((logits) => addBias(logits, params.logit_bias));
  if (params.repetition_penalty !== 1)
    chain.push((logits, { counts }) => penalizeRepetition(logits, counts.keys(), params.repetition_penalty));
  const { frequency_penalty: frequency, presence_penalty: presence } = params;
  if (frequency || presence)
    chain.push((logits, { counts }) => penalizeCounts(logits, counts, frequency, presence));
  const size = params.no_repeat_ngram_size;
  if (size) chain.push((logits, { tokens }) => banRepeatedNgrams(logits, tokens, size));
  const sequences = spellings(params.banned, tokenizer);
  const longer = sequences.filter((sequence) => sequence.length > 1);
  if (longer.length) chain.push((logits, { tokens }) => banSequences(logits, tokens, longer));
  const alone = sequences.filter((sequence) => sequence.length === 1).map(([token]) => token);
  // The sampler never draws it; here it must not seem to be left.
  if ((chain.length || alone.length) && tokenizer.unkId !== null && !params.allow_unk)
    alone.push(tokenizer.unkId);
  if (alone.length)
    chain.push((logits) => {
      for (const token of alone) logits[token] = NEVER;
    });
  return chain;
}

/**
 * @param {Float32Array} logits
 * @param {[number, number][]} biases
 */
export function addBias(logits, biases) {
  for (const [token, bias] of biases) logits[token] += fround(bias);
}

/**
 * Make tokens less probable by a factor (more probable below 1): positive logits are divided by it, negative ones
 * multiplied (Keskar et al. 2019).
 *
 * @param {Float32Array} logits
 * @param {Iterable<number>} seen ids, each once.
 * @param {number} penalty
 */
export function penalizeRepetition(logits, seen, penalty) {
  const factor = fround(penalty);
  for (const token of seen)
    logits[token] = logits[token] > 0 ? logits[token] / factor : logits[token] * factor;
}

/**
 * Lower each token that came before by `presence`, and by `frequency` for every time it came.
 *
 * @param {Float32Array} logits
 * @param {Map<number, number>} counts
 * @param {number} frequency
 * @param {number} presence
 */
export function penalizeCounts(logits, counts, frequency, presence) {
  for (const [token, count] of counts)
    logits[token] -= fround(fround(fround(frequency) * count) + fround(presence));
}

/**
 * Rule out every token that would complete an n-gram of `size` that stands in `tokens`.
 *
 * @param {Float32Array} logits
 * @param {number[]} tokens
 * @param {number} size
 */
export function banRepeatedNgrams(logits, tokens, size) {
  const last = tokens.slice(tokens.length - size + 1);
  for (let start = 0; start + size <= tokens.length; start++)
    if (size === 1 || last.every((token, place) => tokens[start + place] === token))
      logits[tokens[start + size - 1]] = NEVER;
}

/**
 * Rule out the last token of each of `sequences` where `tokens` end with all before it.
 *
 * @param {Float32Array} logits
 * @param {number[]} tokens
 * @param {number[][]} sequences
 */
export function banSequences(logits, tokens, sequences) {
  for (const sequence of sequences) {
    const before = sequence.length - 1;
    const start = tokens.length - before;
    if (start >= 0 && sequence.slice(0, before).every((token, place) => tokens[start + place] === token))
      logits[sequence[before]] = NEVER;
  }
}

/**
 * The sequences of ids that spell texts, within a line and after a space.
 *
 * A text that the vocabulary cannot spell is never generated anyway.
 *
 * @param {string[]} texts
 * @param {import("./tokenizer.js").Tokenizer} tokenizer
 */
export function spellings(texts, tokenizer) {
  const { kind, unkId, tokens } = tokenizer;
  /** @type {Map<string, number[]>} */
  const sequences = new Map();
  for (const text of texts)
    for (const spelled of kind === "bpe" || kind === "other" ? [text, ` ${text}`] : [text]) {
      const ids = tokenizer.encode(spelled);
      const known = unkId === null || !ids.includes(unkId) || text === tokens[unkId];
      if (ids.length && known) sequences.set(ids.join(), ids);
    }
  return [...sequences.values()];
}
