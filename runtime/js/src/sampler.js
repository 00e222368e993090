/**
 * The sampler: the next token, drawn from the logits of a step, without sorting the vocabulary.
 *
 * Where every filter has a test of one token, a token is drawn from the whole distribution, and drawn again while a
 * test fails: that gives the distribution that the filters leave. The numbers, their order and the uniform numbers
 * used are those of Python's sampler (runtime/FORMAT.md), so that a seed gives the same text.
 */
import { NotFiniteError } from "./errors.js";
import { exponentials } from "./exponential.js";
import { FILTERS } from "./filters.js";

const BLOCK = 128;
const MOST_DRAWS = 16;
const COLDEST = 1e-6; // below, the scale would overflow; the best token has all the weight long before
// Between these the sum of the exponentials keeps float32's precision without a shift by the maximum.
const SMALLEST_SUM = 1e-10;
const LARGEST_SUM = 1e30;
const LARGEST_EXPONENT = 80; // above, a sum is larger than that
const { fround } = Math;

export class Sampler {
  /**
   * @param {import("./params.js").SamplingParams} params temperature and filters are used here.
   * @param {number} vocabSize
   * @param {number | null} [banned] an id that is never chosen.
   */
  constructor(params, vocabSize, banned = null) {
    this._greedy = params.temperature === 0;
    this._banned = banned;
    this._filters = FILTERS.filter(({ parameter, off }) => params[parameter] !== off);
    /** @type {number[]} */
    this._values = this._filters.map(({ parameter }) => params[parameter]);
    const testable = this._filters.every(({ keeps, comesFirst }, place) => keeps && !(comesFirst && place));
    this._filtersFirst = !testable;
    this._scale = fround(1 / Math.max(params.temperature, COLDEST));
    this._block = vocabSize > 2 * BLOCK ? BLOCK : vocabSize;
    this._weights = new Float32Array(vocabSize);
    const blocks = Math.ceil(vocabSize / this._block);
    // Of few tokens the sums of each and all before it, in float32; of many those of blocks.
    this._cumulative = blocks > 1 ? new Float64Array(blocks) : new Float32Array(vocabSize);
    this._hasBlocks = blocks > 1;
    this._total = 0;
  }

  /**
   * The next token; greedy takes nothing from the generator.
   *
   * @param {Float32Array} logits `(vocab)`; they are not changed.
   * @param {{random(): number}} generator
   * @throws {NotFiniteError} they are NaN or infinite.
   */
  choose(logits, generator) {
    if (this._greedy) return this._best(logits);
    this._weigh(logits);
    const token = this._draw(generator.random());
    return this._keeps(token) ? token : this._drawAgain(generator);
  }

  /** @param {Float32Array} logits */
  _best(logits) {
    let [best, highest] = [0, Number.NEGATIVE_INFINITY];
    let isNumber = true;
    for (let token = 0; token < logits.length; token++) {
      const logit = logits[token];
      isNumber &&= !Number.isNaN(logit);
      if (logit > highest && token !== this._banned) [best, highest] = [token, logit];
    }
    if (!isNumber || !Number.isFinite(highest)) throw new NotFiniteError();
    return best;
  }

  /** @param {Float32Array} logits */
  _weigh(logits) {
    const { _weights: weights, _scale: scale, _banned: banned } = this;
    let highest = Number.NEGATIVE_INFINITY;
    if (!this._filtersFirst)
      for (let token = 0; token < logits.length; token++)
        if (logits[token] > highest) highest = logits[token];
    if (!this._filtersFirst && highest * scale <= LARGEST_EXPONENT) {
      exponentials(logits, scale, 0, weights);
      if (banned !== null) weights[banned] = 0;
      this._sum();
      if (this._total > SMALLEST_SUM && this._total < LARGEST_SUM) return;
    }
    /** @type {Float32Array} */
    let values = this._shifted(logits);
    if (this._filtersFirst) values = this._filtered(values);
    exponentials(values, 1, 0, weights);
    this._sum();
  }

  /**
   * The logits by the temperature, the largest 0.
   *
   * @param {Float32Array} logits
   */
  _shifted(logits) {
    const values = logits.slice();
    if (this._banned !== null) values[this._banned] = Number.NEGATIVE_INFINITY;
    const highest = values.reduce((most, value) => Math.max(most, value), Number.NEGATIVE_INFINITY);
    if (!Number.isFinite(highest)) throw new NotFiniteError();
    return values.map((value) => fround(value - highest) * this._scale);
  }

  /** @param {Float32Array} values */
  _filtered(values) {
    return this._filters.reduce((left, filter, place) => filter.keep(left, this._values[place]), values);
  }

  _sum() {
    const { _weights: weights, _cumulative: cumulative, _block: block } = this;
    let sum = 0;
    if (this._hasBlocks) {
      for (let place = 0, start = 0; start < weights.length; place++, start += block) {
        const end = Math.min(start + block, weights.length);
        let own = 0;
        for (let token = start; token < end; token++) own += weights[token];
        sum += fround(own);
        cumulative[place] = sum;
      }
    } else {
      for (let token = 0; token < weights.length; token++) {
        sum = fround(sum + weights[token]);
        cumulative[token] = sum;
      }
    }
    this._total = sum;
  }

  /** @param {number} uniform */
  _draw(uniform) {
    const { _weights: weights, _cumulative: cumulative, _block: block } = this;
    let target = uniform * this._total;
    let found = 0;
    while (found < cumulative.length - 1 && cumulative[found] <= target) found++;
    if (!this._hasBlocks) return found;
    if (found) target -= cumulative[found - 1];
    const end = Math.min((found + 1) * block, weights.length) - 1;
    let token = found * block;
    for (let sum = weights[token]; token < end && sum <= target; ) sum += weights[++token];
    return token;
  }

  /** @param {number} token */
  _keeps(token) {
    if (!(this._weights[token] > 0)) return false;
    if (this._filtersFirst) return true;
    return this._filters.every(({ keeps }, place) =>
      keeps?.(this._weights, this._total, token, this._values[place]),
    );
  }

  /** @param {{random(): number}} generator */
  _drawAgain(generator) {
    for (let draws = 0; draws < MOST_DRAWS; draws++) {
      const token = this._draw(generator.random());
      if (this._keeps(token)) return token;
    }
    const logits = this._weights.map(Math.log);
    return draw(this._filtersFirst ? logits : this._filtered(logits), generator.random());
  }
}

/**
 * The token at `uniform` of the cumulative distribution of logits.
 *
 * @param {Float32Array} logits
 * @param {number} uniform from 0 to below 1.
 */
export function draw(logits, uniform) {
  const highest = logits.reduce((most, value) => Math.max(most, value), Number.NEGATIVE_INFINITY);
  const weights = logits.map((logit) => Math.exp(fround(logit - highest)));
  const target = uniform * weights.reduce((sum, weight) => sum + weight, 0);
  let sum = 0;
  let last = 0;
  for (let token = 0; token < weights.length; token++) {
    if (logits[token] === Number.NEGATIVE_INFINITY) continue;
    sum += weights[token];
    last = token;
    if (sum > target) break;
  }
  return last;
}
