"""The dialect `tableforge.v1`: JSON objects in text frames."""

import json
import math
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from tableforge_dataplane.protocol import payload
from tableforge_dataplane.protocol.commands import (
    Auth,
    Command,
    CommandId,
    Direct,
    History,
    Join,
    Leave,
    Ping,
    Presence,
    Publish,
    Received,
    Refused,
)
from tableforge_dataplane.protocol.events import Event
from tableforge_dataplane.protocol.names import (
    MAX_EVENT_CHARACTERS,
    MAX_HISTORY,
    MAX_ID_CHARACTERS,
    MAX_KEY_CHARACTERS,
    MAX_USER_CHARACTERS,
    PERSONAL,
)

MAX_COMMANDS: Final = 100
"""In one frame."""

TYPES: Final = ("auth", "join", "leave", "publish", "direct", "received", "presence", "history", "ping")

_command: Final = msgspec.json.Decoder(
    Auth | Join | Leave | Publish | Direct | Received | Presence | History | Ping
)
_array: Final = msgspec.json.Decoder(list[msgspec.Raw])
_encode: Final = msgspec.json.Encoder().encode

_DEPTH_OF_DATA: Final = payload.MAX_DEPTH - 1

_FIELD_CODES: Final = {
    "room": ("bad_room", "`room` must be a string."),
    "event": ("bad_event", f"`event` must be a string of 1 to {MAX_EVENT_CHARACTERS} characters."),
    "data": ("bad_data", "`data` must be there: any JSON value, null for none."),
    "pos": ("bad_pos", "`pos` must be a string that a `message`, `joined`, `ack` or `reset` carried."),
    "since": ("bad_pos", "`since` must be a string that a `message`, `joined`, `ack` or `reset` carried."),
    "after": ("bad_pos", "`after` must be a string that a `message`, `joined`, `ack` or `reset` carried."),
    "last": ("bad_frame", f"`last` must be a whole number from 1 to {MAX_HISTORY}."),
    "to": ("bad_frame", f"`to` must be a user: a string of 1 to {MAX_USER_CHARACTERS} characters."),
    "key": ("bad_frame", f"`key` must be a string of 1 to {MAX_KEY_CHARACTERS} characters."),
    "token": ("bad_frame", "`token` must be a string."),
    "id": ("bad_frame", f"`id` must be a number or a string of at most {MAX_ID_CHARACTERS} characters."),
    "echo": ("bad_frame", "`echo` must be true or false."),
    "presence": ("bad_frame", "`presence` must be true or false."),
    "volatile": ("bad_frame", "`volatile` must be true or false."),
}


class Native:
    """Stateless."""

    def decode(self, frame: bytes) -> Command | Refused | Iterator[Command | Refused]:
        """What a text frame's payload, known to be UTF-8, asks for. Never raises.

        An array's commands are looked at one by one: who is closed at the twentieth costs no more.
        """
        try:
            command: Command = _command.decode(frame)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            if frame.lstrip(b" \t\r\n")[:1] == b"[":
                return self._decode_array(frame)
            return _diagnose(frame)
        if type(command) is Publish or type(command) is Direct:
            try:
                payload.check(command.data, _DEPTH_OF_DATA)
            except payload.DataError as error:
                return _bad_data(command, error)
        return command

    def encode(self, event: Event) -> bytes:
        """A frame's payload."""
        return _encode(event)

    def ack(self, identifier: CommandId, room: str, seq: int, tag: bytes) -> bytes:
        """What `encode` makes of an `Ack` with these fields. `room`: a name that clients can choose."""
        number = b"%d" % seq
        name = b"%d" % identifier if type(identifier) is int else _encode(identifier)
        return b"".join(
            (
                b'{"type":"ack","id":',
                name,
                b',"room":"',
                room.encode(),
                b'","pos":"',
                number,
                b"-",
                tag,
                b'","seq":',
                number,
                b"}",
            )
        )

    def message(self, room: str, seq: int, tag: bytes, ts: bytes, body: bytes) -> bytes:
        """A frame's payload. `body`: the JSON object with `event`, `from`, `data`; seq 0 has no place."""
        if room[0] == PERSONAL:
            return b'{"type":"direct","pos":"%d-%b","ts":%b,%b' % (seq, tag, ts, body[1:])
        if seq == 0:
            return b'{"type":"message","room":"%b","ts":%b,%b' % (room.encode(), ts, body[1:])
        number = b"%d" % seq
        # joined, which takes three quarters of what a format with as many parts does
        return b"".join(
            (
                b'{"type":"message","room":"',
                room.encode(),
                b'","seq":',
                number,
                b',"pos":"',
                number,
                b"-",
                tag,
                b'","ts":',
                ts,
                b",",
                body[1:],
            )
        )

    def part(self, room: str, seq: int, tag: bytes, ts: bytes, body: bytes) -> bytes:
        """A message as it stands in `history`: as `message` has it, less what is the same for all."""
        if room[0] == PERSONAL:
            return b'{"pos":"%d-%b","ts":%b,%b' % (seq, tag, ts, body[1:])
        return b'{"seq":%d,"pos":"%d-%b","ts":%b,%b' % (seq, seq, tag, ts, body[1:])

    def _decode_array(self, frame: bytes) -> Refused | Iterator[Command | Refused]:
        try:
            items = _array.decode(frame)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            return _diagnose(frame)
        if not 1 <= len(items) <= MAX_COMMANDS:
            return Refused(
                code="bad_frame",
                message=f"The array has {len(items)} commands: 1 to {MAX_COMMANDS} fit into a frame.",
            )
        return map(_decode_item, items)


