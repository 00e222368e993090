/** The page, in a real Chromium: what is typed, suggested, continued; without other hosts, and without a network. */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import puppeteer from "puppeteer-core";
import { generate, load, suggest } from "../src/index.js";
import { BUNDLE } from "./cases.js";
import { serve } from "./static_server.js";

const BROWSER = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"].find(existsSync);
const SITE = fileURLToPath(new URL("../scripts/site.js", import.meta.url));
const PHONE = { width: 360, height: 640 };
/** Milliseconds: beside other work, compiling onnxruntime's wasm was seen to take half a minute. */
const PATIENCE = 180_000;
const run = promisify(execFile);

test("the page", { skip: BROWSER ? false : "Chromium is not installed" }, async (t) => {
  const folder = await mkdtemp(join(tmpdir(), "steplm-"));
  const out = join(folder, "site");
  await run(process.execPath, [...process.execArgv, SITE, BUNDLE, out]);
  const server = await serve(out);
  const browser = await puppeteer.launch({
    executablePath: BROWSER,
    args: [
      "--no-sandbox",
      "--disable-dev-shm-usage",
      "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ],
    userDataDir: join(folder, "profile"),
  });
  t.after(async () => {
    await browser.close();
    await server.close();
    await rm(folder, { recursive: true, maxRetries: 5 });
  });
  const page = await browser.newPage();
  page.setDefaultTimeout(PATIENCE);
  /** @type {string[]} */
  const asked = [];
  /** @type {string[]} */
  const problems = [];
  page.on("request", (request) => asked.push(new URL(request.url()).host));
  page.on("console", (message) => message.type() === "error" && problems.push(message.text()));
  page.on("pageerror", (error) => problems.push(String(error)));
  const model = await load(BUNDLE, { engine: "wasm", precision: "int8" });

  /** @param {string} id */
  const value = (id) => page.$eval(`#${id}`, (found) => /** @type {HTMLTextAreaElement} */ (found).value);
  /** @param {string} status */
  const reached = (status) =>
    page.waitForFunction((wanted) => document.getElementById("status")?.textContent === wanted, {}, status);
  /** @param {string} text */
  const suggested = (text) =>
    page.waitForFunction((wanted) => document.getElementById("words")?.dataset.after === wanted, {}, text);
  /** @param {string} text */
  async function write(text) {
    await page.$eval("#text", (found) => {
      /** @type {HTMLTextAreaElement} */ (found).value = "";
    });
    await page.type("#text", text);
    await suggested(text);
  }

  await t.test("it opens, and suggests words to begin with", async () => {
    await page.goto(server.url);
    await suggested("");
    assert.ok((await page.$$("#words button")).length > 0);
  });

  await t.test("the keys are what the model suggests, and take the word's place", async () => {
    await write("the ke");
    const [{ word }, second] = await suggest(model, "the ke", 4);
    const shown = await page.$$eval("#words button", (keys) =>
      keys.map((key) => key.firstChild?.textContent),
    );
    assert.deepEqual(shown.slice(0, 2), [word, second?.word].slice(0, shown.length));
    await page.click("#words button");
    assert.equal(await value("text"), `the ${word} `);
    await suggested(`the ${word} `);
    await page.keyboard.down("Alt");
    await page.keyboard.press("Digit2");
    await page.keyboard.up("Alt");
    const next = (await suggest(model, `the ${word} `, 4))[1];
    assert.equal(await value("text"), `the ${word} ${next.word} `);
  });

  await t.test("it continues as the package does, rewinds and forks", async () => {
    const start = "the keeper of the";
    await write(start);
    await page.$eval("#temperature", (found) => {
      /** @type {HTMLInputElement} */ (found).value = "0.9";
    });
    await page.keyboard.down("Control");
    await page.keyboard.press("Enter");
    await page.keyboard.up("Control");
    await reached("Ready");
    const params = { ...model.defaults, temperature: 0.9, max_tokens: 60 };
    let expected = start;
    for await (const text of generate(model, start, params, { seed: 1 })) expected += text;
    assert.equal(await value("text"), expected);
    await page.click("#fork");
    await page.click("#rewind");
    assert.equal(await value("text"), start);
    await page.click("#versions button");
    assert.equal(await value("text"), expected);
  });

  await t.test("Escape stops it", async () => {
    await page.$eval("#length", (found) => {
      /** @type {HTMLInputElement} */ (found).value = "2000000";
    });
    await page.click("#continue");
    await reached("Writing…");
    await page.keyboard.press("Escape");
    await reached("Stopped");
    assert.equal(await page.$eval("#continue", (found) => found.textContent), "Continue");
  });

  await t.test("what surprises is coloured where it stands", async () => {
    await write("the keeper of the clock\nsea the the");
    await page.click("#surprisal");
    await page.waitForSelector("#colours span.s3, #colours span.s4, #colours span.s5");
    const coloured = await page.$eval("#colours", (found) => found.textContent);
    assert.equal(coloured, `${await value("text")}\n`);
  });

  await t.test("each control has a name, and one can go through all by the Tab key", async () => {
    const unnamed = await page.$$eval("button, input, textarea", (found) =>
      found
        .filter((control) => {
          const labels = /** @type {HTMLInputElement} */ (control).labels ?? [];
          return !(Array.from(labels, (label) => label.textContent).join("") || control.textContent)?.trim();
        })
        .map((control) => control.outerHTML),
    );
    assert.deepEqual(unnamed, []);
    await page.focus("#text");
    const reachedIds = new Set();
    for (let presses = 0; presses < 20; presses++) {
      await page.keyboard.press("Tab");
      reachedIds.add(await page.evaluate(() => document.activeElement?.id));
    }
    for (const id of ["continue", "temperature", "length", "seed", "surprisal"])
      assert.ok(reachedIds.has(id), id);
  });

  await t.test("it fits a phone, light and dark, with letters that can be read", async () => {
    await page.setViewport(PHONE);
    for (const scheme of ["light", "dark"]) {
      await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
      const [width, contrast] = await page.evaluate(() => {
        const light = (/** @type {string} */ colour) => {
          const parts = (colour.match(/\d+/g) ?? []).map((part) => {
            const one = Number(part) / 255;
            return one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4;
          });
          return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
        };
        const ink = light(getComputedStyle(document.body).color);
        const grounds = [...document.querySelectorAll(".sheet, .s1, .s2, .s3, .s4, .s5")].map((one) =>
          light(getComputedStyle(one).backgroundColor),
        );
        const ratios = grounds.map(
          (ground) => (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05),
        );
        return [document.documentElement.scrollWidth, Math.min(...ratios)];
      });
      assert.ok(width <= PHONE.width, `${width} pixels wide`);
      assert.ok(contrast >= 4.5, `${scheme}: contrast ${contrast}`);
    }
  });

  await t.test("no other host was asked for anything, and no policy was broken", () => {
    assert.deepEqual([...new Set(asked)], [new URL(server.url).host]);
    assert.deepEqual(problems, []);
  });

  await t.test("the policy lets no script ask another host", async () => {
    const forbidden = await page.evaluate(
      () =>
        new Promise((resolve) => {
          document.addEventListener("securitypolicyviolation", (event) => resolve(event.effectiveDirective));
          fetch("http://127.0.0.1:9/").catch(() => {});
        }),
    );
    assert.equal(forbidden, "connect-src");
  });

  await t.test("it opens without a network after the first visit", async () => {
    await page.evaluate(() => navigator.serviceWorker.ready);
    await server.close();
    await page.reload();
    await suggested("");
    await write("the ke");
    assert.ok((await page.$$("#words button")).length > 0);
  });
  await model.release();
});

test("the site's program replaces an older site alone", async () => {
  const folder = await mkdtemp(join(tmpdir(), "steplm-"));
  try {
    const refused = run(process.execPath, [SITE, BUNDLE, fileURLToPath(new URL(".", import.meta.url))]);
    await assert.rejects(refused, /holds something that is no site/);
    await assert.rejects(run(process.execPath, [SITE, folder, join(folder, "out")]), /file is missing/);
    assert.deepEqual(await readdir(folder), []);
  } finally {
    await rm(folder, { recursive: true });
  }
});
