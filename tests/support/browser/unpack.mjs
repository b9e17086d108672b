// Unpacks what the package ships compressed: the browser, and the libraries that it needs.
import { createReadStream, createWriteStream } from "node:fs";
import { pipeline } from "node:stream/promises";
import { createBrotliDecompress } from "node:zlib";

const from = "node_modules/@sparticuz/chromium/bin";
for (const [packed, unpacked, mode] of [
  ["al2023.tar.br", "libraries.tar", 0o644],
  ["chromium.br", "chromium", 0o755],
]) {
  await pipeline(createReadStream(`${from}/${packed}`), createBrotliDecompress(), createWriteStream(unpacked, { mode }));
}
