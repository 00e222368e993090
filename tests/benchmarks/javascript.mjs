/**
 * How fast the JavaScript runtime is: text beside its graph alone and beside Python, and the page in Chromium.
 *
 *   node tests/benchmarks/javascript.mjs BUNDLE... [--python .venv/bin/python] [--picture FILE]
 *     [--page-alone | --no-page]
 *
 * Rates are tokens a second of processor time, which other work on the machine changes little: medians of
 * interleaved runs. The page is measured with the first bundle, by the clock.
 */
import { execFileSync, spawn } from "node:child_process";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { cpus, tmpdir } from "node:os";
import { basename, join, resolve } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { generate, load } from "../../runtime/js/src/index.js";
import { serve } from "../../runtime/js/test/static_server.js";

const JS = fileURLToPath(new URL("../../runtime/js/", import.meta.url));
const ROUNDS = 7;
const WARMING = 2;
const TOKENS = 300;
const VISITS = 5;
const PATIENCE = 180_000; // milliseconds
const PARAMS = { temperature: 0.8, top_p: 0.95, max_tokens: TOKENS };
const PROMPT = "Return the";
const TYPED = "Return the number of bytes that were read from the file, as a string of characters.";
const PYTHON = `
import sys, time, lm_runtime
model = lm_runtime.load(sys.argv[1], precision=sys.argv[2], provider="cpu", threads=1)
params = lm_runtime.SamplingParams(temperature=0.8, top_p=0.95, max_tokens=${TOKENS})
for line in sys.stdin:
    start = time.process_time()
    for piece in lm_runtime.generate(model, "${PROMPT}", params, seed=int(line)):
        pass
    print(${TOKENS} / (time.process_time() - start), flush=True)
`;

/** Milliseconds of processor time so far. */
function now() {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1000;
}

/** Tokens a second of a text. */
async function textRate(model, seed) {
  const start = now();
  for await (const _ of generate(model, PROMPT, PARAMS, { seed }));
  return (1000 * TOKENS) / (now() - start);
}

/** Steps a second of onnxruntime's session alone, its state fed back. */
async function graphRate(model) {
  const { _runtime: runtime, _session: session } = model._graph;
  const token = new runtime.Tensor("int64", BigInt64Array.of(5n), [1, 1]);
  let feeds = { token };
  model.states.forEach(({ name, dtype }, place) => {
    const { data, dims } = model.zeroState()[place];
    feeds[name] = new runtime.Tensor(dtype, data, dims);
  });
  const start = now();
  for (let step = 0; step < TOKENS; step++) {
    const found = await session.run(feeds);
    feeds = { token };
    for (const { name, output } of model.states) feeds[name] = found[output];
  }
  return (1000 * TOKENS) / (now() - start);
}

/** A Python process that writes texts when it is asked. */
function pythonText(python, bundle, precision) {
  const child = spawn(python, ["-c", PYTHON, bundle, precision], { stdio: ["pipe", "pipe", "inherit"] });
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  return {
    async rate(seed) {
      child.stdin.write(`${seed}\n`);
      return Number((await lines.next()).value);
    },
    close: () => child.stdin.end(),
  };
}

async function rates(bundle, python) {
  for (const precision of ["fp32", "int8"]) {
    const runs = {};
    const closing = [];
    for (const engine of ["wasm", "native"]) {
      const model = await load(bundle, { engine, precision });
      runs[`${engine} graph`] = () => graphRate(model);
      runs[`${engine} text`] = (seed) => textRate(model, seed);
      closing.push(() => model.release());
    }
    if (python) {
      const text = pythonText(python, bundle, precision);
      runs["Python text"] = text.rate;
      closing.push(text.close);
    }
    const found = Object.fromEntries(Object.keys(runs).map((name) => [name, []]));
    for (let round = -WARMING; round < ROUNDS; round++)
      for (const [name, one] of Object.entries(runs)) {
        const rate = await one(round + WARMING);
        if (round >= 0) found[name].push(rate);
      }
    for (const close of closing) await close();
    const ratio = (a, b) => median(found[a].map((rate, round) => rate / found[b][round]));
    const rate = (name) => Math.round(median(found[name])).toLocaleString("en");
    const shares = [`text / graph: wasm ${percent(ratio("wasm text", "wasm graph"))}`];
    shares.push(`native ${percent(ratio("native text", "native graph"))}`);
    if (python) {
      shares.push(`text / Python's: wasm ${percent(ratio("wasm text", "Python text"))}`);
      shares.push(`native ${percent(ratio("native text", "Python text"))}`);
    }
    console.log(`${basename(bundle)} ${precision}`);
    console.log(`  tokens a second of processor time: ${Object.keys(runs).map((name) => `${name} ${rate(name)}`).join(", ")}`);
    console.log(`  ${shares.join(", ")}`);
  }
}

