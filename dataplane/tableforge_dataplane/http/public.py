"""Plain HTTP on the clients' port: `/health`, `/live`, `/ready`; everything but `/ws` is answered here.

It answers inside the handshake that `websockets` does anyway, costs no task of its own and asks nobody: a
balancer's checks must neither wait nor weigh.
"""

import http
from typing import Final

from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from tableforge_dataplane.contract.endpoints import INSTANCE_PATH, WS_PATH
from tableforge_dataplane.http.readiness import TEXT, InstanceHealth

_ANY_INSTANCE: Final = f"{INSTANCE_PATH}/"


class PublicHttp:
    """Answers what is not a WebSocket handshake."""

    def __init__(self, health: InstanceHealth, *, instance: str) -> None:
        """`instance`: this one's name, which a path may begin with: INSTANCE_PATH."""
        self._health = health
        self._instance = instance

    def answer(self, request: Request) -> Response | None:
        """The response to `request`, or None where it is a handshake for `/ws` to go on with."""
        path = request.path.partition("?")[0]
        if request.method not in ("GET", "HEAD"):
            return response(405, TEXT, b"Only GET and HEAD are answered here.\n", ("Allow", "GET, HEAD"))
        if path.startswith(_ANY_INSTANCE):
            name, _, rest = path.removeprefix(_ANY_INSTANCE).partition("/")
            if name != self._instance:
                text = f"This instance is called otherwise: connect to {WS_PATH}, which any one answers.\n"
                return response(404, TEXT, text.encode() if request.method == "GET" else b"")
            path = f"/{rest}"
        if path == WS_PATH:
            if request.method == "HEAD":
                return response(405, TEXT, b"", ("Allow", "GET"))
            return None
        page = self._health.page(path)
        if page is not None:
            made = response(page.status, page.content_type, page.body)
        else:
            made = response(404, TEXT, f"WebSocket clients connect to {WS_PATH}.\n".encode())
        if request.method == "HEAD":
            # the headers are those of GET, its length included
            made.body = b""
        return made


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
