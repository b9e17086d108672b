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


Item = Message | Reset
