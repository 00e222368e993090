/** The script of a worker that runs one model; a page speaks with it through `steplm/remote`. */
import { workerPort } from "#platform";
import { Draft } from "./draft.js";
import { generate, nextTokens } from "./generate.js";
import { load } from "./model.js";
import { score } from "./score.js";
import { Session } from "./session.js";
import { suggest } from "./words.js";

/**
 * @typedef {object} Request
 * @property {number} id
 * @property {string} [method] none in a request to break off the one of this id.
 * @property {any[]} [parameters]
 */

const POST_EVERY = 16; // milliseconds: a page shows no more in a second

/** @type {import("./model.js").Model | undefined} */
let loaded;
/** @type {{writing: Draft, reading: Draft} | undefined} Suggestions need not wait for surprisals. */
let drafts;
/** @type {Map<number, Session>} */
const sessions = new Map();
let made = 0;
/** @type {Map<number, AbortController>} */
const running = new Map();
const port = workerPort();

/** @type {Record<string, (signal: AbortSignal, id: number, ...parameters: any[]) => Promise<any>>} */
const METHODS = {
  async load(_signal, _id, source, options) {
    loaded = await load(source, options);
    drafts = { writing: new Draft(loaded), reading: new Draft(loaded) };
    const { config, defaults, precision, provider, identity } = loaded;
    return { config, defaults, precision, provider, identity };
  },
  suggest: async (_signal, _id, text, k, options) => suggest(model(), text, k, options),
  nextTokens: async (_signal, _id, text, k, options) => nextTokens(model(), text, k, options),
  score: async (signal, _id, text) => ({ ...(await score(model(), text, { signal })) }),
  draftSuggest: async (signal, _id, text, k) => drafts?.writing.suggest(text, k, { signal }),
  draftSurprisal: async (signal, _id, text) => drafts?.reading.surprisal(text, { signal }),
  draftSession: async (signal, _id, text, options) =>
    keep(/** @type {Session} */ (await drafts?.writing.session(text, { ...options, signal }))),
  start: async (signal, _id, prompt, options) =>
    keep(await Session.start(model(), prompt, { ...options, signal })),
  fork: async (_signal, _id, handle, options) => keep(session(handle).fork(options)),
  copy: async (_signal, _id, handle) => keep(session(handle).copy()),
  read: async (signal, _id, handle, text) => session(handle).read(text, signal),
  flush: async (_signal, _id, handle) => session(handle).flush(),
  save: async (_signal, _id, handle) => session(handle).save(),
  restore: async (_signal, _id, bytes) => keep(Session.restore(model(), bytes)),
  async release(_signal, _id, handle) {
    sessions.delete(handle);
  },
  async generate(signal, id, prompt, params, options) {
    const from = typeof prompt === "string" ? prompt : session(prompt.handle);
    let text = "";
    let posted = performance.now();
    for await (const piece of generate(model(), from, params, { ...options, signal })) {
      text += piece;
      if (performance.now() - posted > POST_EVERY) {
        port.postMessage({ id, text });
        text = "";
        posted = performance.now();
      }
    }
    return text;
  },
};

port.addEventListener("message", (event) => answer(event.data));

/** @param {Request} request */
async function answer({ id, method, parameters = [] }) {
  if (!method) return running.get(id)?.abort();
  const controller = new AbortController();
  running.set(id, controller);
  try {
    const value = await METHODS[method](controller.signal, id, ...parameters);
    port.postMessage({ id, value });
  } catch (error) {
    const { name, message } = error instanceof Error ? error : new Error(String(error));
    port.postMessage({ id, error: { name, message } });
  } finally {
    running.delete(id);
  }
}

function model() {
  if (!loaded) throw new Error("the worker has no model yet");
  return loaded;
}

/** @param {number} handle */
function session(handle) {
  const found = sessions.get(handle);
  if (!found) throw new Error("the session was released");
  return found;
}

/** @param {Session} one */
function keep(one) {
  sessions.set(++made, one);
  return made;
}
