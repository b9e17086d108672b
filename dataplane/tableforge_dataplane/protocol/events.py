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


class Reset(Event, frozen=True, kw_only=True):
    """What follows `pos` does not continue what came before."""

    room: str
    pos: str
    reason: str


class Ack(Event, frozen=True, kw_only=True):
    """The message is stored."""

    id: CommandId = None
    room: str
    pos: str | None = None
    seq: int | None = None


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
