/**
 * Filters: which tokens may be drawn, as pure functions of the logits of one step, in the order of Hugging
 * Face `transformers`.
 *
 * `keep` takes logits `(vocab)` and a parameter, and returns new ones in which a token that is ruled out is minus
 * infinity. Where it can be told without that whether one drawn token stays, `keeps` tells it from the weights of
 * all, the exponentials of their logits.
 */

const NEVER = Number.NEGATIVE_INFINITY;

/**
 * @typedef {object} Filter
 * @property {"top_k" | "top_p" | "min_p" | "typical_p"} parameter it applies where this is not the default.
 * @property {number} off the default.
 * @property {(logits: Float32Array, value: number) => Float32Array} keep
 * @property {(weights: Float32Array, total: number, token: number, value: number) => boolean} [keeps]
 * @property {boolean} [comesFirst] whether `keeps` holds only where no filter comes before.
 */

/** @type {Filter[]} */
export const FILTERS = [
  { parameter: "top_k", off: 0, keep: keepTopK, keeps: topKKeeps },
  { parameter: "top_p", off: 1, keep: keepTopP, keeps: topPKeeps, comesFirst: true },
  { parameter: "min_p", off: 0, keep: keepMinP, keeps: minPKeeps },
  { parameter: "typical_p", off: 1, keep: keepTypical },
];

/**
 * All but the `k` largest logits, and those equal to the k-th, are ruled out.
 *
 * @param {Float32Array} logits
 * @param {number} k
 */
export function keepTopK(logits, k) {
  if (k >= logits.length) return logits;
  const kth = logits.slice().sort()[logits.length - k];
  return logits.map((logit) => (logit < kth ? NEVER : logit));
}

/**
 * @param {Float32Array} weights
 * @param {number} _total
 * @param {number} token
 * @param {number} k
 */
function topKKeeps(weights, _total, token, k) {
  const own = weights[token];
  let above = 0;
  for (let other = 0; other < weights.length; other++) if (weights[other] > own) above++;
  return above < k;
}

/**
 * All but the most probable tokens whose probabilities reach `p` together are ruled out (Holtzman et al. 2020).
 *
 * The token that crosses `p` stays; among equals those of smaller id.
 *
 * @param {Float32Array} logits
 * @param {number} p
 */
export function keepTopP(logits, p) {
  const highest = max(logits);
  const weights = logits.map((logit) => Math.exp(logit - highest)).sort();
  const needed = p * sum(weights);
  let [kept, reached] = [0, 0];
  while (kept < weights.length && reached < needed) reached += weights[weights.length - ++kept];
  kept = Math.max(kept, 1);
  const smallest = logits.slice().sort()[logits.length - kept];
  let ties = kept - logits.filter((logit) => logit > smallest).length;
  return logits.map((logit) => (logit > smallest || (logit === smallest && ties-- > 0) ? logit : NEVER));
}

/**
 * @param {Float32Array} weights
 * @param {number} total
 * @param {number} token
 * @param {number} p
 */
function topPKeeps(weights, total, token, p) {
  const [own, most] = [weights[token], p * total];
  if (total - own < most) return true; // even all the others together do not reach p
  let before = 0;
  for (let other = 0; other < weights.length; other++) if (weights[other] > own) before += weights[other];
  if (before < most) for (let other = 0; other < token; other++) if (weights[other] === own) before += own;
  return before < most;
}

/**
 * Tokens less probable than `p` times the most probable are ruled out (Nguyen et al. 2024).
 *
 * @param {Float32Array} logits
 * @param {number} p
 */
export function keepMinP(logits, p) {
  const least = Math.fround(max(logits) + Math.fround(Math.log(p)));
  return logits.map((logit) => (logit < least ? NEVER : logit));
}

/**
 * @param {Float32Array} weights
 * @param {number} _total
 * @param {number} token
 * @param {number} p
 */
function minPKeeps(weights, _total, token, p) {
  return weights[token] >= p * max(weights);
}

/**
 * All but the most typical tokens whose probabilities reach `p` together are ruled out (Meister et al. 2022).
 *
 * Typical are those whose surprise is near the entropy. The token that crosses `p` stays; among equals those of
 * smaller id.
 *
 * @param {Float32Array} logits
 * @param {number} p
 */
export function keepTypical(logits, p) {
  const possible = Array.from(logits.keys()).filter((token) => logits[token] > NEVER);
  const highest = max(logits);
  const shifted = possible.map((token) => logits[token] - highest);
  const total = sum(shifted.map(Math.exp));
  const probabilities = shifted.map((value) => Math.exp(value) / total);
  const surprises = shifted.map((value) => Math.log(total) - value);
  const entropy = sum(surprises.map((surprise, place) => surprise * probabilities[place]));
  const distances = surprises.map((surprise) => Math.abs(surprise - entropy));
  const order = possible.map((_, place) => place).sort((a, b) => distances[a] - distances[b] || a - b);
  const result = new Float32Array(logits.length).fill(NEVER);
  let reached = 0;
  for (const place of order) {
    result[possible[place]] = logits[possible[place]];
    reached += probabilities[place];
    if (reached >= p) break;
  }
  return result;
}

/** @param {Float32Array} values */
function max(values) {
  let highest = NEVER;
  for (let place = 0; place < values.length; place++) if (values[place] > highest) highest = values[place];
  return highest;
}

/** @param {ArrayLike<number>} values */
function sum(values) {
  let total = 0;
  for (let place = 0; place < values.length; place++) total += values[place];
  return total;
}
