// In a browser: a JSON object a frame, from and to the test's WebSocket.
import { operator } from "./operations.mjs";

const test = new WebSocket(`ws://${location.host}/test`);
const operate = operator((value) => test.send(JSON.stringify(value)));
test.onmessage = ({ data }) => operate(data);
