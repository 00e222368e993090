/** The page: what is typed, suggested and continued. The model runs in a worker. */
import { RemoteModel } from "../src/remote.js";
import { splitTyped } from "../src/typed.js";

const WORDS = 4;
const IDLE = 250; // milliseconds without a keystroke before the text is coloured
/** The bits from which each colour is taken. */
const COLOURS = [2, 4, 6, 9, 12];

const text = element("text", HTMLTextAreaElement);
const words = element("words", HTMLElement);
const colours = element("colours", HTMLElement);
const status = element("status", HTMLElement);
const versions = element("versions", HTMLElement);
const temperature = element("temperature", HTMLInputElement);
const surprisal = element("surprisal", HTMLInputElement);
const buttons = {
  continue: element("continue", HTMLButtonElement),
  rewind: element("rewind", HTMLButtonElement),
  fork: element("fork", HTMLButtonElement),
};

/** @type {{text: string, past: string[]}[]} Each version of the text, with what it was before each step. */
const kept = [{ text: "", past: [] }];
let current = 0;
/** @type {AbortController | undefined} */
let writing;
let asking = new AbortController();
/** @type {string | undefined} The text that words were asked for last. */
let asked;
/** @type {ReturnType<typeof setTimeout> | undefined} */
let colouring;

const model = await start();

/** Load the model, and let the page be used. */
async function start() {
  const precision = document.querySelector('meta[name="steplm-precision"]')?.getAttribute("content");
  const worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
  try {
    const options = { precision: precision === "int8" ? /** @type {const} */ ("int8") : undefined };
    return await RemoteModel.load(worker, new URL("bundle/", document.baseURI), options);
  } catch (error) {
    status.textContent = `The model cannot be used: ${error instanceof Error ? error.message : error}`;
    throw error;
  }
}

const { config, defaults } = model;
element("facts", HTMLElement).textContent =
  `A language model (${config.model_type}, ${config.vocab_size.toLocaleString("en")} tokens) that runs in this ` +
  "page. Nothing you write leaves it.";
temperature.value = String(defaults.temperature);
showTemperature();
buttons.continue.disabled = buttons.fork.disabled = false;
status.textContent = "Ready";
await suggest();
performance.mark("steplm-suggested");
if ("serviceWorker" in navigator) navigator.serviceWorker.register("sw.js").catch(() => {}); // not over plain http

text.addEventListener("input", changed);
text.addEventListener("scroll", follow);
document.addEventListener("selectionchange", () => {
  if (document.activeElement === text && !writing) suggest();
});
temperature.addEventListener("input", showTemperature);
surprisal.addEventListener("change", () => {
  element("legend", HTMLElement).hidden = !surprisal.checked;
  colour();
});
buttons.continue.addEventListener("click", () => (writing ? writing.abort() : goOn()));
buttons.rewind.addEventListener("click", rewind);
buttons.fork.addEventListener("click", fork);
// A tap on a key must not take the focus, and with it a phone's keyboard, from the text.
words.addEventListener("pointerdown", (event) => event.preventDefault());
document.addEventListener("keydown", (event) => {
  const number = event.altKey && /^Digit[1-9]$/.test(event.code) ? Number(event.code.slice(5)) : 0;
  const word = words.children[number - 1];
  /** @type {(() => unknown) | undefined} */
  let action;
  if (word instanceof HTMLButtonElement) action = () => word.click();
  else if (event.ctrlKey && event.key === "Enter") action = () => !writing && goOn();
  else if (event.key === "Escape" && writing) action = () => writing?.abort();
  else if (event.altKey && event.code === "KeyZ") action = rewind;
  else if (event.altKey && event.code === "KeyF") action = fork;
  if (!action) return;
  event.preventDefault();
  action();
});

/** After the text was changed: new suggestions now, colours when nothing more is typed. */
function changed() {
  kept[current].text = text.value;
  const title = versions.children[current];
  if (title) title.textContent = titleOf(current, text.value);
  buttons.rewind.disabled = kept[current].past.length === 0;
  colours.replaceChildren();
  clearTimeout(colouring);
  colouring = setTimeout(colour, IDLE);
  suggest();
}

/** Show the words that may come at the cursor. */
async function suggest() {
  const before = text.value.slice(0, text.selectionEnd);
  if (before === asked) return;
  asked = before;
  asking.abort();
  asking = new AbortController();
  try {
    const found = await model.draft.suggest(before, WORDS, { signal: asking.signal });
    words.replaceChildren(
      ...found.map(({ word, probability }, place) => {
        const button = document.createElement("button");
        const percent = document.createElement("small");
        percent.textContent = probability < 0.01 ? " < 1 %" : ` ${Math.round(100 * probability)} %`;
        button.type = "button";
        button.setAttribute("aria-keyshortcuts", `Alt+${place + 1}`);
        button.append(word, percent);
        button.addEventListener("click", () => insert(before, word));
        return button;
      }),
    );
    words.dataset.after = before;
  } catch (error) {
    complain(error);
  }
}

