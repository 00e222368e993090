import { exponentials } from "./exponential.js";

/**
 * The logarithm of the sum of exponentials: taken from the logits, it makes them log-probabilities.
 *
 * @param {Float32Array} logits `(vocab)`.
 */
export function logNormalizer(logits) {
  let highest = Number.NEGATIVE_INFINITY;
  for (let token = 0; token < logits.length; token++) if (logits[token] > highest) highest = logits[token];
  const weights = new Float64Array(logits.length);
  exponentials(logits, 1, highest, weights);
  let sum = 0;
  for (let token = 0; token < weights.length; token++) sum += weights[token];
  return highest + Math.log(sum);
}

/**
 * The natural-log probability of every token.
 *
 * @param {Float32Array} logits `(vocab)`.
 * @returns {Float64Array} `(vocab)`.
 */
export function logSoftmax(logits) {
  const normalizer = logNormalizer(logits);
  return Float64Array.from(logits, (logit) => logit - normalizer);
}

/**
 * The ids of the largest values, the largest first and the smaller id first among equals.
 *
 * @param {ArrayLike<number>} values
 * @param {number} count
 * @param {ArrayLike<number>} [ids] which to look at; all by default.
 * @returns {number[]}
 */
export function largest(values, count, ids) {
  /** @type {number[]} */
  const best = [];
  const size = ids ? ids.length : values.length;
  let least = Number.NEGATIVE_INFINITY;
  for (let place = 0; place < size && count > 0; place++) {
    const id = ids ? ids[place] : place;
    const value = values[id];
    if (best.length === count && !(value > least)) continue;
    let at = best.length === count ? count - 1 : best.length;
    for (; at > 0 && values[best[at - 1]] < value; at--) best[at] = best[at - 1];
    best[at] = id;
    if (best.length === count) least = values[best[count - 1]];
  }
  return best;
}
