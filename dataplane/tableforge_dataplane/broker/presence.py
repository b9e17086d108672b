"""Who is in a room, as Redis knows it: written by each instance for its own sockets, read by whoever asks."""

from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import msgspec

from tableforge_dataplane.broker.addresses import RoomAddress
from tableforge_dataplane.broker.connection import Reply, ReplyError, pack
from tableforge_dataplane.broker.entries import Entry, MalformedEntryError
from tableforge_dataplane.broker.scripts import PRESENCE, PRESENCE_BURY, PRESENCE_READ, Script
from tableforge_dataplane.observability.logging import EventLog

LIFETIME_SECONDS: Final = 600.0
"""How long a room's presence outlives the last word of an instance; each says one four times as often."""

MOST_MEMBERS: Final = 500
"""Users that one answer names; changes in rooms with more are not told."""

USERS_PER_WRITE: Final = 500

_log = EventLog("presence")


class Commands(Protocol):
    """The broker's commands, as far as presence needs them."""

    @property
    def connected(self) -> bool: ...

    def send(self, packed: bytes, callback: Callable[[Any], None]) -> None: ...


class Present(msgspec.Struct, frozen=True):
    """One user in one room."""

    user: str
    since: float
    """Unix seconds, Redis's clock: when the first of the user's sockets came."""
    sockets: int
    """All over the cluster."""
    holders: tuple[str, ...]
    """The processes the sockets are at, `<instance>|<boot>` each."""


class RoomPresence(msgspec.Struct, frozen=True):
    """One reading."""

    rev: int
    """0 where nobody is there."""
    count: int
    members: list[Present]
    """At most `MOST_MEMBERS`, longest there first."""


class PresenceChange(msgspec.Struct, frozen=True):
    """What the room's channel carries of one change."""

    rev: int
    count: int
    """Users there after it."""
    holder: str
    """Who wrote it; `-` where a dead one was removed."""
    joined: list[str] | None
    """None, and `left` too, where the room has too many users to name them."""
    left: list[str] | None


class _Names(msgspec.Struct):
    joined: list[str] | None = None
    left: list[str] | None = None


_names: Final = msgspec.json.Decoder(_Names)


def change_of(entry: Entry) -> PresenceChange:
    """Reads what came in a room's channel with a negative seq. Raises MalformedEntryError."""
    try:
        names = _names.decode(entry.body)
        return PresenceChange(
            rev=int(entry.tag),
            count=int(entry.prev),
            holder=entry.origin.decode(),
            joined=names.joined,
            left=names.left,
        )
    except (ValueError, msgspec.MsgspecError):
        raise MalformedEntryError("not a change of presence as its script writes it") from None


class PresenceStore:
    """One holder's view of all rooms' presence. Nothing here waits: answers come by callback."""

    def __init__(self, commands: Commands, *, holder: str, publish_command: bytes = b"PUBLISH") -> None:
        """`holder`: `<instance>|<boot>` of this process, without blanks and `=`."""
        self._commands = commands
        self.holder = holder
        self._holder = holder.encode()
        self._publish_command = publish_command

    @property
    def connected(self) -> bool:
        """Whether calls are answered at the moment."""
        return self._commands.connected

    def write(
        self, address: RoomAddress, sockets: Sequence[tuple[str, int]], callback: Callable[[bool], None]
    ) -> None:
        """Say how many sockets each of these users (at most `USERS_PER_WRITE`) has in the room here.

        `callback` hears whether Redis has it. The same may be said any number of times.
        """
        arguments: list[bytes | int] = [
            1,
            address.presence,
            address.channel,
            self._publish_command,
            int(LIFETIME_SECONDS * 1000),
            self._holder,
            MOST_MEMBERS,
        ]
        for user, count in sockets:
            arguments += [user.encode(), count]
        self._run(PRESENCE, arguments, lambda reply: callback(_taken(reply, "write")))

    def read(self, address: RoomAddress, callback: Callable[[RoomPresence | None], None]) -> None:
        """Who is in the room; None where there was no answer."""

        def on_reply(reply: Reply) -> None:
            callback(_presence_of(reply) if _taken(reply, "read") else None)

        self._run(PRESENCE_READ, [1, address.presence, MOST_MEMBERS], on_reply)

    def bury(self, address: RoomAddress, holders: Sequence[str], callback: Callable[[bool], None]) -> None:
        """Take holders that are no more out of the room."""
        arguments: list[bytes | int] = [
            1,
            address.presence,
            address.channel,
            self._publish_command,
            MOST_MEMBERS,
            *(holder.encode() for holder in holders),
        ]
        self._run(PRESENCE_BURY, arguments, lambda reply: callback(_taken(reply, "bury")))

    def keep(self, address: RoomAddress, callback: Callable[[bool | None], None]) -> None:
        """Begin the room's lifetime anew; False where Redis does not have it, None without an answer."""

        def on_reply(reply: Reply) -> None:
            callback(reply == 1 if _taken(reply, "keep") else None)

        self._commands.send(pack(b"PEXPIRE", address.presence, int(LIFETIME_SECONDS * 1000)), on_reply)

    def _run(self, script: Script, arguments: list[bytes | int], callback: Callable[[Reply], None]) -> None:
        def on_reply(reply: Reply) -> None:
            if isinstance(reply, ReplyError) and str(reply).startswith("NOSCRIPT"):
                self._commands.send(pack(b"EVAL", script.text, *arguments), callback)
            else:
                callback(reply)

        self._commands.send(pack(b"EVALSHA", script.sha, *arguments), on_reply)


def _taken(reply: Reply, what: str) -> bool:
    if isinstance(reply, ReplyError):
        _log.warning("redis_refused_presence", what=what, reply=str(reply))
        return False
    return reply is not None


def _presence_of(reply: Reply) -> RoomPresence | None:
    try:
        rev, count, fields = reply
        members = [
            _present(field, value)
            for field, value in zip(fields[::2], fields[1::2], strict=True)
            if field[:1] == b"u"
        ]
    except (ValueError, TypeError) as error:
        _log.error("presence_malformed", error)
        return None
    members.sort(key=lambda present: (present.since, present.user))
    return RoomPresence(rev=rev, count=count, members=members[:MOST_MEMBERS])


def _present(field: bytes, value: bytes) -> Present:
    since, *parts = value.decode().split(" ")
    held = [part.rpartition("=") for part in parts]
    return Present(
        user=field[1:].decode(),
        since=float(since),
        sockets=sum(int(sockets) for _, _, sockets in held),
        holders=tuple(holder for holder, _, _ in held),
    )
