"""What the server tells one client. `message`, which goes to many, is made by the dialect from its parts."""

import msgspec

from tableforge_dataplane.protocol.commands import CommandId


class Event(
    msgspec.Struct, tag=str.lower, omit_defaults=True, rename="camel", frozen=True, gc=False, kw_only=True
):
    """The class's name in lower case is its `type`."""


class Welcome(Event, frozen=True, kw_only=True):
    """The client is in."""

    instance: str
    session: str
    user: str
    time: float
    ping_interval: float
    max_payload_bytes: int


class Authenticated(Event, frozen=True, kw_only=True):
    """A token was taken."""

    id: CommandId = None
    user: str
    expires_at: float


class Joined(Event, frozen=True, kw_only=True):
    """The client is a member; what follows `pos` comes next."""

    id: CommandId = None
    room: str
    pos: str
    recovered: bool | None = None
    reason: str | None = None


class Left(Event, frozen=True, kw_only=True):
    """The client is a member no more."""

    id: CommandId = None
    room: str
    reason: str | None = None
    """`removed` where the application's backend wanted it."""


class Members(Event, frozen=True, kw_only=True):
    """Users came to the room, or went."""

    room: str
    joined: list[str]
    left: list[str]
    rev: int


class PresentUser(msgspec.Struct, frozen=True, gc=False):
    """One user of a room."""

    user: str
    since: float
    sockets: int


class Presence(Event, frozen=True, kw_only=True):
    """Who is in the room; of very many, some."""

    id: CommandId = None
    room: str
    members: list[PresentUser]
    count: int
    rev: int


class Reset(Event, frozen=True, kw_only=True):
    """What follows `pos` does not continue what came before."""

    room: str
    pos: str
    reason: str


class Ack(Event, frozen=True, kw_only=True):
    """The message is stored. A direct message has only a `pos`."""

    id: CommandId = None
    room: str | None = None
    pos: str | None = None
    seq: int | None = None


class History(Event, frozen=True, kw_only=True):
    """What a room's log holds."""

    id: CommandId = None
    room: str
    messages: list[msgspec.Raw]
    """As the dialect's `part` makes them."""
    pos: str | None = None
    """What to ask for next, or to join with; None where the room has no history."""
    complete: bool
    """Whether that is all there was to be had."""
    reason: str | None = None
    """Why the first one doesn't follow what was asked for."""


class Error(Event, frozen=True, kw_only=True):
    """A command was not carried out, or the connection is about to be closed."""

    id: CommandId = None
    code: str
    message: str
    retry_after: float | None = None
    command: str | None = None
    """The type of the command it is about."""
    room: str | None = None


class Pong(Event, frozen=True, kw_only=True):
    """The answer to `ping`."""

    id: CommandId = None
    time: float


class Migrate(Event, frozen=True, kw_only=True):
    """The client should connect anew in `after` seconds, to the same address where no `url` is given; in a
    little more than that, this connection is closed."""

    url: str | None = None
    after: float
    reason: str
