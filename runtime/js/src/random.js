/**
 * numpy's generator `PCG64`, seeded by its `SeedSequence([seed, index])`: the same uniform numbers as in Python.
 *
 * O'Neill 2014, PCG XSL RR 128/64; runtime/FORMAT.md has both in full.
 */

const MULTIPLIER = 0x2360ed051fc65da44385df649fccf645n;
const MASK64 = (1n << 64n) - 1n;
const MASK128 = (1n << 128n) - 1n;

/** Draws the uniform numbers of one text. */
export class Generator {
  /**
   * @param {bigint} state 128 bits.
   * @param {bigint} inc 128 bits, odd.
   */
  constructor(state, inc) {
    this.state = state;
    this.inc = inc;
  }

  /**
   * The generator of sample `index` of a seed.
   *
   * @param {number | bigint} seed at least 0.
   * @param {number | bigint} [index] at least 0.
   */
  static fromSeed(seed, index = 0) {
    const words = seedWords([...wordsOf(BigInt(seed)), ...wordsOf(BigInt(index))]);
    const long = [0, 1, 2, 3].map((j) => BigInt(words[2 * j]) | (BigInt(words[2 * j + 1]) << 32n));
    const inc = (((long[2] << 64n) | long[3]) * 2n + 1n) & MASK128;
    const state = ((inc + ((long[0] << 64n) | long[1])) * MULTIPLIER + inc) & MASK128;
    return new Generator(state, inc);
  }

  /** The next number, from 0 to below 1. */
  random() {
    this.state = (this.state * MULTIPLIER + this.inc) & MASK128;
    const mixed = ((this.state >> 64n) ^ this.state) & MASK64;
    const turn = this.state >> 122n;
    const turned = ((mixed >> turn) | (mixed << (64n - turn))) & MASK64;
    return Number(turned >> 11n) / 2 ** 53;
  }

  /** A second generator, which gives the same numbers. */
  copy() {
    return new Generator(this.state, this.inc);
  }
}

/**
 * The 32-bit words of a number, the low one first.
 *
 * @param {bigint} number
 */
function wordsOf(number) {
  const words = [Number(number & 0xffffffffn)];
  for (let rest = number >> 32n; rest; rest >>= 32n) words.push(Number(rest & 0xffffffffn));
  return words;
}

/** @param {number} x */
function fold(x) {
  return (x ^ (x >>> 16)) >>> 0;
}

/**
 * The eight words that numpy's SeedSequence makes of a seed's words.
 *
 * @param {number[]} entropy
 */
function seedWords(entropy) {
  let a = 0x43b0d7e5;
  const hash = (/** @type {number} */ value) => {
    const x = value ^ a;
    a = Math.imul(a, 0x931e8875) >>> 0;
    return fold(Math.imul(x, a));
  };
  const mix = (/** @type {number} */ x, /** @type {number} */ y) =>
    fold(Math.imul(0xca01f9dd, x) - Math.imul(0x4973f715, y));

  const pool = [0, 1, 2, 3].map((i) => hash(entropy[i] ?? 0));
  for (let source = 0; source < 4; source++)
    for (let target = 0; target < 4; target++)
      if (source !== target) pool[target] = mix(pool[target], hash(pool[source]));
  for (const word of entropy.slice(4))
    for (let target = 0; target < 4; target++) pool[target] = mix(pool[target], hash(word));

  let b = 0x8b51f9dd;
  return Array.from({ length: 8 }, (_, i) => {
    const x = pool[i % 4] ^ b;
    b = Math.imul(b, 0x58f38ded) >>> 0;
    return fold(Math.imul(x, b));
  });
}
