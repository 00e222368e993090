/** The sha256 of a file, by WebCrypto, or without it: a page that came over plain http has no WebCrypto. */

/**
 * @param {Uint8Array} bytes
 * @returns {Promise<string>} hexadecimal.
 */
export async function sha256(bytes) {
  const subtle = globalThis.crypto?.subtle;
  const digest = subtle
    ? new Uint8Array(await subtle.digest("SHA-256", /** @type {Uint8Array<ArrayBuffer>} */ (bytes)))
    : plainSha256(bytes);
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * FIPS 180-4.
 *
 * @param {Uint8Array} bytes
 * @returns {Uint8Array} 32 bytes.
 */
export function plainSha256(bytes) {
  const padded = new Uint8Array(((bytes.length + 8) >> 6) * 64 + 64);
  padded.set(bytes);
  padded[bytes.length] = 0x80;
  const view = new DataView(padded.buffer);
  view.setBigUint64(padded.length - 8, BigInt(bytes.length) * 8n);
  const hash = Uint32Array.from(STARTS);
  const words = new Uint32Array(64);
  for (let start = 0; start < padded.length; start += 64) {
    for (let i = 0; i < 16; i++) words[i] = view.getUint32(start + 4 * i);
    addBlock(hash, words);
  }
  const digest = new DataView(new ArrayBuffer(32));
  for (let i = 0; i < 8; i++) digest.setUint32(4 * i, hash[i]);
  return new Uint8Array(digest.buffer);
}

/**
 * @param {Uint32Array} hash
 * @param {Uint32Array} w 64 words, of which the first 16 are the block's.
 */
function addBlock(hash, w) {
  for (let i = 16; i < 64; i++) {
    const x = w[i - 15];
    const y = w[i - 2];
    w[i] =
      w[i - 16] +
      w[i - 7] +
      (turn(x, 7) ^ turn(x, 18) ^ (x >>> 3)) +
      (turn(y, 17) ^ turn(y, 19) ^ (y >>> 10));
  }
  let [a, b, c, d, e, f, g, h] = hash;
  for (let i = 0; i < 64; i++) {
    const t = (h + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + ((e & f) ^ (~e & g)) + ROUNDS[i] + w[i]) | 0;
    const u = (turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
    [h, g, f, e, d, c, b, a] = [g, f, e, (d + t) | 0, c, b, a, (t + u) | 0];
  }
  [a, b, c, d, e, f, g, h].forEach((value, i) => {
    hash[i] += value;
  });
}

/**
 * @param {number} x
 * @param {number} n
 */
function turn(x, n) {
  return (x >>> n) | (x << (32 - n));
}

const PRIMES = Array.from({ length: 312 }, (_, n) => n).filter(
  (n) => n > 1 && !Array.from({ length: n }, (_, d) => d).some((d) => d > 1 && n % d === 0),
);
/** The first 32 bits of the fractional parts of the primes' square roots and cube roots. */
const STARTS = PRIMES.slice(0, 8).map((prime) => ((prime ** 0.5 % 1) * 2 ** 32) | 0);
const ROUNDS = PRIMES.slice(0, 64).map((prime) => ((Math.cbrt(prime) % 1) * 2 ** 32) | 0);
