"""Who gets past the handshake, and how those who don't are told.

Cheap questions come first: where from, too often, is there room. Programs get plain HTTP. A browser shows its
page nothing of that, so a request with an `Origin` is accepted, told `error`, and closed, unless too many of
those are being told already.
"""

import http
import math
import time
import urllib.parse
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple

from websockets.http11 import Request, Response
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from tableforge_dataplane.contract.endpoints import INSTANCE_PATH, SUBPROTOCOL
from tableforge_dataplane.contract.fleet import RedisState
from tableforge_dataplane.contract.settings import Settings
from tableforge_dataplane.http.readiness import Readiness
from tableforge_dataplane.observability.logging import EventLog
from tableforge_dataplane.observability.metrics import Metrics
from tableforge_dataplane.observability.pressure import Stage
from tableforge_dataplane.security.addresses import AddressError
from tableforge_dataplane.security.origins import Origins
from tableforge_dataplane.security.tokens import Identity, TokenError
from tableforge_dataplane.session.surroundings import RETRY_AFTER_SECONDS, Verifier
from tableforge_dataplane.wire.connection import Connection, Refusal
from tableforge_dataplane.wire.door import Door, TooMany

BEARER: Final = "bearer."

MOST_TOLD: Final = 50
"""Connections beyond capacity that may be open at once only to be told that there is no room."""

MOST_QUERY_FIELDS: Final = 20

ORIGINS_LOGGED_EVERY_SECONDS: Final = 60.0

_log = EventLog("handshake")


class _No(NamedTuple):
    """How a handshake is refused."""

    status: http.HTTPStatus
    close_code: int
    reason: str
    """The metric's label."""
    code: str
    message: str
    retry_after: float | None = None
    held: bool = False


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
        door: Door,
        cordoned: Callable[[], bool],
    ) -> None:
        """`cordoned`: whether this instance was told to take nobody who could be elsewhere."""
        self._readiness = readiness
        self._verifier = verifier
        self._metrics = metrics
        self._redis_state = redis_state
        self._door = door
        self._cordoned = cordoned
        self._origin_logged_at = -float("inf")
        self.told = 0
        """Connections open at the moment only to be told that they are refused."""
        self.renew(settings)

    def renew(self, settings: Settings) -> None:
        """Judge by these settings from now on."""
        self._settings = settings
        self._origins = Origins(settings.security.allowed_origins, token_required=settings.auth.required)

    def admit(self, connection: Connection, request: Request) -> Response | Awaitable[Response | None] | None:
        """None lets it in, with its identity or refusal on the connection; a response turns it away."""
        offered = _offered(request)
        if offered and SUBPROTOCOL not in offered and not all(name.startswith(BEARER) for name in offered):
            return connection.respond(
                http.HTTPStatus.BAD_REQUEST, f"Offer the subprotocol {SUBPROTOCOL}, or none.\n"
            )
        visitor = connection.visitor
        if visitor is not None:
            trouble = self._unknown(connection, request)
            if trouble is not None:
                return trouble
        no = self._wrong_origin(request) or self._comes_too_often(connection) or self._trouble(request)
        if no is None and visitor is not None:
            full = self._door.address_is_full(visitor)
            no = _too_many(full) if full is not None else None
        if no is None:
            no = self._identify(connection, _token(request, offered, self._settings.auth.query_token))
        if no is None:
            return None
        return self._refuse(connection, request, no)

    def _unknown(self, connection: Connection, request: Request) -> Response | None:
        """Find out where it comes from; a response where a proxy that should know doesn't say."""
        visitor = connection.visitor
        if visitor is None:
            return None
        if visitor.proxy_expected:
            self._metrics.connections_refused.add("proxy_header")
            return connection.respond(
                http.HTTPStatus.BAD_REQUEST, "This balancer has to send a PROXY protocol header.\n"
            )
        try:
            self._door.locate(visitor, request.headers.get_all(self._door.addresses.header))
        except AddressError as error:
            self._metrics.connections_refused.add("proxy_header")
            return connection.respond(http.HTTPStatus.BAD_REQUEST, f"{error}.\n")
        return None

    def _wrong_origin(self, request: Request) -> _No | None:
        origins = request.headers.get_all("Origin")
        if not origins:
            return None
        if len(origins) == 1 and self._origins.allows(origins[0], _host(request)):
            return None
        now = time.monotonic()
        if now - self._origin_logged_at >= ORIGINS_LOGGED_EVERY_SECONDS:
            self._origin_logged_at = now
            _log.warning(
                "origin_refused",
                origin=origins[0][:200],
                advice="If this page may connect, add its origin to TABLEFORGE_SECURITY_ALLOWED_ORIGINS.",
            )
        return _No(
            http.HTTPStatus.FORBIDDEN,
            4403,
            "origin",
            "forbidden",
            "Pages of this origin may not connect here.",
        )

    def _comes_too_often(self, connection: Connection) -> _No | None:
        if connection.visitor is None:
            return None
        found = self._door.comes_too_often(connection.visitor)
        return _too_many(found) if found is not None else None

    def _trouble(self, request: Request) -> _No | None:
        if self._readiness.draining:
            return _unavailable("draining", "This instance is leaving: connect to another one.")
        if self._readiness.waiting_for():
            return _unavailable("starting", "This instance is not ready yet: try again in a moment.")
        if not self._redis_state().connected:
            return _unavailable("redis_away", "Redis does not answer at the moment: try again in a moment.")
        if not self._readiness.started:
            return _unavailable("starting", "This instance is not ready yet: try again in a moment.")
        if self._metrics.pressure >= Stage.REFUSE:
            return _unavailable("overloaded", "This instance has too much to do: connect to another one.")
        if request.path.startswith(f"{INSTANCE_PATH}/") and self._cordoned():
            # who comes to the address of all is there because no other took it
            return _unavailable("cordoned", "This instance takes no more clients: connect to another one.")
        most = self._settings.capacity
        if self._metrics.connections - self.told >= most:
            return _unavailable(
                "full", f"This instance has its {most} connections: connect to another one, or later."
            )
        return None

    def _identify(self, connection: Connection, token: str | None) -> _No | None:
        if token is not None:
            try:
                connection.identity = identity = self._verifier.verify(token)
            except TokenError as error:
                if error.code == "unauthorized":
                    return _No(http.HTTPStatus.UNAUTHORIZED, 4401, error.code, error.code, error.message)
                return _unavailable(error.code, error.message)
            found = self._door.user_may_not(identity.user)
            return _too_many(found) if found is not None else None
        if not self._settings.auth.required:
            connection.guest = True
            connection.identity = Identity(
                user=f"guest-{connection.id.hex[:12]}",
                rights=self._verifier.default_rights,
                expires_at=float("inf"),
            )
        return None

    def _refuse(
        self, connection: Connection, request: Request, no: _No
    ) -> Response | Awaitable[Response | None] | None:
        self._metrics.connections_refused.add(no.reason)
        visitor = connection.visitor
        if no.held and visitor is not None and self._door.may_hold(visitor):
            return self._refuse_later(connection, request, no)
        return self._refuse_now(connection, request, no)

    async def _refuse_later(self, connection: Connection, request: Request, no: _No) -> Response | None:
        if connection.visitor is not None:
            await self._door.hold(connection.visitor)
        return self._refuse_now(connection, request, no)

    def _refuse_now(self, connection: Connection, request: Request, no: _No) -> Response | None:
        if "Origin" in request.headers and self.told < MOST_TOLD and not connection.gone:
            connection.refusal = Refusal(no.close_code, no.code, no.message, no.retry_after)
            self.told += 1
            return None
        response = connection.respond(no.status, f"{no.message}\n")
        if no.retry_after is not None:
            response.headers["Retry-After"] = str(max(1, math.ceil(no.retry_after)))
        if no.status is http.HTTPStatus.UNAUTHORIZED:
            response.headers["WWW-Authenticate"] = "Bearer"
        return response


