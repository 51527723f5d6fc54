// A zip archive of stored (not compressed) files: images are compressed already.

const TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  let value = n;
  for (let bit = 0; bit < 8; bit += 1) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value;
});

function crc32(bytes) {
  let value = 0xffffffff;
  for (const byte of bytes) value = TABLE[(value ^ byte) & 255] ^ (value >>> 8);
  return (value ^ 0xffffffff) >>> 0;
}

/** Little-endian fields: [bytes, value] pairs. */
function record(...fields) {
  const view = new DataView(new ArrayBuffer(fields.reduce((sum, [size]) => sum + size, 0)));
  let at = 0;
  for (const [size, value] of fields) {
    if (size === 2) view.setUint16(at, value, true);
    else view.setUint32(at, value, true);
    at += size;
  }
  return new Uint8Array(view.buffer);
}

/** [{path, blob}] -> a Blob. */
export async function zip(files) {
  const parts = [], index = [];
  let offset = 0;
  for (const { path, blob } of files) {
    const name = new TextEncoder().encode(path);
    const data = new Uint8Array(await blob.arrayBuffer());
    // Version 2.0, names in UTF-8, stored, 1 January 1980, crc, sizes, length of the name.
    const facts = [[2, 20], [2, 0x800], [2, 0], [2, 0], [2, 0x21], [4, crc32(data)],
      [4, data.length], [4, data.length], [2, name.length], [2, 0]];
    const head = record([4, 0x04034b50], ...facts);
    parts.push(head, name, data);
    index.push(record([4, 0x02014b50], [2, 20], ...facts, [2, 0], [2, 0], [2, 0], [4, 0],
      [4, offset]), name);
    offset += head.length + name.length + data.length;
  }
  const size = index.reduce((sum, part) => sum + part.length, 0);
  const end = record([4, 0x06054b50], [2, 0], [2, 0], [2, files.length], [2, files.length],
    [4, size], [4, offset], [2, 0]);
  return new Blob([...parts, ...index, end], { type: "application/zip" });
}
