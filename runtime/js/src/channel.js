/** The conversation with a worker: requests with numbers, answers to them, text as it comes, and breaking off. */
import { NotFiniteError, UnusableFileError } from "./errors.js";

/**
 * What messages go to and come from: a Worker, or one of Node's `worker_threads`.
 *
 * @typedef {object} Port
 * @property {(message: any) => void} postMessage
 * @property {(type: "message" | "error", listener: (event: any) => void) => void} addEventListener
 * @property {(type: "message" | "error", listener: (data: any) => void) => void} [on]
 * @property {() => void} [terminate]
 */

/** One end of the conversation: requests go out, and answers come back by their numbers. */
export class Channel {
  /** @param {Port} port */
  constructor(port) {
    this._port = port;
    this._asked = 0;
    /** @type {Map<number, {resolve: (value: any) => void, reject: (error: any) => void, text?: (text: string) => void}>} */
    this._waiting = new Map();
    const listen = (/** @type {any} */ data) => this._hear(data);
    const fail = (/** @type {any} */ error) =>
      this._fail(`the worker failed: ${error.message ?? "no such script"}`);
    if (port.on) {
      port.on("message", listen);
      port.on("error", fail);
    } else {
      port.addEventListener("message", ({ data }) => listen(data));
      port.addEventListener("error", fail);
    }
  }

  /**
   * @param {string} method
   * @param {any[]} parameters
   * @param {AbortSignal} [signal]
   * @param {(text: string) => void} [text] called with text as it comes.
   * @returns {Promise<any>}
   */
  ask(method, parameters, signal, text) {
    if (signal?.aborted) return Promise.reject(signal.reason);
    const id = ++this._asked;
    const abort = () => {
      this._port.postMessage({ id });
      this._waiting.get(id)?.reject(signal?.reason);
      this._waiting.delete(id);
    };
    signal?.addEventListener("abort", abort, { once: true });
    const answer = new Promise((resolve, reject) => {
      this._waiting.set(id, { resolve, reject, text });
    });
    this._port.postMessage({ id, method, parameters });
    return answer.finally(() => signal?.removeEventListener("abort", abort));
  }

  /** End the worker, and what it was asked for. */
  close() {
    this._port.terminate?.();
    this._fail("the worker was closed");
  }

  /** @param {string} message */
  _fail(message) {
    for (const { reject } of this._waiting.values()) reject(new Error(message));
    this._waiting.clear();
  }

  /** @param {any} answer */
  _hear({ id, value, text, error }) {
    const waiting = this._waiting.get(id);
    if (!waiting) return;
    if (text !== undefined) return waiting.text?.(text);
    this._waiting.delete(id);
    if (error) waiting.reject(revived(error));
    else waiting.resolve(value);
  }
}

/**
 * Text as the worker posts it; breaking off the iteration breaks off the work.
 *
 * @param {Channel} channel
 * @param {any[]} parameters
 * @param {AbortSignal} [signal]
 * @returns {AsyncGenerator<string, void, void>}
 */
export async function* streamed(channel, parameters, signal) {
  const controller = new AbortController();
  const stop = () => controller.abort(signal?.reason);
  if (signal?.aborted) stop();
  signal?.addEventListener("abort", stop, { once: true });
  let text = "";
  let isDone = false;
  let wake = () => {};
  const answer = channel
    .ask("generate", parameters, controller.signal, (more) => {
      text += more;
      wake();
    })
    .finally(() => {
      isDone = true;
      wake();
    });
  answer.catch(() => {}); // it is awaited below, unless the reader breaks off
  try {
    while (!isDone) {
      await /** @type {Promise<void>} */ (
        new Promise((resolve) => {
          wake = resolve;
          if (text || isDone) resolve();
        })
      );
      const ready = text;
      text = "";
      if (ready) yield ready;
    }
    const rest = text + (await answer);
    if (rest) yield rest;
  } finally {
    signal?.removeEventListener("abort", stop);
    if (!isDone) controller.abort();
  }
}

/** @param {{name: string, message: string}} error */
function revived({ name, message }) {
  if (name === "UnusableFileError") {
    const [file, ...problem] = message.split(": ");
    return new UnusableFileError(file, problem.join(": "));
  }
  if (name === "NotFiniteError") return new NotFiniteError();
  if (name === "RangeError") return new RangeError(message);
  if (name === "AbortError") return new DOMException(message, name);
  return new Error(message);
}