def _unavailable(reason: str, message: str) -> _No:
    return _No(http.HTTPStatus.SERVICE_UNAVAILABLE, 1013, reason, "unavailable", message, RETRY_AFTER_SECONDS)


def _too_many(found: TooMany) -> _No:
    return _No(
        http.HTTPStatus.TOO_MANY_REQUESTS,
        4429,
        found.reason,
        "rate_limited",
        found.message,
        round(found.retry_after, 3),
        found.held,
    )


class Handshake(ServerProtocol):
    """The library's, with our choice of a subprotocol. (As a class: given a function, the library binds it to
    each connection, which is one more thing to make and a circle for garbage collection to find.)"""

    def select_subprotocol(self, subprotocols: Sequence[Subprotocol]) -> Subprotocol | None:
        """Only our own is ever echoed, and never a token."""
        return Subprotocol(SUBPROTOCOL) if SUBPROTOCOL in subprotocols else None


def _host(request: Request) -> str | None:
    hosts = request.headers.get_all("Host")
    return hosts[0] if len(hosts) == 1 else None


def _offered(request: Request) -> list[str]:
    lines = request.headers.get_all("Sec-WebSocket-Protocol")
    return [name.strip() for line in lines for name in line.split(",") if name.strip()]


def _token(request: Request, offered: list[str], in_query: bool) -> str | None:
    for line in request.headers.get_all("Authorization"):
        scheme, _, token = line.partition(" ")
        if scheme.lower() == "bearer" and token.strip():
            return token.strip()
    bearer = next((name.removeprefix(BEARER) for name in offered if name.startswith(BEARER)), None)
    if bearer is not None or not in_query:
        return bearer
    query = request.path.partition("?")[2]
    try:
        found = urllib.parse.parse_qs(query, max_num_fields=MOST_QUERY_FIELDS).get("token")
    except ValueError:
        return None
    return found[0] if found else None
