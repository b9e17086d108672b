// In Node: a JSON object a line, from standard input and to standard output.
import { createInterface } from "node:readline";
import { operator } from "./operations.mjs";

const operate = operator((value) => process.stdout.write(`${JSON.stringify(value)}\n`));
for await (const line of createInterface({ input: process.stdin })) operate(line);
process.exit(0);
