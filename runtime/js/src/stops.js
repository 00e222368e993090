/** Passes text on up to the first stop string, which may come in parts. */
export class StopScanner {
  /** @param {string} [held] text that may be the beginning of a stop string. */
  constructor(held = "") {
    this.held = held;
  }

  /**
   * What of `text` can be shown now, and whether a stop string was found; what follows it is dropped.
   *
   * @param {string} text
   * @param {string[]} stops
   * @returns {{text: string, stopped: boolean}}
   */
  push(text, stops) {
    const all = this.held + text;
    this.held = "";
    const ends = stops.map((stop) => all.indexOf(stop)).filter((at) => at >= 0);
    if (ends.length) return { text: all.slice(0, Math.min(...ends)), stopped: true };
    const keep = Math.max(0, ...stops.map((stop) => overlap(all, stop)));
    this.held = all.slice(all.length - keep);
    return { text: all.slice(0, all.length - keep), stopped: false };
  }
}

/**
 * The length of the longest beginning of `stop` that ends `text`.
 *
 * @param {string} text
 * @param {string} stop
 */
function overlap(text, stop) {
  for (let length = Math.min(stop.length - 1, text.length); length; length--)
    if (text.endsWith(stop.slice(0, length))) return length;
  return 0;
}
