/**
 * Archives of arrays, as numpy's `savez` writes them: a zip file, not compressed, of `.npy` entries. What a file
 * declares is checked before it is used. Knows nothing about what the arrays are.
 */

/**
 * @typedef {object} Entry
 * @property {string} dtype numpy's: `<f4`, `<i8`, `<i4` or `|u1`.
 * @property {number[]} shape
 * @property {Uint8Array} bytes the numbers, little-endian, in C order.
 */

const LOCAL = 0x04034b50;
const CENTRAL = 0x02014b50;
const END = 0x06054b50;
/** How an array's entry begins: numpy's sign and version 1.0; two bytes have the length of the header's text. */
const MAGIC = [0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, 1, 0];
const BEFORE_TEXT = 10;
const HEADER =
  /^\{'descr': '([<|][fiu][1248])', 'fortran_order': (False|True), 'shape': \(([0-9, ]{0,100})\), \} *\n/s;
const EARLIEST_DATE = 0x21; // 1 January 1980

/**
 * @param {Record<string, Entry>} arrays
 * @returns {Uint8Array}
 */
export function writeArrays(arrays) {
  /** @type {Uint8Array[]} */
  const parts = [];
  /** @type {Uint8Array[]} */
  const directory = [];
  let offset = 0;
  for (const [name, entry] of Object.entries(arrays)) {
    const fileName = new TextEncoder().encode(`${name}.npy`);
    const content = npy(entry);
    const facts = { crc: crc32(content), size: content.length, name: fileName.length };
    parts.push(zipHeader(LOCAL, facts), fileName, content);
    directory.push(zipHeader(CENTRAL, facts, offset), fileName);
    offset += 30 + fileName.length + content.length;
  }
  const length = directory.reduce((sum, part) => sum + part.length, 0);
  const end = new DataView(new ArrayBuffer(22));
  end.setUint32(0, END, true);
  const count = Object.keys(arrays).length;
  for (const at of [8, 10]) end.setUint16(at, count, true);
  end.setUint32(12, length, true);
  end.setUint32(16, offset, true);
  return joined([...parts, ...directory, new Uint8Array(end.buffer)]);
}

/**
 * @param {Uint8Array} bytes
 * @param {string[]} names the arrays wanted.
 * @returns {Record<string, Entry>}
 * @throws {Error} it is damaged, or lacks one.
 */
export function readArrays(bytes, names) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let end = bytes.length - 22;
  while (end >= 0 && view.getUint32(end, true) !== END) end--;
  if (end < 0) throw new Error("not an npz archive");
  /** @type {Map<string, Uint8Array>} */
  const entries = new Map();
  let at = view.getUint32(end + 16, true);
  for (let left = view.getUint16(end + 10, true); left; left--) {
    if (view.getUint32(at, true) !== CENTRAL) throw new Error("its directory is damaged");
    const [method, crc, size] = [
      view.getUint16(at + 10, true),
      view.getUint32(at + 16, true),
      view.getUint32(at + 24, true),
    ];
    const lengths = [28, 30, 32].map((place) => view.getUint16(at + place, true));
    const name = new TextDecoder().decode(bytes.subarray(at + 46, at + 46 + lengths[0]));
    const local = view.getUint32(at + 42, true);
    const start = local + 30 + view.getUint16(local + 26, true) + view.getUint16(local + 28, true);
    const content = bytes.subarray(start, start + size);
    if (method || content.length !== size) throw new Error(`${name} is compressed, or cut off`);
    if (crc32(content) !== crc) throw new Error(`${name} is not what was written`);
    entries.set(name, content);
    at += 46 + lengths[0] + lengths[1] + lengths[2];
  }
  return Object.fromEntries(names.map((name) => [name, readNpy(name, entries.get(`${name}.npy`))]));
}

/** @param {Entry} entry */
function npy({ dtype, shape, bytes }) {
  const sizes = shape.length === 1 ? `${shape[0]},` : shape.join(", ");
  const text = `{'descr': '${dtype}', 'fortran_order': False, 'shape': (${sizes}), }`;
  const padded = `${text.padEnd(Math.ceil((text.length + 11) / 64) * 64 - 11)}\n`;
  const head = Uint8Array.of(...MAGIC, padded.length & 255, padded.length >> 8);
  return joined([head, new TextEncoder().encode(padded), bytes]);
}

/**
 * @param {string} name
 * @param {Uint8Array | undefined} content
 * @returns {Entry}
 */
function readNpy(name, content) {
  if (!content) throw new Error(`no ${name}`);
  const text = Array.from(content.subarray(BEFORE_TEXT, 512), (byte) => String.fromCharCode(byte)).join("");
  const header = HEADER.exec(text);
  const isArray = MAGIC.every((byte, place) => content[place] === byte);
  if (!isArray || header?.[0].length !== content[8] + 256 * content[9])
    throw new Error(`${name} has no header of an array`);
  const shape = header[3]
    .split(",")
    .filter((size) => size.trim())
    .map(Number);
  const bytes = content.slice(BEFORE_TEXT + header[0].length);
  const count = shape.reduce((product, size) => product * size, 1);
  if (count * Number(header[1][2]) !== bytes.length)
    throw new Error(`${name} has not the numbers that its header declares`);
  if (header[2] === "True" && shape.filter((size) => size > 1).length > 1)
    throw new Error(`${name} is in Fortran's order`);
  return { dtype: header[1], shape, bytes };
}

/**
 * @param {number} kind
 * @param {{crc: number, size: number, name: number}} facts
 * @param {number} [offset] of the local header, for the directory.
 */
function zipHeader(kind, { crc, size, name }, offset = 0) {
  const central = kind === CENTRAL;
  const view = new DataView(new ArrayBuffer(central ? 46 : 30));
  view.setUint32(0, kind, true);
  const at = central ? 2 : 0; // the directory says first who wrote it
  if (central) view.setUint16(4, 20, true);
  view.setUint16(4 + at, 20, true);
  view.setUint16(12 + at, EARLIEST_DATE, true);
  view.setUint32(14 + at, crc, true);
  view.setUint32(18 + at, size, true);
  view.setUint32(22 + at, size, true);
  view.setUint16(26 + at, name, true);
  if (central) view.setUint32(42, offset, true);
  return new Uint8Array(view.buffer);
}

/** @param {Uint8Array[]} parts */
function joined(parts) {
  const all = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

const CRC = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value;
});

/** @param {Uint8Array} bytes */
function crc32(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = (crc >>> 8) ^ CRC[(crc ^ byte) & 255];
  return (crc ^ 0xffffffff) >>> 0;
}
