/** Where a bundle's files come from: a folder's URL or path, files that were chosen, or memory. */
import { readPath, resolveFolder } from "#platform";
import { UnusableFileError } from "./errors.js";

/**
 * @typedef {Uint8Array | ArrayBuffer | Blob | string} Content
 * @typedef {(name: string) => Promise<Content | undefined> | Content | undefined} Reader
 * @typedef {string | URL | Iterable<File> | Map<string, Content> | Record<string, Content> | Reader} Source
 *   a folder; the files of a chosen folder; files by their names in the bundle, such as `onnx/model.onnx`; or
 *   a function from such a name to the file.
 */

/** The files of one bundle. */
export class Files {
  /** @param {Source} source */
  constructor(source) {
    /** What messages call the bundle. */
    this.name = "bundle";
    /** @type {Reader} */
    this._read = this._reader(source);
  }

  /**
   * A file's bytes.
   *
   * @param {string} name in the bundle, with `/`.
   * @returns {Promise<Uint8Array>}
   * @throws {UnusableFileError} there is no such file.
   */
  async read(name) {
    const content = await this._read(name);
    if (content === undefined) throw new UnusableFileError(this.path(name), "the bundle's file is missing");
    if (content instanceof Uint8Array) return content;
    if (content instanceof ArrayBuffer) return new Uint8Array(content);
    if (typeof content === "string") return new TextEncoder().encode(content);
    return new Uint8Array(await content.arrayBuffer());
  }

  /**
   * What messages call a file.
   *
   * @param {string} name
   */
  path(name) {
    return `${this.name.replace(/\/+$/, "")}/${name}`;
  }

  /**
   * @param {Source} source
   * @returns {Reader}
   */
  _reader(source) {
    if (typeof source === "function") return source;
    if (typeof source === "string" || source instanceof URL) {
      const folder = resolveFolder(source);
      this.name = String(folder);
      return folder instanceof URL
        ? (name) => fetchFile(folder, name)
        : (name) => readPath(`${folder}/${name}`);
    }
    if (source instanceof Map) return (name) => source.get(name);
    if (source && Symbol.iterator in Object(source)) {
      const files = filesByName(/** @type {Iterable<File>} */ (source));
      return (name) => files.get(name);
    }
    if (!source || typeof source !== "object")
      throw new TypeError(`a bundle is a folder's URL or path, or its files; got ${source}`);
    const files = /** @type {Record<string, Content>} */ (source);
    return (name) => (Object.hasOwn(files, name) ? files[name] : undefined);
  }
}

/**
 * @param {URL} folder
 * @param {string} name
 */
async function fetchFile(folder, name) {
  const url = new URL(folder);
  url.pathname = `${url.pathname.replace(/\/+$/, "")}/${name}`;
  const response = await fetch(url);
  if (response.status === 404) return undefined;
  if (!response.ok) throw new UnusableFileError(String(url), `the server said ${response.status}`);
  return response.arrayBuffer();
}

/**
 * Files by their names in the bundle, whose folder is where the shortest path to a config.json leads.
 *
 * @param {Iterable<File>} files
 */
function filesByName(files) {
  const byPath = new Map(Array.from(files, (file) => [file.webkitRelativePath || file.name, file]));
  const configs = [...byPath.keys()].filter((path) => /(^|\/)config\.json$/.test(path));
  const [shortest = ""] = configs.sort((a, b) => a.length - b.length);
  const prefix = shortest.replace(/config\.json$/, "");
  return new Map(
    [...byPath].map(([path, file]) => [path.slice(path.startsWith(prefix) ? prefix.length : 0), file]),
  );
}
