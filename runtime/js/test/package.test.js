/** The packed package works in an empty project, as its user has it. */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdir, mkdtemp, readdir, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { BUNDLE } from "./cases.js";

const PACKAGE = fileURLToPath(new URL("..", import.meta.url));
const PROGRAM = `
import { generate, load } from "steplm";
import { RemoteModel } from "steplm/remote";
import { Worker } from "node:worker_threads";
const params = { temperature: 0, max_tokens: 5 };
const model = await load(${JSON.stringify(BUNDLE)});
for await (const piece of generate(model, "the keeper of the", params)) process.stdout.write(piece);
console.log(" |", model.provider);
const worker = new Worker(new URL(import.meta.resolve("steplm/worker")));
const remote = await RemoteModel.load(worker, ${JSON.stringify(BUNDLE)});
for await (const piece of remote.generate("the keeper of the", params)) process.stdout.write(piece);
remote.close();
`;
const TYPED = `
import { load, type Suggestion, suggest } from "steplm";
const words: Suggestion[] = await suggest(await load("bundle", { precision: "int8" }), "the ke", 3);
console.log(words[0].word.length);
`;
const run = promisify(execFile);

test("npm pack gives a package that works in an empty project", async () => {
  const folder = await mkdtemp(join(tmpdir(), "steplm-"));
  try {
    await run("npm", ["pack", "--pack-destination", folder], { cwd: PACKAGE });
    const [archive] = await readdir(folder);
    const modules = join(folder, "node_modules");
    await mkdir(join(modules, "steplm"), { recursive: true });
    await run("tar", ["xzf", join(folder, archive), "--strip-components=1", "-C", join(modules, "steplm")]);
    // What npm would install beside it: its dependencies, and theirs; not onnxruntime-node.
    for (const name of ["@huggingface", "onnxruntime-web", "onnxruntime-common"])
      await symlink(join(PACKAGE, "node_modules", name), join(modules, name));
    await writeFile(join(folder, "program.mjs"), PROGRAM);
    const { stdout } = await run(process.execPath, [...process.execArgv, "program.mjs"], { cwd: folder });
    assert.equal(stdout, " old pier is the name | wasm\n old pier is the name");
    await writeFile(join(folder, "typed.mts"), TYPED);
    const options = ["--noEmit", "--strict", "--module", "NodeNext", "--target", "ES2022", "--skipLibCheck"];
    const compiler = join(PACKAGE, "node_modules", "typescript", "bin", "tsc");
    const types = ["--types", "node", "--typeRoots", join(PACKAGE, "node_modules", "@types")];
    await run(process.execPath, [compiler, ...options, ...types, "typed.mts"], { cwd: folder });
  } finally {
    await rm(folder, { recursive: true });
  }
});
