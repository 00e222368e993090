/** The parameters of sampling, with the names, meanings and bounds that they have in Python. */

/**
 * @typedef {object} SamplingParams
 * @property {number} temperature divides the logits; 0 is greedy.
 * @property {number} top_k keep the K most probable tokens, 0 for all.
 * @property {number} top_p keep the most probable tokens that reach this probability together.
 * @property {number} min_p keep tokens at least this many times as probable as the best.
 * @property {number} typical_p keep the most typical tokens that reach this probability together.
 * @property {number} repetition_penalty divides positive and multiplies negative logits of tokens that came before.
 * @property {number} frequency_penalty taken from a token's logit for every time it came before.
 * @property {number} presence_penalty taken from a token's logit if it came before.
 * @property {number} no_repeat_ngram_size no sequence of this many tokens comes twice; 0 allows all.
 * @property {[number, number][] | Map<number, number> | Record<string, number>} logit_bias added to the logits of
 *   these ids; -Infinity bans one.
 * @property {string[]} banned texts that are never generated, as the tokenizer spells them.
 * @property {number} max_tokens the most tokens to generate.
 * @property {string[]} stop end before one of these texts.
 * @property {boolean} allow_unk let the token of unknown words be generated.
 * @property {number | null} logprobs give each token's log-probability, and those of the K most probable.
 */

/**
 * @typedef {object} Parameter
 * @property {any} value by default.
 * @property {"whole" | "number" | "flag" | "texts" | "bias"} kind
 * @property {number} [low] the smallest value.
 * @property {number} [above] a bound that is itself too small.
 * @property {number} [high] the largest value.
 * @property {boolean} [optional] whether null is a value too.
 */

/** @type {Record<string, Parameter>} */
export const PARAMETERS = {
  temperature: { value: 1, kind: "number", low: 0, high: 1000 },
  top_k: { value: 0, kind: "whole", low: 0 },
  top_p: { value: 1, kind: "number", above: 0, high: 1 },
  min_p: { value: 0, kind: "number", low: 0, high: 1 },
  typical_p: { value: 1, kind: "number", above: 0, high: 1 },
  repetition_penalty: { value: 1, kind: "number", low: 0.01, high: 100 },
  frequency_penalty: { value: 0, kind: "number", low: -100, high: 100 },
  presence_penalty: { value: 0, kind: "number", low: -100, high: 100 },
  no_repeat_ngram_size: { value: 0, kind: "whole", low: 0, high: 1000 },
  logit_bias: { value: [], kind: "bias" },
  banned: { value: [], kind: "texts" },
  max_tokens: { value: 200, kind: "whole", low: 0 },
  stop: { value: [], kind: "texts" },
  allow_unk: { value: false, kind: "flag" },
  logprobs: { value: null, kind: "whole", low: 0, optional: true },
};

const LARGEST_BIAS = 10_000;
const CALLED = {
  whole: "a whole number",
  number: "a number",
  flag: "true or false",
  texts: "a sequence of strings",
};

/**
 * All parameters: those given, checked, and the others at their defaults.
 *
 * @param {Partial<SamplingParams>} [given]
 * @param {number} [vocabSize] bounds ids, where it is known.
 * @returns {SamplingParams & {logit_bias: [number, number][]}}
 * @throws {RangeError} a value is of the wrong type or out of its range, or a name is unknown.
 */
export function samplingParams(given = {}, vocabSize = Number.POSITIVE_INFINITY) {
  /** @type {any} */
  const params = {};
  for (const [name, parameter] of Object.entries(PARAMETERS)) params[name] = parameter.value;
  for (const [name, value] of Object.entries(given)) {
    if (name === "regex") {
      if (value !== null) throw new RangeError("regex is not available in JavaScript");
    } else if (!Object.hasOwn(PARAMETERS, name)) {
      throw new RangeError(
        `${name} is no sampling parameter; they are ${Object.keys(PARAMETERS).join(", ")}`,
      );
    } else if (value !== undefined) {
      params[name] = PARAMETERS[name].kind === "bias" ? biases(value, vocabSize) : value;
      check(name, value, PARAMETERS[name]);
    }
  }
  if (params.logprobs !== null)
    checkNumber("logprobs", params.logprobs, "whole", { low: 0, high: vocabSize });
  return params;
}

