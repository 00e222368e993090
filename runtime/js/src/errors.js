/** A file of a bundle, or a saved session, that is missing, damaged, or not what it has to be. */
export class UnusableFileError extends Error {
  /**
   * @param {string} name the file.
   * @param {string} problem what is wrong with it.
   */
  constructor(name, problem) {
    super(`${name}: ${problem}`);
    this.name = "UnusableFileError";
  }
}

/** Logits are NaN or infinite: the model's weights are damaged, or its state has overflowed. */
export class NotFiniteError extends Error {
  constructor() {
    super("the model's logits are NaN or infinite");
    this.name = "NotFiniteError";
  }
}

/**
 * The first line of an error's message.
 *
 * @param {unknown} error
 */
export function firstLine(error) {
  return String(error instanceof Error ? error.message : error)
    .split("\n", 1)[0]
    .slice(0, 200);
}
