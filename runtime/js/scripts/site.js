/**
 * Writes a folder that any web server can show: the page, the package, onnxruntime's wasm, and a bundle.
 *
 * node scripts/site.js BUNDLE OUT
 */
import { createHash } from "node:crypto";
import { cp, mkdir, readdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { dirname, join, relative, resolve, sep } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";
import { load } from "../src/index.js";

const PACKAGE = fileURLToPath(new URL("..", import.meta.url));
const STATIC = ["page.css", "icon.svg", "manifest.webmanifest"];
const WASM = "ort-wasm-simd-threaded.wasm";
/** What the page reads of a bundle beside its graph or tables. */
const READ = [
  "config.json",
  "generation_config.json",
  "tokenizer.json",
  "tokenizer_config.json",
  "tokens.txt",
];
const MARK = "sw.js"; // of a folder that this program may replace

/**
 * @param {string} bundle
 * @param {string} out
 */
async function site(bundle, out) {
  const model = await load(bundle, { engine: "wasm" }); // a damaged one is refused here
  await model.release();
  const { files } = model.config;
  const precision = "onnx/model_quantized.onnx" in files ? "int8" : "fp32";
  const weights = Object.entries(files).find(([, digest]) => digest === model.identity)?.[0] ?? "";
  const graph = precision === "int8" ? "onnx/model_quantized.onnx" : weights;
  await requireReplaceable(out);
  const folder = `${out}.part`;
  await rm(folder, { recursive: true, force: true });
  await mkdir(folder, { recursive: true });
  await bundleScripts(folder);
  for (const name of STATIC) await cp(join(PACKAGE, "site", name), join(folder, name));
  await cp(join(PACKAGE, "node_modules/onnxruntime-web/dist", WASM), join(folder, WASM));
  for (const name of ["config.json", ...Object.keys(files)])
    await cp(join(bundle, name), join(folder, "bundle", name));
  const page = await readFile(join(PACKAGE, "site/index.html"), "utf8");
  const named = page.replace(
    'name="steplm-precision" content="fp32"',
    `name="steplm-precision" content="${precision}"`,
  );
  await writeFile(join(folder, "index.html"), named);
  await writeFile(join(folder, "licenses.txt"), await licenses());
  const kept = ["index.html", "page.js", "worker.js", ...STATIC, WASM];
  await writeServiceWorker(folder, [...kept, ...[...READ, graph].map((name) => `bundle/${name}`)]);
  await rm(out, { recursive: true, force: true });
  await rename(folder, out);
  await report(out, graph);
}

/** @param {string} folder */
async function bundleScripts(folder) {
  await build({
    entryPoints: { page: join(PACKAGE, "site/page.js"), worker: join(PACKAGE, "site/worker.js") },
    outdir: folder,
    bundle: true,
    format: "esm",
    minify: true,
    platform: "browser",
    target: "es2022",
    legalComments: "none",
    logLevel: "error",
  });
}

/**
 * @param {string} folder
 * @param {string[]} names the files that it keeps.
 */
async function writeServiceWorker(folder, names) {
  const hash = createHash("sha256");
  for (const name of names) hash.update(await readFile(join(folder, name)));
  const script = await readFile(join(PACKAGE, "site/service_worker.js"), "utf8");
  const version = `steplm ${hash.digest("hex").slice(0, 16)}`;
  const listed = JSON.stringify(["./", ...names]);
  await writeFile(
    join(folder, MARK),
    script.replace('"VERSION"', JSON.stringify(version)).replace('["FILES"]', listed),
  );
}

/**
 * Refuse a folder that holds something else than an older site.
 *
 * @param {string} out
 */
async function requireReplaceable(out) {
  const names = await readdir(out).catch(() => /** @type {string[]} */ ([]));
  if (names.length && !(names.includes(MARK) && names.includes("worker.js")))
    throw new Error(`${out} holds something that is no site of this program`);
  await mkdir(dirname(out), { recursive: true });
}

/** The licences of what the scripts contain. */
async function licenses() {
  const parts = [`steplm\n\n${await readFile(join(PACKAGE, "../../LICENSE"), "utf8")}`];
  const tokenizers = await readFile(join(PACKAGE, "node_modules/@huggingface/tokenizers/LICENSE"), "utf8");
  parts.push(`@huggingface/tokenizers\n\n${tokenizers}`);
  parts.push("onnxruntime-web, onnxruntime-common: MIT License, copyright Microsoft Corporation.\n");
  return parts.join(`\n${"-".repeat(80)}\n\n`);
}

/**
 * Print what a visitor downloads.
 *
 * @param {string} out
 * @param {string} graph
 */
async function report(out, graph) {
  const scripts = ["index.html", "page.js", "worker.js", ...STATIC];
  const parts = {
    "page and scripts": scripts,
    wasm: [WASM],
    bundle: [...READ, graph].map((name) => `bundle/${name}`),
  };
  const kilobytes = (/** @type {number} */ bytes) => `${Math.round(bytes / 1000).toLocaleString("en")} kB`;
  for (const [name, files] of Object.entries(parts)) {
    let [plain, compressed] = [0, 0];
    for (const file of files) {
      const content = await readFile(join(out, ...file.split("/")));
      plain += content.length;
      compressed += gzipSync(content).length;
    }
    console.log(
      `${name.padEnd(17)} ${kilobytes(plain).padStart(10)}, ${kilobytes(compressed).padStart(9)} by gzip`,
    );
  }
  const shown = relative(process.cwd(), out);
  console.log(`${shown.startsWith(`..${sep}`) ? out : shown}: python3 -m http.server -d ${out}`);
}

const [bundle, out, ...others] = process.argv.slice(2);
if (!bundle || !out || others.length) {
  console.error("usage: npm run site -- BUNDLE OUT");
  process.exit(2);
}
try {
  // npm runs this in the package's folder, and says where it was called.
  const base = process.env.INIT_CWD ?? process.cwd();
  await site(resolve(base, bundle), resolve(base, out));
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  process.exit(1);
}
