"""The keys that open the internal port's pages."""

import hmac

from aiohttp import web

from tableforge_dataplane.contract.settings import Secret
from tableforge_dataplane.http.answers import CallError
from tableforge_dataplane.security.keys import WatchedSecret


class BearerKey:
    """A key that callers send as `Authorization: Bearer <key>`; its file is read again when it changes."""

    def __init__(self, secret: Secret, *, variable: str, purpose: str, whose: str) -> None:
        """`purpose`: what is off without it. `whose`: names the key to who sends a wrong one."""
        self._watched = WatchedSecret(secret, variable=variable, purpose=purpose)
        self._purpose = purpose
        self._whose = whose

    def check(self, request: web.Request) -> None:
        """Raises CallError where the caller has not sent the key, or there is none."""
        key = self._watched.current()
        if key is None:
            raise CallError("not_found", self._watched.problem or self._purpose)
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        # compared as bytes: compare_digest refuses text that isn't ASCII
        matches = hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), key.encode())
        if scheme.lower() != "bearer" or not matches:
            raise CallError("unauthorized", f"Send {self._whose}: Authorization: Bearer <key>.")
