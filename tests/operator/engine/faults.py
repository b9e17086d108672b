"""A proxy in front of the real API server that does to requests what a test asks for.

Requests go on with the credentials they came with, so that the API server judges them as ever; what a fault
answers itself never reaches it.
"""

import asyncio
import contextlib
import dataclasses
import json
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Self

import aiohttp
import yaml
from aiohttp import web

from tests.support.children import free_port

Match = Callable[[web.Request], bool]

_HOP_BY_HOP = frozenset({"connection", "content-length", "host", "keep-alive", "transfer-encoding"})


def is_watch(request: web.Request) -> bool:
    return "watch" in request.query


def is_write(request: web.Request) -> bool:
    """Whether it writes an object; leases apart, without which there is no operator."""
    return request.method != "GET" and "/leases" not in request.path


def of(plural: str) -> Match:
    """Requests about a resource, whatever their verb."""
    return lambda request: plural in request.path.split("/")


@dataclasses.dataclass
class Fault:
    """What happens to requests that match, `times` times (None: until it is removed)."""

    match: Match
    status: int = 0
    """Answer this instead of asking the API server."""
    reason: str = ""
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    delay_seconds: float = 0.0
    """Pass the request on this much later."""
    lose_answer: bool = False
    """Pass the request on, and cut the connection where the answer should come."""
    times: int | None = None
    hits: int = 0


class ApiProxy:
    """Listens on 127.0.0.1 without TLS, for the API server of a kubeconfig."""

    def __init__(self, kubeconfig: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        cluster = config["clusters"][0]["cluster"]
        self._server = cluster["server"]
        self._tls = ssl.create_default_context(cadata=_authority(cluster))
        self._config = config
        self._session: aiohttp.ClientSession | None = None
        self._runner: web.AppRunner | None = None
        self._faults: list[Fault] = []
        self._watches: dict[asyncio.Future[None], tuple[web.Request, asyncio.Event]] = {}
        """Each by who carries it, with what is set when its resource version is to be too old."""
        self._news = asyncio.Condition()
        self.port = free_port()  # it stays free while nobody listens

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._tls, limit=0), auto_decompress=False
        )
        app = web.Application(client_max_size=16 * 1024**2)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cut_watches()
        assert self._runner is not None
        await self._runner.cleanup()
        assert self._session is not None
        await self._session.close()

    def kubeconfig(self, path: Path) -> Path:
        """A kubeconfig whose API server is this proxy."""
        config = dict(self._config)
        config["clusters"] = [
            {**entry, "cluster": {"server": f"http://127.0.0.1:{self.port}"}} for entry in config["clusters"]
        ]
        path.write_text(yaml.safe_dump(config))
        return path

    def inject(self, fault: Fault) -> Fault:
        """Have it happen from now on, before faults that were there already."""
        self._faults.insert(0, fault)
        return fault

    def remove(self, fault: Fault) -> None:
        self._faults.remove(fault)

    async def hit(self, fault: Fault, times: int = 1) -> None:
        """Wait until a fault has happened so often."""
        async with asyncio.timeout(120), self._news:
            await self._news.wait_for(lambda: fault.hits >= times)

    def cut_watches(self, match: Match = lambda _: True) -> int:
        """Break the connections of the watches that match; how many there were."""
        broken = [carrier for carrier, (request, _) in self._watches.items() if match(request)]
        for carrier in broken:
            request = self._watches[carrier][0]
            if request.transport is not None:
                request.transport.abort()
            carrier.cancel()
        return len(broken)

    def expire_watches(self, match: Match) -> int:
        """Tell the watches that match that their resource version is too old, and end them."""
        found = [expired for request, expired in self._watches.values() if match(request)]
        for expired in found:
            expired.set()
        return len(found)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        fault = next(
            (f for f in self._faults if f.match(request) and (f.times is None or f.hits < f.times)), None
        )
        if fault is not None:
            fault.hits += 1
            async with self._news:
                self._news.notify_all()
            if fault.delay_seconds:
                await asyncio.sleep(fault.delay_seconds)
            if fault.status:
                return _status(fault)
        assert self._session is not None
        url = self._server + request.path_qs
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP}
        body = await request.read() or None
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        try:
            async with self._session.request(
                request.method, url, headers=headers, data=body, timeout=timeout
            ) as answer:
                if fault is not None and fault.lose_answer:
                    await answer.read()
                    assert request.transport is not None
                    request.transport.abort()
                    return web.Response()
                kept = {n: v for n, v in answer.headers.items() if n.lower() not in _HOP_BY_HOP}
                if not is_watch(request) or answer.status != 200:
                    return web.Response(status=answer.status, headers=kept, body=await answer.read())
                response = web.StreamResponse(status=answer.status, headers=kept)
                await response.prepare(request)
                await self._pass_on(request, answer, response)
                return response
        except aiohttp.ClientError:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()

    async def _pass_on(
        self, request: web.Request, answer: aiohttp.ClientResponse, response: web.StreamResponse
    ) -> None:
        expired = asyncio.Event()
        carrier = asyncio.ensure_future(_carry(answer, response))
        expiry = asyncio.ensure_future(expired.wait())
        self._watches[carrier] = (request, expired)
        try:
            await asyncio.wait((carrier, expiry), return_when=asyncio.FIRST_COMPLETED)
            if expired.is_set():
                status = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}
                with contextlib.suppress(ConnectionError):
                    await response.write(json.dumps({"type": "ERROR", "object": status}).encode() + b"\n")
        finally:
            self._watches.pop(carrier, None)
            for task in (carrier, expiry):
                task.cancel()
            await asyncio.gather(carrier, expiry, return_exceptions=True)


@contextlib.asynccontextmanager
async def injected(proxy: ApiProxy, fault: Fault) -> AsyncIterator[Fault]:
    """The fault, for as long as the block runs."""
    proxy.inject(fault)
    try:
        yield fault
    finally:
        proxy.remove(fault)


async def _carry(answer: aiohttp.ClientResponse, response: web.StreamResponse) -> None:
    with contextlib.suppress(aiohttp.ClientError, ConnectionError):
        async for chunk in answer.content.iter_any():
            await response.write(chunk)


def _status(fault: Fault) -> web.Response:
    body = {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "message": f"injected: {fault.reason or fault.status}",
        "reason": fault.reason,
        "code": fault.status,
    }
    return web.json_response(body, status=fault.status, headers=fault.headers)


def _authority(cluster: dict[str, str]) -> str:
    import base64

    if "certificate-authority-data" in cluster:
        return base64.b64decode(cluster["certificate-authority-data"]).decode()
    return Path(cluster["certificate-authority"]).read_text()
