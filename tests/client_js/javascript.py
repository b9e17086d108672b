"""The JavaScript client, in Node or in a browser, told what to do by its test."""

import abc
import asyncio
import contextlib
import json
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, Self

from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from tests.support.browser import browser
from tests.support.nodejs import node_binary

_HERE: Final = Path(__file__).parent
_SERVED: Final = {
    f"/{name}": _HERE.parents[1] / name
    for name in ("clients/js/tableforge.js", "tests/client_js/operations.mjs", "tests/client_js/page.mjs")
}
_PAGE: Final = b'<!doctype html><script type="module" src="/tests/client_js/page.mjs"></script>'
_START_SECONDS: Final = 120
_ANSWER_SECONDS: Final = 60


class JsError(Exception):
    """What the client rejected with."""

    def __init__(self, name: str, code: str, message: str) -> None:
        super().__init__(f"{name} {code}: {message}")
        self.name = name
        self.code = code


class JavaScript(abc.ABC):
    """Use as an async context manager. `items[client, room]` and `states[client]` fill up by themselves."""

    def __init__(self) -> None:
        self.items: dict[tuple[str, str], list[dict[str, Any]]] = {}
        self.over: dict[tuple[str, str], dict[str, str] | None] = {}
        self.states: dict[str, list[str]] = {}
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._news = asyncio.Condition()
        self._number = 0
        self._stack = contextlib.AsyncExitStack()

    @abc.abstractmethod
    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exception: object) -> None:
        await self._stack.aclose()

    @abc.abstractmethod
    def _tell(self, line: str) -> None:
        """Hand one operation over."""

    async def do(self, op: str, client: str, *, within: float = _ANSWER_SECONDS, **rest: Any) -> Any:
        """Carry out one operation of the driver. Raises JsError with what the client rejected with."""
        async with asyncio.timeout(within):
            return await self.begin(op, client, **rest)

    def begin(self, op: str, client: str, **rest: Any) -> asyncio.Future[Any]:
        """The same, without waiting."""
        self._number += 1
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._answers[self._number] = answer
        self._tell(json.dumps({"id": self._number, "op": op, "client": client, **rest}))
        return answer

    async def until(self, condition: Callable[[], bool], *, within: float = _ANSWER_SECONDS) -> None:
        """Wait until `condition` holds of what came. Raises TimeoutError."""
        async with asyncio.timeout(within), self._news:
            await self._news.wait_for(condition)

    def datas(self, client: str, room: str) -> list[Any]:
        """The `data` of every message so far."""
        return [item["data"] for item in self.items.get((client, room), []) if "data" in item]

    async def _hear(self, line: str | bytes) -> None:
        told = json.loads(line)
        if "id" in told:
            answer = self._answers.pop(told["id"])
            if answer.done():
                return
            if "error" in told:
                answer.set_exception(JsError(**told["error"]))
            else:
                answer.set_result(told["result"])
        elif "item" in told:
            self.items.setdefault((told["client"], told["item"]["room"]), []).append(told["item"])
        elif "state" in told:
            self.states.setdefault(told["client"], []).append(told["state"])
        else:
            self.over[told["client"], told["room"]] = told["over"]
        async with self._news:
            self._news.notify_all()

    def _ended(self) -> None:
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(ConnectionResetError("what ran the client has ended"))


class Node(JavaScript):
    """In a Node process."""

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            str(node_binary()),
            str(_HERE / "driver.mjs"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=2**24,
        )
        self._reading = asyncio.create_task(self._read())
        self._stack.push_async_callback(self._end)
        return self

    async def _end(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        await self._reading

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            await self._hear(line)
        self._ended()


class Page(JavaScript):
    """In a page of a real browser, which loads the module as it is."""

    async def __aenter__(self) -> Self:
        self._socket: asyncio.Future[ServerConnection] = asyncio.get_running_loop().create_future()
        server = await self._stack.enter_async_context(
            serve(self._talk, "127.0.0.1", 0, process_request=self._file, max_size=2**24)
        )
        port = next(iter(server.sockets)).getsockname()[1]
        await self._stack.enter_async_context(browser(f"http://127.0.0.1:{port}/"))
        async with asyncio.timeout(_START_SECONDS):
            await self._socket
        self._lines: asyncio.Queue[str] = asyncio.Queue()
        sending = asyncio.create_task(self._send())
        self._stack.callback(sending.cancel)
        return self

    def _tell(self, line: str) -> None:
        self._lines.put_nowait(line)

    async def _send(self) -> None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                await self._socket.result().send(await self._lines.get())

    async def _talk(self, socket: ServerConnection) -> None:
        self._socket.set_result(socket)
        async for line in socket:
            await self._hear(line)
        self._ended()

    def _file(self, _: ServerConnection, request: Request) -> Response | None:
        if request.path == "/test":
            return None
        if request.path == "/":
            return _response(_PAGE, "text/html")
        if request.path in _SERVED:
            return _response(_SERVED[request.path].read_bytes(), "text/javascript")
        return Response(
            HTTPStatus.NOT_FOUND, "Not Found", Headers({"Content-Length": "0", "Connection": "close"})
        )


def _response(body: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> Response:
    headers = Headers(
        {"Content-Type": f"{kind}; charset=utf-8", "Content-Length": str(len(body)), "Connection": "close"}
    )
    return Response(status, status.phrase, headers, body)