def _decode_item(item: msgspec.Raw) -> Command | Refused:
    raw = bytes(item)
    try:
        command: Command = _command.decode(raw)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return _diagnose(raw)
    if type(command) is Publish or type(command) is Direct:
        try:
            payload.check(command.data, _DEPTH_OF_DATA - 1)
        except payload.DataError as error:
            return _bad_data(command, error)
    return command


def _bad_data(command: Publish | Direct, error: payload.DataError) -> Refused:
    if isinstance(command, Direct):
        return Refused(code="bad_data", message=str(error), id=command.id, type="direct")
    return Refused(
        code="bad_data", message=str(error), id=command.id, type="publish", room=command.room[:128]
    )


def _diagnose(frame: bytes) -> Refused:
    """Why it is no command, in a sentence. Slow, and meant for what should not happen often."""
    try:
        fields = json.loads(frame, parse_int=_number, parse_float=float)
    except RecursionError:
        return Refused(code="bad_frame", message=f"The frame is nested deeper than {payload.MAX_DEPTH}.")
    except ValueError:
        return Refused(code="bad_frame", message="The frame is not valid JSON.")
    if isinstance(fields, list):  # Python's reader takes NaN and such
        return Refused(code="bad_frame", message="The frame is not valid JSON.")
    if not isinstance(fields, dict):
        return Refused(
            code="bad_frame", message="A frame must be a JSON object, or an array of them, with a `type`."
        )
    kind = fields.get("type")
    identifier = _identifier(fields.get("id"))
    if kind not in TYPES:
        shown = (
            f"`{_printable(kind)[:32]}` is no type" if isinstance(kind, str) else "`type` must be a string"
        )
        return Refused(code="bad_type", message=f"{shown}: {', '.join(TYPES)} are understood.", id=identifier)
    room = fields.get("room")
    code, message = _wrong_field(frame, kind, fields)
    return Refused(
        code=code,
        message=message,
        id=identifier,
        type=kind,
        room=_printable(room)[:128] if isinstance(room, str) else None,
    )


def _wrong_field(frame: bytes, kind: str, fields: dict[str, Any]) -> tuple[str, str]:
    required = {
        "join": ["room"],
        "leave": ["room"],
        "publish": ["room", "event", "data"],
        "direct": ["to", "event", "data"],
        "received": ["pos"],
        "presence": ["room"],
        "history": ["room"],
        "auth": ["token"],
    }
    for name in required.get(kind, []):
        if name not in fields:
            return _FIELD_CODES[name]
    try:
        _command.decode(frame)
    except msgspec.ValidationError as error:
        path = str(error).rpartition("`$.")[2].rstrip("`")
        if path in _FIELD_CODES:
            return _FIELD_CODES[path]
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        pass  # told below: whatever it is, it lies in a text or a number
    if kind in ("publish", "direct"):
        try:
            # dumped again, it has the same escapes and numbers
            payload.check(json.dumps(fields["data"]).encode(), _DEPTH_OF_DATA)
        except payload.DataError as error:
            return "bad_data", str(error)
    event = fields.get("event")
    if isinstance(event, str) and _printable(event) != event:
        return "bad_event", "`event` has half of a surrogate pair: send whole characters."
    return "bad_frame", "The frame has a number out of range, half of a surrogate pair or too deep a nesting."


def _identifier(value: Any) -> int | float | str | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return value if math.isfinite(value) else None
    if isinstance(value, str) and len(value) <= MAX_ID_CHARACTERS and _printable(value) == value:
        return value
    return None


def _number(text: str) -> int | float:
    # int() refuses more than 4,300 digits, and takes its time over fewer
    return int(text) if len(text) <= 40 else float(text)


def _printable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
