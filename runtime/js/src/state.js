/** States: one value for each tensor, that goes into a step and comes out of it, and is never changed. */

/**
 * @typedef {object} StateValue
 * @property {Float32Array | BigInt64Array} data
 * @property {readonly number[]} dims
 * @typedef {StateValue[]} State in the order of the bundle's states.
 * @typedef {import("./bundle.js").StateTensor} StateTensor
 */

/**
 * The zero state of sequences that have read nothing yet.
 *
 * @param {StateTensor[]} tensors
 * @param {number} [batch]
 * @returns {State}
 */
export function zeroState(tensors, batch = 1) {
  return tensors.map(({ dtype, shape }) => {
    const dims = shape.map((size) => size ?? batch);
    const count = dims.reduce((product, size) => product * size, 1);
    return { data: dtype === "int64" ? new BigInt64Array(count) : new Float32Array(count), dims };
  });
}

/**
 * The state of the batch that has the sequences of `states`, batches of 1, one after the other.
 *
 * @param {StateTensor[]} tensors
 * @param {State[]} states
 * @returns {State}
 */
export function joinStates(tensors, states) {
  if (states.length === 1) return states[0];
  return zeroState(tensors, states.length).map((joined, place) => {
    const { outer, inner } = spans(tensors[place]);
    for (const [row, state] of states.entries())
      for (let o = 0; o < outer; o++)
        joined.data.set(
          /** @type {any} */ (state[place].data.subarray(o * inner, (o + 1) * inner)),
          (o * states.length + row) * inner,
        );
    return joined;
  });
}

/**
 * The state of one sequence of a batch, as a batch of 1.
 *
 * @param {StateTensor[]} tensors
 * @param {State} state
 * @param {number} batch
 * @param {number} row
 * @returns {State}
 */
export function stateOf(tensors, state, batch, row) {
  if (batch === 1) return state;
  return zeroState(tensors).map((own, place) => {
    const { outer, inner } = spans(tensors[place]);
    for (let o = 0; o < outer; o++) {
      const start = (o * batch + row) * inner;
      own.data.set(/** @type {any} */ (state[place].data.subarray(start, start + inner)), o * inner);
    }
    return own;
  });
}

/**
 * How many numbers lie before and within one sequence's part of a tensor.
 *
 * @param {StateTensor} tensor
 */
function spans({ shape }) {
  const axis = shape.indexOf(null);
  const product = (/** @type {(number | null)[]} */ sizes) => {
    let all = 1;
    for (const size of sizes) all *= Number(size);
    return all;
  };
  return { outer: product(shape.slice(0, axis)), inner: product(shape.slice(axis + 1)) };
}
