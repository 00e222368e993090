/** What the tests share: the fixture bundle, and what Python found in it. */
import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";

/** Of float32 logits and log-probabilities, on whatever processor; runtime/FORMAT.md promises as much. */
export const CLOSE = 1e-4;
/** Of sums of many exponentials, in float64 here and there. */
export const EXACT = 1e-9;

const FIXTURES = new URL("../../../tests/fixtures/", import.meta.url);
/** A bundle of the format's first version. */
export const OLD_BUNDLE = fileURLToPath(new URL("format1_bundle", FIXTURES));
export const BUNDLE = fileURLToPath(new URL("tiny_bundle", FIXTURES));
export const CASES = JSON.parse(await readFile(new URL("cases.json", FIXTURES), "utf8"));

/**
 * The folder of bundles and cases that the Python test writes before it runs these; undefined without it.
 */
export const MADE = process.env.STEPLM_CASES;

/** The engines of this installation. */
export const ENGINES = /** @type {const} */ (["wasm", "native"]);

/**
 * @param {ArrayLike<number>} found
 * @param {ArrayLike<number>} expected
 */
export function largestDifference(found, expected) {
  if (found.length !== expected.length) return Number.POSITIVE_INFINITY;
  return Array.from(expected, (value, place) => Math.abs(value - found[place])).reduce(
    (a, b) => Math.max(a, b),
    0,
  );
}

/**
 * @param {string} base64
 * @returns {Uint8Array}
 */
export function fromBase64(base64) {
  return new Uint8Array(Buffer.from(base64, "base64"));
}
