"""What a real browser shows its page of each refusal.

Its page reports by itself, so that no driver is needed. The same refusals are tried without a browser in
`test_refusals`.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tableforge_dataplane.contract.settings import Secret
from tests.dataplane.door.test_refusals import KEY, token
from tests.dataplane.path.instances import Instances, Peers
from tests.support.browser import browser
from tests.support.redis import RedisServer

pytestmark = pytest.mark.timeout(900)  # in a fresh checkout it installs the browser

PAGE = """<!doctype html><script>
const attempt = ([url, protocols]) => new Promise(resolve => {
  const heard = [], socket = new WebSocket(url, protocols);
  socket.onmessage = event => {
    heard.push(JSON.parse(event.data));
    if (heard[0].type === "welcome") socket.close(1000);
  };
  socket.onclose = event => resolve({code: event.code, reason: event.reason, first: heard[0] ?? null});
});
Promise.all(%s.map(attempt)).then(found =>
  fetch("/done", {method: "POST", body: JSON.stringify(found)}));
</script>"""


class Site:
    """Serves the page and takes its report."""

    def __init__(self) -> None:
        self.attempts: list[tuple[str, list[str]]] = []
        self.report: asyncio.Future[list[dict[str, Any]]] = asyncio.get_running_loop().create_future()
        self.origin = ""
        self._server: asyncio.Server

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.origin = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        if head.startswith("POST /done"):
            length = next(line for line in head.lower().splitlines() if line.startswith("content-length:"))
            body = await reader.readexactly(int(length.partition(":")[2]))
            if not self.report.done():
                self.report.set_result(json.loads(body))
            page = b""
        else:
            page = (PAGE % json.dumps(self.attempts)).encode()
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
            % len(page)
            + page
        )
        await writer.drain()
        writer.close()


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    made = Site()
    await made.start()
    yield made
    await made.stop()


async def test_a_page_sees_why_it_is_refused(
    redis_server: RedisServer, instances: Instances, peers: Peers, site: Site
) -> None:
    auth = {"jwt_secret": Secret(value=KEY), "required": True}
    (locked,) = await instances(redis_server, auth=auth, security={"max_connections_per_user": 1})
    (picky,) = await instances(redis_server, security={"allowed_origins": "https://app.example.com"})
    (full,) = await instances(redis_server, websocket={"max_connections": 1})
    (open_one,) = await instances(redis_server)
    await peers(full)
    await peers(locked, additional_headers={"Authorization": f"Bearer {token()}"})

    def attempt(server: Any, *bearer: str) -> tuple[str, list[str]]:
        return f"ws://127.0.0.1:{server.port}/ws", ["tableforge.v1", *(f"bearer.{text}" for text in bearer)]

    site.attempts = [
        attempt(locked, "nonsense"),
        attempt(picky),
        attempt(locked, token()),
        attempt(full),
        attempt(open_one),
        attempt(locked, token("bob")),
    ]
    async with browser(site.origin), asyncio.timeout(120):
        found = await site.report
    assert [(each["code"], each["first"].get("code", each["first"]["type"])) for each in found] == [
        (4401, "unauthorized"),
        (4403, "forbidden"),
        (4429, "rate_limited"),
        (1013, "unavailable"),
        (1000, "welcome"),
        (1000, "welcome"),
    ]
