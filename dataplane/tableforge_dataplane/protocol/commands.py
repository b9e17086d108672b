"""What a client can ask for. A dialect makes these from frames; the session knows nothing else of frames."""

from typing import Annotated

import msgspec

from tableforge_dataplane.protocol.names import (
    MAX_EVENT_CHARACTERS,
    MAX_HISTORY,
    MAX_ID_CHARACTERS,
    MAX_KEY_CHARACTERS,
)

CommandId = int | float | Annotated[str, msgspec.Meta(max_length=MAX_ID_CHARACTERS)] | None
"""What its reply repeats."""

Key = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_KEY_CHARACTERS)]


class Auth(msgspec.Struct, tag="auth", gc=False, frozen=True):
    """Say who one is, or renew a token."""

    token: str
    id: CommandId = None


class Join(msgspec.Struct, tag="join", gc=False, frozen=True):
    """Become a member of a room."""

    room: str
    id: CommandId = None
    pos: str | None = None
    """The position of the last message the client has handled."""
    presence: bool = False
    """Whether it wants to hear who comes and goes."""


class Leave(msgspec.Struct, tag="leave", gc=False, frozen=True):
    """Be a member no more."""

    room: str
    id: CommandId = None


class Publish(msgspec.Struct, tag="publish", gc=False, frozen=True):
    """Send a message to a room."""

    room: str
    event: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_EVENT_CHARACTERS)]
    data: msgspec.Raw
    """JSON that `payload.check` has let through."""
    id: CommandId = None
    key: Key | None = None
    since: str | None = None
    echo: bool = True
    volatile: bool = False


class Presence(msgspec.Struct, tag="presence", gc=False, frozen=True):
    """Ask who is in a room."""

    room: str
    id: CommandId = None


class Direct(msgspec.Struct, tag="direct", gc=False, frozen=True):
    """Send a message to a user, wherever it is, or when it comes back."""

    to: str
    event: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_EVENT_CHARACTERS)]
    data: msgspec.Raw
    """JSON that `payload.check` has let through."""
    id: CommandId = None
    key: Key | None = None
    since: str | None = None


class Received(msgspec.Struct, tag="received", gc=False, frozen=True):
    """Everything in the own personal log up to here has been handled."""

    pos: str
    id: CommandId = None


class History(msgspec.Struct, tag="history", gc=False, frozen=True):
    """Ask for messages that a room's log holds: those after a position, or the last ones."""

    room: str
    id: CommandId = None
    after: str | None = None
    last: Annotated[int, msgspec.Meta(ge=1, le=MAX_HISTORY)] | None = None


class Ping(msgspec.Struct, tag="ping", gc=False, frozen=True):
    """Ask for a `pong`."""

    id: CommandId = None


class Refused(msgspec.Struct, gc=False, frozen=True):
    """Something that is no command; `code` is the protocol's."""

    code: str
    message: str
    id: CommandId = None
    type: str | None = None
    room: str | None = None


Command = Auth | Join | Leave | Publish | Direct | Received | Presence | History | Ping