/**
 * Put a word in place of what was typed of it.
 *
 * @param {string} before the text before the cursor, when the word was suggested.
 * @param {string} word
 */
function insert(before, word) {
  const [context, typed] = splitTyped(before);
  remember();
  const space = /^\s?/.exec(typed)?.[0] ?? "";
  text.setRangeText(`${space}${word} `, context.length, before.length, "end");
  text.focus();
  changed();
}

/** Let the model go on after the text, until it has its tokens or is stopped. */
async function goOn() {
  remember();
  writing = new AbortController();
  const { signal } = writing;
  buttons.continue.textContent = "Stop";
  status.textContent = "Writing…";
  text.readOnly = true;
  const seed = element("seed", HTMLInputElement);
  try {
    const session = await model.draft.session(text.value, { seed: seed.valueAsNumber, signal });
    const max_tokens = element("length", HTMLInputElement).valueAsNumber;
    const params = { ...defaults, temperature: temperature.valueAsNumber, max_tokens };
    for await (const more of model.generate(session, params, { signal })) {
      text.value += more;
      text.scrollTop = text.scrollHeight;
    }
    text.value += await session.flush();
    await session.release();
    status.textContent = "Ready";
  } catch (error) {
    if (!complain(error)) status.textContent = "Stopped";
  }
  writing = undefined;
  text.readOnly = false;
  buttons.continue.textContent = "Continue";
  seed.value = String(seed.valueAsNumber + 1);
  text.setSelectionRange(text.value.length, text.value.length);
  changed();
}

/** Keep what the text is before a step. */
function remember() {
  kept[current].past.push(text.value);
}

/** Take the last step back: a continuation, or a word. */
function rewind() {
  const before = kept[current].past.pop();
  if (before === undefined || writing) return;
  show(before);
  status.textContent = "Rewound";
}

/** Keep this text as it is, and go on with a second version of it. */
function fork() {
  if (writing) return;
  kept.push({ text: text.value, past: [...kept[current].past] });
  current = kept.length - 1;
  showVersions();
  status.textContent = `Version ${kept.length}; the others are kept`;
  text.focus();
}

function showVersions() {
  versions.hidden = kept.length < 2;
  versions.replaceChildren(
    ...kept.map((version, place) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = titleOf(place, version.text);
      button.setAttribute("aria-pressed", String(place === current));
      button.addEventListener("click", () => {
        if (writing) return;
        current = place;
        show(kept[current].text);
        showVersions();
      });
      return button;
    }),
  );
}

/**
 * @param {number} place
 * @param {string} value
 */
function titleOf(place, value) {
  return `${place + 1}: …${value.trimEnd().slice(-24)}`;
}

/** @param {string} value */
function show(value) {
  text.value = value;
  text.focus();
  text.setSelectionRange(value.length, value.length);
  changed();
}

/** Colour each token by how surprising it is. */
async function colour() {
  if (!surprisal.checked || writing) return colours.replaceChildren();
  const value = text.value;
  try {
    const parts = await model.draft.surprisal(value);
    if (value !== text.value || writing) return;
    colours.replaceChildren(...coloured(value, parts));
    follow();
  } catch (error) {
    complain(error);
  }
}

/**
 * The text in parts, each of a token's colour; white space that tokens do not have stands between.
 *
 * @param {string} value
 * @param {{text: string, bits: number}[]} parts
 */
function* coloured(value, parts) {
  let at = 0;
  for (const part of parts) {
    const found = part.text.trim() ? value.indexOf(part.text.trim(), at) : -1;
    if (found < 0) continue; // an unknown word, a line's end, or part of a character
    const end = found + part.text.trim().length;
    if (found > at) yield value.slice(at, found);
    const span = document.createElement("span");
    span.className = `s${COLOURS.filter((bits) => part.bits >= bits).length}`;
    span.title = `${part.bits.toFixed(1)} bits`;
    span.textContent = value.slice(found, end);
    yield span;
    at = end;
  }
  yield `${value.slice(at)}\n`;
}

/** Keep the colours where the text is. */
function follow() {
  colours.scrollTop = text.scrollTop;
}

function showTemperature() {
  element("shown-temperature", HTMLElement).textContent = temperature.valueAsNumber.toFixed(2);
}

/**
 * Show an error, unless it is that something was broken off.
 *
 * @param {unknown} error
 * @returns {boolean} whether it was shown.
 */
function complain(error) {
  if (error instanceof DOMException && error.name === "AbortError") return false;
  status.textContent = error instanceof Error ? error.message : String(error);
  return true;
}

/**
 * @template {HTMLElement} T
 * @param {string} id
 * @param {{new (): T}} Type
 * @returns {T}
 */
function element(id, Type) {
  const found = document.getElementById(id);
  if (!(found instanceof Type)) throw new Error(`no ${id} in the page`);
  return found;
}
