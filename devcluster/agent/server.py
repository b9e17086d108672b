"""The HTTPS server behind `kubectl logs` and port-forwarding: what of a kubelet's API is asked for."""

import asyncio
import datetime as dt
import ssl
from collections.abc import AsyncIterator, Callable

from aiohttp import web

from devcluster.agent import clock, port_forward
from devcluster.agent.container import Container
from devcluster.agent.logs import LogLine
from devcluster.agent.settings import AgentSettings
from devcluster.agent.status import Waiting

NOT_OFFERED = ("exec", "attach", "run")
START_WAIT_SECONDS = 2.0

FindContainer = Callable[[str, str, str], Container | None]
"""A container by namespace, pod and name."""
FindAddress = Callable[[str, str], str | None]
"""The address of a pod that runs here, by namespace and name."""


def _tls(settings: AgentSettings) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(settings.tls_cert, settings.tls_key)
    context.load_verify_locations(settings.client_ca)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


class LogQuery:
    """What a request for logs wants. Raises ValueError for what it does not understand."""

    def __init__(self, query: "web.BaseRequest | dict[str, str]") -> None:
        values = query if isinstance(query, dict) else dict(query.query)
        self.follow = values.get("follow") == "true"
        self.previous = values.get("previous") == "true"
        self.timestamps = values.get("timestamps") == "true"
        self.tail = int(values["tailLines"]) if values.get("tailLines") else None
        self.limit_bytes = int(values["limitBytes"]) if values.get("limitBytes") else None
        self.streams = {"Stdout": {"stdout"}, "Stderr": {"stderr"}}.get(
            values.get("stream", "All"), {"stdout", "stderr"}
        )
        self.since = ""
        if values.get("sinceSeconds"):
            since = clock.now() - dt.timedelta(seconds=int(values["sinceSeconds"]))
            self.since = clock.micro_stamp(since)
        elif values.get("sinceTime"):
            self.since = clock.micro_stamp(clock.parse(values["sinceTime"]))


class _Writer:
    """Sends lines as they were asked for."""

    def __init__(self, response: web.StreamResponse, query: LogQuery) -> None:
        self._response = response
        self._query = query
        self._left = query.limit_bytes
        self._line_open = False

    async def send(self, line: LogLine) -> bool:
        """Send a line where it is wanted; whether more may follow."""
        if line.stream not in self._query.streams or line.moment < self._query.since:
            return True
        prefix = b"" if self._line_open or not self._query.timestamps else line.moment.encode() + b" "
        self._line_open = not line.text.endswith(b"\n")
        data = prefix + line.text
        if self._left is not None:
            data = data[: self._left]
            self._left -= len(data)
        await self._response.write(data)
        return self._left is None or self._left > 0


class KubeletServer:
    """Serves logs and ports to bearers of a client certificate."""

    def __init__(self, settings: AgentSettings, find: FindContainer, address_of: FindAddress) -> None:
        self._settings = settings
        self._find = find
        self._address_of = address_of
        app = web.Application()
        app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", self._logs)
        app.router.add_get("/portForward/{namespace}/{pod}", self._port_forward)
        app.router.add_get("/healthz", self._healthz)
        for name in NOT_OFFERED:
            app.router.add_route("*", f"/{name}/{{rest:.*}}", self._not_offered)
        # Who followed a quiet log and left must not be waited for.
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5, handler_cancellation=True)

    async def start(self) -> int:
        """Listen on the node's address; the port. Raises OSError (an ssl.SSLError for bad files is one)."""
        await self._runner.setup()
        site = web.TCPSite(
            self._runner, self._settings.node_ip, self._settings.port, ssl_context=_tls(self._settings)
        )
        await site.start()
        port: int = self._runner.addresses[0][1]
        return port

    async def stop(self) -> None:
        """Stop listening and end what is being followed."""
        await self._runner.cleanup()

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _not_offered(self, request: web.Request) -> web.Response:
        what = request.path.split("/")[1]
        return web.Response(
            status=501,
            text=f"{what} is not offered by a devcluster node: its pods are processes of this machine, "
            "reachable at their own addresses (kubectl get pods -o wide)\n",
        )

    async def _port_forward(self, request: web.Request) -> web.StreamResponse:
        namespace, pod = request.match_info["namespace"], request.match_info["pod"]
        address = self._address_of(namespace, pod)
        if address is None:
            return web.Response(status=404, text=f"pod {namespace}/{pod} does not run on this node\n")
        return await port_forward.forward(request, address=address)

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        where = request.match_info
        container = self._find(where["namespace"], where["pod"], where["container"])
        if container is None:
            pod = f"{where['namespace']}/{where['pod']}"
            text = f"container {where['container']} of pod {pod} is not on this node"
            return web.Response(status=404, text=text)
        try:
            query = LogQuery(request)
        except ValueError as error:
            return web.Response(status=400, text=f"bad query: {error}")
        name = f'container "{container.view.name}" in pod "{where["pod"]}"'
        if query.previous:
            if len(container.logs) < 2:
                return web.Response(status=400, text=f"previous terminated {name} not found")
            log = container.logs[-2]
        else:
            if not container.logs:
                state = container.view.state
                reason = state.reason if isinstance(state, Waiting) else "it has no log"
                return web.Response(status=400, text=f"{name} is waiting to start: {reason}")
            log = container.logs[-1]
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await response.prepare(request)
        writer = _Writer(response, query)
        position, lines = log.end, log.lines(last=query.tail)
        for line in lines:
            if not await writer.send(line):
                return response
        if query.follow and not query.previous:
            await self._follow(log.follow(position), writer)
        return response

    @staticmethod
    async def _follow(lines: AsyncIterator[LogLine], writer: _Writer) -> None:
        try:
            async for line in lines:
                if not await writer.send(line):
                    return
        except (ConnectionResetError, asyncio.CancelledError):
            return  # the reader has gone
