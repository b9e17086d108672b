"""Where the token comes from, when it needs renewal, and whether another one is worth a try."""

import base64
import binascii
import inspect
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

Token = str | Callable[[], str | Awaitable[str]] | None

_REFUSALS: Final = 2
"""After so many fresh tokens refused in a row it isn't the token's age."""


class _Claims(msgspec.Struct):
    exp: float | None = None


def expires_at(token: str) -> float | None:
    """The Unix time in a JWT's `exp`, unverified; None for tokens of another kind."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        payload = base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))
        return msgspec.json.decode(payload, type=_Claims).exp
    except (binascii.Error, msgspec.DecodeError, ValueError):
        return None


class TokenSource:
    """A fixed token, a callable that gives one (it may be async), or none.

    A callable is asked at the start, when the server refuses what it gave, and shortly before that expires.
    """

    def __init__(self, token: Token) -> None:
        self._token = token
        self._cached: str | None = None
        self._refusals = 0

    @property
    def renewable(self) -> bool:
        return callable(self._token)

    @property
    def missing(self) -> bool:
        """Whether the application gave none."""
        return self._token is None

    async def current(self) -> str | None:
        """The token to present; asks the callable where there is none yet. Raises what the callable
        raises."""
        if self._cached is None:
            return await self.fresh()
        return self._cached

    async def fresh(self) -> str | None:
        """A new one from the callable; the fixed one where there is no callable."""
        if callable(self._token):
            given = self._token()
            self._cached = await given if inspect.isawaitable(given) else given
        else:
            self._cached = self._token
        return self._cached

    def refused(self) -> bool:
        """The server refused it. Whether another one is worth a try."""
        self._cached = None
        self._refusals += 1
        return self.renewable and self._refusals < _REFUSALS

    def accepted(self) -> None:
        self._refusals = 0
