"""Who gets past the handshake, and how those who don't are told.

Cheap questions come first: is this instance leaving, does Redis answer, is there room. Programs get plain
HTTP. A browser shows its page nothing of that, so a request with an `Origin` is accepted, told `error`, and
closed, unless too many of those are being told already.
"""

import http
from collections.abc import Callable, Sequence
from typing import Final

from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from tableforge_dataplane.contract.endpoints import SUBPROTOCOL
from tableforge_dataplane.contract.fleet import RedisState
from tableforge_dataplane.contract.settings import Settings
from tableforge_dataplane.http.readiness import Readiness
from tableforge_dataplane.observability.metrics import Metrics
from tableforge_dataplane.security.access import DEFAULT_RIGHTS
from tableforge_dataplane.security.tokens import Identity, TokenError
from tableforge_dataplane.session.session import Verifier
from tableforge_dataplane.wire.connection import Connection, Refusal

BEARER: Final = "bearer."

MOST_TOLD: Final = 50
"""Connections beyond capacity that may be open at once only to be told that there is no room."""

RETRY_AFTER_SECONDS: Final = 5.0

_CLOSE_CODES: Final = {
    http.HTTPStatus.UNAUTHORIZED: 4401,
    http.HTTPStatus.SERVICE_UNAVAILABLE: 1013,
}


class Admission:
    """Decides about each handshake for `/ws`."""

    def __init__(
        self,
        *,
        settings: Settings,
        readiness: Readiness,
        verifier: Verifier,
        metrics: Metrics,
        redis_state: Callable[[], RedisState],
    ) -> None:
        self._settings = settings
        self._readiness = readiness
        self._verifier = verifier
        self._metrics = metrics
        self._redis_state = redis_state
        self.told = 0
        """Connections open at the moment only to be told that they are refused."""

    def admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """None lets it in, with its identity or refusal on the connection; a response turns it away."""
        if not isinstance(connection, Connection):
            raise TypeError("the server makes connections of its own class")
        offered = _offered(request)
        if offered and SUBPROTOCOL not in offered and not all(name.startswith(BEARER) for name in offered):
            return connection.respond(
                http.HTTPStatus.BAD_REQUEST, f"Offer the subprotocol {SUBPROTOCOL}, or none.\n"
            )
        trouble = self._trouble()
        if trouble is not None:
            reason, message = trouble
            return self._refuse(
                connection,
                request,
                http.HTTPStatus.SERVICE_UNAVAILABLE,
                reason,
                "unavailable",
                message,
                RETRY_AFTER_SECONDS,
            )
        token = _token(request, offered)
        if token is not None:
            try:
                connection.identity = self._verifier.verify(token)
            except TokenError as error:
                unauthorized = error.code == "unauthorized"
                status = http.HTTPStatus.UNAUTHORIZED if unauthorized else http.HTTPStatus.SERVICE_UNAVAILABLE
                return self._refuse(
                    connection,
                    request,
                    status,
                    error.code,
                    error.code,
                    error.message,
                    None if unauthorized else RETRY_AFTER_SECONDS,
                )
        elif not self._settings.auth.required:
            connection.guest = True
            connection.identity = Identity(
                user=f"guest-{connection.id.hex[:12]}", rights=DEFAULT_RIGHTS, expires_at=float("inf")
            )
        return None

    def _trouble(self) -> tuple[str, str] | None:
        if self._readiness.draining:
            return "draining", "This instance is leaving: connect to another one."
        waiting = self._readiness.waiting_for()
        if waiting:
            return "starting", "This instance is not ready yet: try again in a moment."
        if not self._redis_state().connected:
            return "redis_away", "Redis does not answer at the moment: try again in a moment."
        if not self._readiness.started:
            return "starting", "This instance is not ready yet: try again in a moment."
        most = self._settings.websocket.max_connections
        if self._metrics.connections - self.told >= most:
            return "full", f"This instance has its {most} connections: connect to another one, or later."
        return None

    def _refuse(
        self,
        connection: Connection,
        request: Request,
        status: http.HTTPStatus,
        reason: str,
        code: str,
        message: str,
        retry_after: float | None,
    ) -> Response | None:
        self._metrics.connections_refused.add(reason)
        if "Origin" in request.headers and self.told < MOST_TOLD:
            connection.refusal = Refusal(_CLOSE_CODES[status], code, message, retry_after)
            self.told += 1
            return None
        response = connection.respond(status, f"{message}\n")
        if retry_after is not None:
            response.headers["Retry-After"] = f"{retry_after:.0f}"
        if status is http.HTTPStatus.UNAUTHORIZED:
            response.headers["WWW-Authenticate"] = "Bearer"
        return response


def select_subprotocol(_connection: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    """Only our own is ever echoed, and never a token."""
    return Subprotocol(SUBPROTOCOL) if SUBPROTOCOL in offered else None


def _offered(request: Request) -> list[str]:
    lines = request.headers.get_all("Sec-WebSocket-Protocol")
    return [name.strip() for line in lines for name in line.split(",") if name.strip()]


def _token(request: Request, offered: list[str]) -> str | None:
    for line in request.headers.get_all("Authorization"):
        scheme, _, token = line.partition(" ")
        if scheme.lower() == "bearer" and token.strip():
            return token.strip()
    return next((name.removeprefix(BEARER) for name in offered if name.startswith(BEARER)), None)
