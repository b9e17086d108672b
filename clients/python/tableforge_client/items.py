"""What a room hands to the application."""

import dataclasses
from typing import Any, Literal


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message of a room."""

    room: str
    event: str
    sender: str | None
    """The user who published it; None where the server knows no name."""
    seq: int
    """1, 2, 3 … in each room: for people."""
    pos: str
    """The message's place in the room's history, for programs: `join(room, pos=…)` goes on after it."""
    ts: float
    """When Redis took it, in Unix seconds."""
    data: Any


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reset:
    """What follows in this room does not continue what came before: messages may be missing, or were taken
    back.

    The application should read the state of the room anew from wherever it keeps it.
    """

    room: str
    reason: str
    """`trimmed`: away for longer than the log reaches back. `log_lost`: Redis came back without the log.
    `forked`: a Redis that lacked the last messages took over. `gap`: the server left messages out."""
    pos: str | None
    """Where it goes on."""
    told_by: Literal["join", "reset", "client"]
    """Whether the server said so when the room was joined again, while joined, or the client noticed
    itself."""


@dataclasses.dataclass(frozen=True, slots=True)
class Ack:
    """A publish is in the room's log, as safely as the cluster's durability says."""

    pos: str
    seq: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Direct:
    """A message to this user, out of the personal log."""

    event: str
    sender: str | None
    pos: str
    """Its place in the personal log: `inbox(pos=…)` goes on after it."""
    ts: float
    data: Any


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Members:
    """Users came to a room that was joined with `presence=True`, or went."""

    room: str
    joined: list[str]
    left: list[str]
    rev: int
    """Grows with each change: what `Client.presence` says with a lower one is older."""
    pos: None = None
    """It has no place in the room's history."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Present:
    """One user in a room."""

    user: str
    since: float
    """Unix seconds."""
    sockets: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Presence:
    """Who is in a room."""

    room: str
    members: list[Present]
    """Of very many, some."""
    count: int
    rev: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """A part of a room's log."""

    room: str
    messages: list[Message] | list[Direct]
    pos: str | None
    """Of the last message, to ask on from; None where the room has no history."""
    complete: bool
    """Whether nothing follows."""
    reason: str | None
    """Why the first message doesn't follow what was asked for (`trimmed`, `log_lost`, `forked`)."""


Item = Message | Direct | Members | Reset
