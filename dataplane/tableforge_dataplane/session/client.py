"""One client as its session's parts see it: who it is, what it may do, and how it is told something."""

import os
from collections.abc import Iterator
from typing import Final

import msgspec

from tableforge_dataplane.protocol import names
from tableforge_dataplane.protocol.commands import Command, CommandId, Refused
from tableforge_dataplane.protocol.events import Error, Event
from tableforge_dataplane.rooms.outlet import Outlet
from tableforge_dataplane.security.access import Rights
from tableforge_dataplane.security.tokens import Identity
from tableforge_dataplane.session.limits import TOLD_EVERY_SECONDS, ByteBudget
from tableforge_dataplane.session.surroundings import Surroundings, Voice

BAD_ROOM: Final = (
    f"A room's name has 1 to {names.MAX_ROOM_CHARACTERS} characters of A-Z, a-z, 0-9, `.`, `_`, `-` and `:`."
)
BAD_POS: Final = "`{}` must be a position that a `message`, `joined`, `ack` or `reset` carried."
NO_PERSONAL_LOG: Final = "A client without a token has no personal log: connect with one."
NOT_JOINED: Final = "This connection is not in the room: `join` it first."

_json: Final = msgspec.json.Encoder().encode


def _random_names() -> Iterator[str]:
    # a system call for many of them: each would take as long as making the session's parts
    while True:
        pool = os.urandom(8 * 256).hex()
        for start in range(0, len(pool), 16):
            yield pool[start : start + 16]


new_name: Final = _random_names().__next__
"""For a session: 64 random bits nobody can guess, as 16 hexadecimal digits."""


class Client:
    """What `membership`, `publishing` and `session` share of one client; `Session` is the whole of it."""

    __slots__ = (
        "_limits_told_until",
        "around",
        "budget",
        "closed",
        "from_json",
        "guest",
        "identity",
        "key_scope",
        "name",
        "outlet",
        "rights",
        "voice",
    )

    def __init__(self, surroundings: Surroundings, *, outlet: Outlet, voice: Voice) -> None:
        self.around = surroundings
        self.outlet = outlet
        self.voice = voice
        self.name = new_name()
        self.identity: Identity | None = None
        """Who it is; None before it has said so."""
        self.rights: Rights
        """Set together with `identity`, as what follows."""
        self.guest = False
        self.from_json = b""
        """What stands between `event` and `data` in the body of its messages."""
        self.key_scope = b""
        """What its idempotency keys begin with in Redis."""
        self.budget: ByteBudget
        self._limits_told_until = 0.0
        self.closed = False

    @property
    def user(self) -> str | None:
        """Who it is; None before it has said so."""
        return self.identity.user if self.identity is not None else None

    def become(self, identity: Identity, *, guest: bool) -> None:
        """Be `identity` from now on."""
        self.identity = identity
        self.rights = identity.rights
        self.guest = guest
        self.from_json = b',"from":' + _json(identity.user) + b',"data":'
        # Guests share one scope: who reconnects has another name, and its resends must still be known.
        user = b"" if guest else identity.user.encode()
        # a length in front: no user and key can look like another user's
        self.key_scope = b"k:%d:%b:" % (len(user), user)
        budgets = self.around.budgets
        self.budget = budgets.of_guest() if guest else budgets.of(identity.user)

    def reach(self, room: str, identifier: CommandId, command: str) -> str | None:
        """What the rooms call `room`, or the client's personal log, where it may be a member or read its
        log; None where it may not, and was told why."""
        if room == names.PERSONAL:
            if self.guest or self.identity is None:
                self.error("forbidden", NO_PERSONAL_LOG, identifier, command, room)
                return None
            return names.personal_log(self.identity.user)
        if not names.is_room(room):
            self.error("bad_room", BAD_ROOM, identifier, command, room[:128])
            return None
        if not self.rights.may_join(room):
            self.error("forbidden", "The token gives no right to join this room.", identifier, command, room)
            return None
        if not self.around.hub.options(room).may_join(guest=self.guest):
            self.error("forbidden", "This room does not take you as a member.", identifier, command, room)
            return None
        return room

    # What it is told

    def send(self, event: Event) -> None:
        """Tell the client."""
        self.outlet.send(self.voice.encode(event))

    def error(
        self,
        code: str,
        message: str,
        identifier: CommandId,
        command: str | None,
        room: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        """A command, whose type is `command`, is not carried out."""
        if command in ("publish", "direct"):
            self.around.metrics.publishes_refused.add(code)
        self.send(
            Error(
                id=identifier, code=code, message=message, retry_after=retry_after, command=command, room=room
            )
        )

    def limited(self, command: Command | Refused, message: str, wait_seconds: float) -> None:
        """It asks too much at once.

        Where nobody waits for the answer, one a second is enough: who floods hears of it, and not as often.
        """
        kind = command.type if isinstance(command, Refused) else type_of(command)
        now = self.around.clock()
        if command.id is None and now < self._limits_told_until:
            if kind in ("publish", "direct"):
                self.around.metrics.publishes_refused.add("rate_limited")
            return
        self._limits_told_until = now + TOLD_EVERY_SECONDS
        self.error(
            "rate_limited",
            message,
            command.id,
            kind,
            room_of(command),
            max(0.001, round(wait_seconds, 3)),
        )


def type_of(command: Command) -> str:
    """What the client called it."""
    return str(command.__struct_config__.tag)


def room_of(command: Command | Refused) -> str | None:
    """The room it is about, fit to be repeated."""
    room = getattr(command, "room", None)
    return room[:128] if isinstance(room, str) else None
