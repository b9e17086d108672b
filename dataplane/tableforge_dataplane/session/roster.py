"""Who is connected to this instance, by user: for what an application's backend asks about a user."""

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from tableforge_dataplane.session.session import Session


class Disconnect(msgspec.Struct, frozen=True):
    """Close all of a user's connections."""

    user: str
    code: int
    reason: str


class Remove(msgspec.Struct, frozen=True):
    """Put a user out of a room."""

    room: str
    user: str


_disconnect = msgspec.json.Decoder(Disconnect)
_remove = msgspec.json.Decoder(Remove)


class Roster:
    """The sessions of this instance."""

    def __init__(self) -> None:
        self._sessions: dict[str, dict[Session, None]] = {}

    def add(self, user: str, session: "Session") -> None:
        """`session` is `user`'s from now on."""
        self._sessions.setdefault(user, {})[session] = None

    def discard(self, user: str, session: "Session") -> None:
        """It isn't any more."""
        sessions = self._sessions.get(user)
        if sessions is not None:
            sessions.pop(session, None)
            if not sessions:
                del self._sessions[user]

    def disconnect(self, body: msgspec.Raw) -> int:
        """Carries out a `Disconnect`; says how many connections were closed."""
        asked = _disconnect.decode(body)
        sessions = list(self._sessions.get(asked.user, ()))
        for session in sessions:
            session.close(asked.code, asked.reason)
        return len(sessions)

    def remove(self, body: msgspec.Raw) -> int:
        """Carries out a `Remove`; says how many connections were in the room."""
        asked = _remove.decode(body)
        return sum(session.put_out(asked.room) for session in list(self._sessions.get(asked.user, ())))
