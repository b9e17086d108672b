"""The JSON frames of `tableforge.v1` that this client reads and writes."""

from typing import Any, Final

import msgspec

SUBPROTOCOL: Final = "tableforge.v1"


class FrameError(ValueError):
    """The server sent what is not a frame of the protocol."""


class Past(msgspec.Struct, frozen=True, kw_only=True):
    """A message in a `history` answer."""

    event: str
    sender: str | None = msgspec.field(default=None, name="from")
    seq: int = 0
    pos: str
    ts: float = 0.0
    data: Any = None


class PresentUser(msgspec.Struct, frozen=True, kw_only=True):
    """A user in a `presence` answer."""

    user: str
    since: float = 0.0
    sockets: int = 1


class Event(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """Any frame from the server. Only the fields of its `type` are set; unknown types and fields do no
    harm."""

    type: str
    id: int | str | None = None
    room: str = ""
    pos: str | None = None
    seq: int | None = None
    event: str = ""
    sender: str | None = msgspec.field(default=None, name="from")
    ts: float | None = None
    data: Any = None
    recovered: bool | None = None
    reason: str = ""
    code: str = ""
    message: str = ""
    retry_after: float | None = None
    instance: str = ""
    session: str = ""
    user: str | None = None
    time: float | None = None
    max_payload_bytes: int | None = None
    expires_at: float | None = None
    url: str | None = None
    after: float = 0.0
    complete: bool = True
    messages: list[Past] = []
    members: list[PresentUser] = []
    joined: list[str] = []
    left: list[str] = []
    count: int = 0
    rev: int = 0


_decoder: Final = msgspec.json.Decoder(Event)
_encoder: Final = msgspec.json.Encoder()


def decode(frame: str | bytes) -> Event:
    """Raises FrameError."""
    try:
        return _decoder.decode(frame)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FrameError(f"not a frame of the protocol: {error}") from error


def encode_data(data: Any) -> msgspec.Raw:
    """`data` as it will be sent, so that later changes to the object don't matter.

    Raises TypeError for what JSON has no form of.
    """
    return msgspec.Raw(_encoder.encode(data))


def _command(fields: dict[str, Any]) -> str:
    return _encoder.encode({name: value for name, value in fields.items() if value is not None}).decode()


def auth(token: str, *, number: int | None = None) -> str:
    """The first frame, or the renewal of a token."""
    return _command({"type": "auth", "id": number, "token": token})


def join(room: str, *, number: int, pos: str | None, presence: bool = False) -> str:
    """Join, going on after `pos` where given."""
    return _command(
        {"type": "join", "id": number, "room": room, "pos": pos, "presence": True if presence else None}
    )


def leave(room: str, *, number: int) -> str:
    return _command({"type": "leave", "id": number, "room": room})


def publish(room: str, *, number: int, event: str, data: msgspec.Raw, key: str, since: str | None) -> str:
    """Publish, or with `since` publish again what may have arrived before."""
    return _command(
        {
            "type": "publish",
            "id": number,
            "room": room,
            "event": event,
            "key": key,
            "since": since,
            "data": data,
        }
    )


def direct(to: str, *, number: int, event: str, data: msgspec.Raw, key: str, since: str | None) -> str:
    """A message to a user's personal log."""
    return _command(
        {"type": "direct", "id": number, "to": to, "event": event, "key": key, "since": since, "data": data}
    )


def received(pos: str) -> str:
    """Everything up to `pos` in the own personal log has been handled."""
    return _command({"type": "received", "pos": pos})


def history(room: str, *, number: int, after: str | None, last: int | None) -> str:
    return _command({"type": "history", "id": number, "room": room, "after": after, "last": last})


def presence(room: str, *, number: int) -> str:
    return _command({"type": "presence", "id": number, "room": room})


def ping(*, number: int) -> str:
    return _command({"type": "ping", "id": number})
