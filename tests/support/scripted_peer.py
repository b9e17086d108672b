"""A real WebSocket server whose every frame the test decides: for what a real instance does seldom."""

import asyncio
import collections
import http
import json
from types import TracebackType
from typing import Any, Self

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

PATIENCE_SECONDS = 30.0
"""How long anything expected may take before the test fails."""


class PeerConnection:
    """One client's connection, as the server sees it."""

    def __init__(self, socket: ServerConnection) -> None:
        self._socket = socket
        self._over = asyncio.Event()

    @property
    def path(self) -> str:
        """What the client asked for, with its query."""
        assert self._socket.request is not None
        return self._socket.request.path

    @property
    def headers(self) -> Headers:
        """What the client sent in its handshake."""
        assert self._socket.request is not None
        return self._socket.request.headers

    async def welcome(self, instance: str = "peer-1", **more: Any) -> None:
        await self.send(
            type="welcome", instance=instance, session="s", pingInterval=30, maxPayloadBytes=102400, **more
        )

    async def send(self, **fields: Any) -> None:
        await self._socket.send(json.dumps(fields))

    async def send_text(self, text: str) -> None:
        await self._socket.send(text)

    async def receive(self) -> dict[str, Any]:
        """The client's next command. Fails where none comes, or the connection ends."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            command: dict[str, Any] = json.loads(await self._socket.recv())
        return command

    async def expect(self, kind: str, **fields: Any) -> dict[str, Any]:
        """The next command, which must be of this type and have these fields."""
        command = await self.receive()
        assert command["type"] == kind, command
        assert {name: command.get(name) for name in fields} == fields, command
        return command

    async def silent(self, seconds: float) -> bool:
        """Whether the client says nothing for so long."""
        try:
            async with asyncio.timeout(seconds):
                await self._socket.recv()
        except TimeoutError:
            return True
        return False

    async def reply(self, command: dict[str, Any], **fields: Any) -> None:
        await self.send(id=command["id"], **fields)

    async def join(
        self, room: str, *, pos: str | None = None, at: str = "0-t", **more: Any
    ) -> dict[str, Any]:
        """Expect a join, with `pos` or without, and answer it."""
        command = await self.expect("join", room=room, pos=pos)
        await self.reply(command, type="joined", room=room, pos=at, **more)
        return command

    async def message(self, room: str, seq: int, data: Any = None, *, tag: str = "t") -> None:
        await self.send(
            type="message",
            room=room,
            event="chat",
            seq=seq,
            pos=f"{seq}-{tag}",
            ts=1764000000.5,
            data=data,
            **{"from": "ada"},
        )

    async def ack(self, command: dict[str, Any], seq: int) -> None:
        await self.reply(command, type="ack", room=command["room"], seq=seq, pos=f"{seq}-t")

    async def close(self, code: int = 1000, reason: str = "") -> None:
        await self._socket.close(code, reason)

    def cut(self) -> None:
        """Break the connection without a goodbye."""
        self._socket.transport.abort()

    async def closed(self) -> int:
        """Wait until the client has closed the connection; gives its close code."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            try:
                while True:
                    await self._socket.recv()
            except ConnectionClosed as end:
                return 1006 if end.rcvd is None else end.rcvd.code

    def finish(self) -> None:
        self._over.set()

    async def hold(self) -> None:
        await self._over.wait()


class ScriptedPeer:
    """Listens on a port of its own. `await peer.connection()` is the next client that came."""

    def __init__(self) -> None:
        self._server: Server | None = None
        self._arrived: asyncio.Queue[PeerConnection] = asyncio.Queue()
        self._all: list[PeerConnection] = []
        self._refusals: collections.deque[tuple[int, dict[str, str]]] = collections.deque()
        self.refused: dict[str, int] = {}
        """Paths on which every handshake is answered with a status instead."""
        self.handshakes = 0
        self._asked = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._server = await serve(
            self._handle,
            "127.0.0.1",
            0,
            process_request=self._process_request,
            subprotocols=["tableforge.v1"],  # type: ignore[list-item]
            compression=None,
            ping_interval=None,
            close_timeout=1,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        for connection in self._all:
            connection.finish()
        self._server.close()
        await self._server.wait_closed()

    @property
    def url(self) -> str:
        assert self._server is not None
        port = next(iter(self._server.sockets)).getsockname()[1]
        return f"ws://127.0.0.1:{port}/ws"

    def refuse_next(self, status: int, **headers: str) -> None:
        """Answer the next handshake with this status (`retry_after="2"` becomes `Retry-After: 2`)."""
        self._refusals.append((status, headers))

    async def connection(self, *, within: float = PATIENCE_SECONDS) -> PeerConnection:
        """The next client's connection. Raises TimeoutError."""
        async with asyncio.timeout(within):
            return await self._arrived.get()

    async def until_asked(self, handshakes: int) -> None:
        """Wait until so many handshakes have come since the beginning. Raises TimeoutError."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while self.handshakes < handshakes:
                self._asked.clear()
                await self._asked.wait()

    async def _process_request(self, connection: ServerConnection, request: Request) -> Response | None:
        self.handshakes += 1
        self._asked.set()
        if (status := self.refused.get(request.path)) is not None:
            return connection.respond(http.HTTPStatus(status), "refused on this path\n")
        if not self._refusals:
            return None
        status, headers = self._refusals.popleft()
        response = connection.respond(http.HTTPStatus(status), "refused by the script\n")
        for name, value in headers.items():
            response.headers[name.replace("_", "-").title()] = value
        return response

    async def _handle(self, socket: ServerConnection) -> None:
        connection = PeerConnection(socket)
        self._all.append(connection)
        self._arrived.put_nowait(connection)
        await connection.hold()
