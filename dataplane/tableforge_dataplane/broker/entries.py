"""A message as Redis hands it out, from the channel or from the log."""

from typing import Any

import msgspec


class MalformedEntryError(ValueError):
    """Something in a room's log or channel that the publish script didn't write."""


class Entry(msgspec.Struct, gc=False):
    """One message of one room. Tags and times stay bytes, as they came: they are only compared and sent."""

    seq: int
    tag: bytes
    prev: bytes
    """The predecessor's tag: the log is a chain."""
    ts: bytes
    """Unix seconds with three decimals, Redis's clock."""
    origin: bytes
    """Who published it: see `Publication.origin`."""
    body: bytes
    """A JSON object with `event`, `from` and `data`, in this order."""


class Position(msgspec.Struct, frozen=True, gc=False):
    """One message of one history; seq 0 is the beginning, whose tag is entry 1's `prev`."""

    seq: int
    tag: bytes

    def __str__(self) -> str:
        return f"{self.seq}-{self.tag.decode()}"


def from_channel(payload: bytes) -> Entry:
    """Raises MalformedEntryError."""
    try:
        seq, tag, prev, ts, origin, body = payload.split(b" ", 5)
        return Entry(int(seq), tag, prev, ts, origin, body)
    except ValueError:
        raise MalformedEntryError("not `seq tag prev ts origin body`") from None


def from_log(item: Any) -> Entry:
    """From an item of XRANGE's answer. Raises MalformedEntryError."""
    try:
        identifier, fields = item
        seq, _, tag = identifier.partition(b"-")
        prev, ts, origin, _ = fields[1].split(b" ", 3)
        return Entry(int(seq), tag, prev, ts, origin, fields[5])
    except (ValueError, IndexError, TypeError, AttributeError):
        raise MalformedEntryError("not an entry as the publish script writes it") from None