async function page(bundle, picture) {
  const folder = mkdtempSync(join(tmpdir(), "steplm-"));
  console.log(execFileSync("node", [join(JS, "scripts/site.js"), bundle, join(folder, "site")]).toString().trim());
  const server = await serve(join(folder, "site"));
  const { default: puppeteer } = await import(createRequire(join(JS, "package.json")).resolve("puppeteer-core"));
  const executablePath = ["/usr/bin/chromium", "/usr/bin/google-chrome"].find(existsSync);
  const [opened, processor, keystrokes, typing, written] = [[], [], [], [], []];
  for (let visit = 0; visit < VISITS; visit++) {
    const browser = await puppeteer.launch({ executablePath, args: ["--no-sandbox", "--disable-dev-shm-usage"] });
    const tab = await browser.newPage();
    tab.setDefaultTimeout(PATIENCE);
    await tab.setViewport({ width: 760, height: 700 });
    const seconds = await processorSeconds(browser);
    const before = await seconds();
    await tab.goto(server.url);
    await tab.waitForFunction(() => performance.getEntriesByName("steplm-suggested").length);
    processor.push(1000 * ((await seconds()) - before));
    opened.push(await tab.evaluate(() => performance.getEntriesByName("steplm-suggested")[0].startTime));
    const quiet = await seconds();
    keystrokes.push(...(await tab.evaluate(typeAll, TYPED)));
    typing.push((1000 * ((await seconds()) - quiet)) / TYPED.length);
    written.push(await tab.evaluate(writeOn, TOKENS));
    if (picture && visit === VISITS - 1) await takePicture(tab, picture);
    await browser.close();
  }
  await server.close();
  rmSync(folder, { recursive: true });
  const sorted = [...keystrokes].sort((a, b) => a - b);
  const late = sorted[Math.floor(0.95 * sorted.length)];
  console.log(`first suggestion of a first visit: ${median(opened).toFixed(0)} ms (${opened.map(Math.round).join(", ")})`);
  console.log(`  processor time of all of Chromium's processes for it: ${median(processor).toFixed(0)} ms`);
  console.log(`suggestions a keystroke: median ${median(keystrokes).toFixed(1)} ms, 95 % within ${late.toFixed(1)} ms`);
  console.log(`  processor time of all of Chromium's processes: ${median(typing).toFixed(1)} ms a keystroke`);
  console.log(`text in the page: ${Math.round(median(written)).toLocaleString("en")} tokens/s`);
}

/** What gives the processor time so far of all of a browser's processes, in seconds. */
async function processorSeconds(browser) {
  const session = await browser.target().createCDPSession();
  return async () => {
    const { processInfo } = await session.send("SystemInfo.getProcessInfo");
    return processInfo.reduce((sum, { cpuTime }) => sum + cpuTime, 0);
  };
}

/** Within the page: type a text, and wait after each character for its suggestions; milliseconds of each. */
async function typeAll(typed) {
  const text = document.getElementById("text");
  const words = document.getElementById("words");
  const took = [];
  for (let end = 1; end <= typed.length; end++) {
    const start = performance.now();
    text.value = typed.slice(0, end);
    text.dispatchEvent(new Event("input"));
    await new Promise((done) => {
      new MutationObserver((_, observer) => {
        if (words.dataset.after !== text.value) return;
        observer.disconnect();
        done();
      }).observe(words, { attributes: true });
    });
    took.push(performance.now() - start);
  }
  return took;
}

/** Within the page: let it continue; tokens a second. */
async function writeOn(tokens) {
  document.getElementById("length").value = String(tokens);
  const status = document.getElementById("status");
  const start = performance.now();
  document.getElementById("continue").click();
  await new Promise((done) => {
    new MutationObserver(() => status.textContent === "Ready" && done()).observe(status, { childList: true });
  });
  return (1000 * tokens) / (performance.now() - start);
}

async function takePicture(tab, path) {
  await tab.evaluate(() => {
    const settings = { text: "", length: "17", seed: "4", temperature: "0.6" };
    for (const [id, value] of Object.entries(settings)) document.getElementById(id).value = value;
  });
  await tab.type("#text", "If the file does not exist, ");
  await tab.click("#continue");
  await tab.waitForFunction(() => document.getElementById("status").textContent === "Ready");
  await tab.click("#fork");
  await tab.click("#surprisal");
  await tab.type("#text", "Return the val");
  await tab.waitForSelector("#colours span");
  await tab.waitForFunction(() => document.getElementById("words").dataset.after.endsWith("the val"));
  const bottom = await tab.$eval("fieldset", (found) => found.getBoundingClientRect().top);
  await tab.screenshot({ path, clip: { x: 0, y: 0, width: 760, height: bottom - 4 } });
}

const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1];
const percent = (share) => `${Math.round(100 * share)} %`;

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { python: { type: "string" }, picture: { type: "string" }, "page-alone": { type: "boolean" }, "no-page": { type: "boolean" } },
});
const bundles = positionals.map((bundle) => resolve(bundle));
console.log(`${cpus()[0].model}, ${cpus().length} cores`);
if (!values["page-alone"]) for (const bundle of bundles) await rates(bundle, values.python);
if (!values["no-page"]) await page(bundles[0], values.picture);
