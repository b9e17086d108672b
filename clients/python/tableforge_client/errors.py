"""What can go wrong, as types. Each has the protocol's `code` and a sentence for people."""


class TableForgeError(Exception):
    """The base of everything this client raises on purpose."""

    def __init__(self, code: str, message: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(f"{code}: {message}" if message else code)
        self.code = code
        self.message = message
        self.retry_after_seconds = retry_after_seconds


class RefusedError(TableForgeError):
    """The server refused a command; `code` is one of the protocol's (`forbidden`, `bad_room`, …).

    Refusals that pass by themselves (`rate_limited`, `unavailable`) are never raised: they are retried.
    """


class UnknownOutcomeError(RefusedError):
    """A publish was sent again and the room's log no longer reaches back to tell whether the first one
    arrived.

    It was not published again. Ask the room what is true now, then decide.
    """


class ClosedError(TableForgeError):
    """The client is closed, by itself or by a server that wants no reconnect.

    `code` is the WebSocket close code (`"4403"`), `"http-403"`, or `"closed"`. A publish that ends with this
    was sent or not: its outcome is unknown, unless it was made after the close.
    """


class UnauthorizedError(ClosedError):
    """No token, or one that the server refuses, and no way to get a new one."""


class RoomLeftError(TableForgeError):
    """The room was left, by this client or because the server removed it."""
