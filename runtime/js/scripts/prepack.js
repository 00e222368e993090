/** Before the package is packed: the licence, which stands at the project's top, comes along. */
import { copyFile } from "node:fs/promises";

const HERE = new URL("../", import.meta.url);

await copyFile(new URL("../../LICENSE", HERE), new URL("LICENSE", HERE));