/**
 * Check a number that is no parameter as they are checked.
 *
 * @param {string} name
 * @param {unknown} value
 * @param {"whole" | "number"} kind
 * @param {{low?: number, above?: number, high?: number}} bounds
 * @throws {RangeError} its type or range is wrong.
 */
export function checkNumber(name, value, kind, bounds) {
  check(name, value, { value: null, kind, ...bounds });
}

/**
 * Check a seed or an index, which may be a BigInt.
 *
 * @param {string} name
 * @param {unknown} value
 */
export function checkSeed(name, value) {
  if (typeof value === "bigint" ? value < 0n : !(Number.isSafeInteger(value) && Number(value) >= 0))
    throw new RangeError(`${name} must be a whole number of at least 0, got ${shown(value)}`);
}

/**
 * @param {string} name
 * @param {unknown} value
 * @param {Parameter} parameter
 */
function check(name, value, parameter) {
  const { kind, optional } = parameter;
  if (kind === "bias" || (value === null && optional)) return;
  const fits = {
    whole: () => Number.isSafeInteger(value),
    number: () => typeof value === "number",
    flag: () => typeof value === "boolean",
    texts: () => Array.isArray(value) && value.every((text) => typeof text === "string"),
  }[kind]();
  if (!fits) throw new RangeError(`${name} must be ${CALLED[kind]}, got ${shown(value)}`);
  if (kind === "texts" && /** @type {string[]} */ (value).includes(""))
    throw new RangeError(`a ${name} string must not be empty`);
  if (typeof value === "number" && !isWithin(value, parameter))
    throw new RangeError(`${name} must be ${bounds(parameter) || "finite"}, got ${value}`);
}

/**
 * Written so that NaN is out of every range.
 *
 * @param {number} value
 * @param {Parameter} bounds
 */
function isWithin(
  value,
  { low = Number.NEGATIVE_INFINITY, above = Number.NEGATIVE_INFINITY, high = Infinity },
) {
  return Number.isFinite(value) && value >= low && value > above && value <= high;
}

/** @param {Parameter} parameter */
function bounds({ low, above, high }) {
  if (low !== undefined && Number.isFinite(high)) return `from ${low} to ${high}`;
  const named = { "at least": low, above, "at most": high };
  const given = Object.entries(named).filter(([, bound]) => bound !== undefined);
  return given.map(([word, bound]) => `${word} ${bound}`).join(" and ");
}

/**
 * @param {unknown} given
 * @param {number} vocabSize
 * @returns {[number, number][]} in the order of ids.
 */
function biases(given, vocabSize) {
  const pairs =
    given instanceof Map || Array.isArray(given)
      ? [...given]
      : given && typeof given === "object"
        ? Object.entries(given).map(([id, bias]) => [/^\d+$/.test(id) ? Number(id) : Number.NaN, bias])
        : [undefined];
  if (
    !pairs.every(
      (pair) => Array.isArray(pair) && Number.isSafeInteger(pair[0]) && typeof pair[1] === "number",
    )
  )
    throw new RangeError(`logit_bias must map ids to numbers, got ${shown(given)}`);
  for (const [id, bias] of pairs) {
    if (!(Math.abs(bias) <= LARGEST_BIAS || bias === Number.NEGATIVE_INFINITY))
      throw new RangeError(`logit_bias must be within ${LARGEST_BIAS} of 0, or -inf, got ${bias} for ${id}`);
    if (!(id >= 0 && id < vocabSize))
      throw new RangeError(`logit_bias must name ids from 0 to ${vocabSize - 1}, got ${id}`);
  }
  return pairs.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
}

/**
 * A value as messages show it.
 *
 * @param {unknown} value
 */
function shown(value) {
  const text = typeof value === "bigint" ? String(value) : (JSON.stringify(value) ?? String(value));
  return text.length > 60 ? `${text.slice(0, 57)}...` : text;
}
