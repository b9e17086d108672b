"""Plain HTTP on the clients' port: `/health`, `/live`, `/ready`; everything but `/ws` is answered here.

It answers inside the handshake that `websockets` does anyway, costs no task of its own and asks nobody: a
balancer's checks must neither wait nor weigh.
"""

import http
from typing import Final

import msgspec
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from tableforge_dataplane.contract.endpoints import HEALTH_PATH, LIVE_PATH, READY_PATH, WS_PATH
from tableforge_dataplane.http.readiness import InstanceHealth

_JSON: Final = "application/json"
_TEXT: Final = "text/plain; charset=utf-8"


class PublicHttp:
    """Answers what is not a WebSocket handshake."""

    def __init__(self, health: InstanceHealth) -> None:
        self._health = health

    def answer(self, request: Request) -> Response | None:
        """The response to `request`, or None where it is a handshake for `/ws` to go on with."""
        path = request.path.partition("?")[0]
        if request.method not in ("GET", "HEAD"):
            return response(405, _TEXT, b"Only GET and HEAD are answered here.\n", ("Allow", "GET, HEAD"))
        if path == WS_PATH:
            if request.method == "HEAD":
                return response(405, _TEXT, b"", ("Allow", "GET"))
            return None
        if path == LIVE_PATH:
            made = response(200, _TEXT, b"alive\n")
        elif path == READY_PATH:
            made = self._ready()
        elif path == HEALTH_PATH:
            report = self._health.report()
            made = response(200 if report.status == "healthy" else 503, _JSON, msgspec.json.encode(report))
        else:
            made = response(404, _TEXT, f"WebSocket clients connect to {WS_PATH}.\n".encode())
        if request.method == "HEAD":
            # the headers are those of GET, its length included
            made.body = b""
        return made

    def _ready(self) -> Response:
        readiness = self._health.readiness
        if readiness.ready:
            return response(200, _TEXT, b"ready\n")
        if readiness.draining:
            return response(503, _TEXT, b"draining\n")
        return response(503, _TEXT, "\n".join(["starting", *readiness.waiting_for(), ""]).encode())


def response(status: int, content_type: str, body: bytes, *more: tuple[str, str]) -> Response:
    """A whole HTTP response; the connection ends with it."""
    headers = Headers(
        [
            ("Content-Type", content_type),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            ("Connection", "close"),
            *more,
        ]
    )
    return Response(status, http.HTTPStatus(status).phrase, headers, body)
