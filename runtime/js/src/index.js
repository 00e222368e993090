/**
 * Run a steplm bundle, a small recurrent language model, in the browser and in Node.
 *
 * @module
 */

export { Draft } from "./draft.js";
export { NotFiniteError, UnusableFileError } from "./errors.js";
export { generate, generatePieces, nextTokens } from "./generate.js";
export { load, Model } from "./model.js";
export { PARAMETERS, samplingParams } from "./params.js";
export { Score, score } from "./score.js";
export { Session } from "./session.js";
export { splitTyped } from "./typed.js";
export { suggest } from "./words.js";

/**
 * @typedef {import("./source.js").Source} Source
 * @typedef {import("./params.js").SamplingParams} SamplingParams
 * @typedef {import("./generate.js").Piece} Piece
 * @typedef {import("./words.js").Suggestion} Suggestion
 * @typedef {import("./state.js").State} State
 */
