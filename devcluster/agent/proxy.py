"""Services: what kube-proxy does, as a proxy of its own.

Every port of a Service has a listener on the Service's address (and on the node's for a node port), and a
connection goes to one of the ready pods in turn. Backends change under living connections: those stay where
they are until they end. TCP only.

A connection costs no task once it is made: bytes go from one transport's callback into the other's buffer,
and a full buffer pauses the side that fills it.
"""

import asyncio
import collections
import dataclasses
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from devcluster.agent import journal
from devcluster.agent.api import MERGE, Api, ApiError, Object, path_of
from devcluster.agent.endpoints import Backend, backends
from devcluster.agent.events import EventRecorder
from devcluster.agent.watch import Reflector

BACKLOG = 4096
CONNECT_TIMEOUT_SECONDS = 5.0
BUFFER_BYTES = 256 * 1024
AFFINITY_LIMIT = 10_000
SETTLE_SECONDS = 0.02
"""How long changes are gathered before the listeners follow them."""
RETRY_SECONDS = 5.0

Listen = tuple[str, int]


@dataclasses.dataclass(frozen=True)
class Route:
    """Where the connections to one address and port go."""

    service: str
    backends: tuple[Backend, ...]
    affinity_seconds: int = 0
    """How long a client's address keeps its backend; 0 for not at all."""


def routes(
    services: Sequence[Object], pods: Sequence[Object], *, node_ip: str, api_server: Backend
) -> dict[Listen, Route]:
    """Every address and port to listen on. The Service of the API server leads to the real one.

    A Service without backends has none: connections to it are refused, as kube-proxy does.
    """
    by_namespace: dict[str, list[Object]] = collections.defaultdict(list)
    for pod in pods:
        by_namespace[pod["metadata"]["namespace"]].append(pod)
    result: dict[Listen, Route] = {}
    for service in services:
        metadata, spec = service["metadata"], service["spec"]
        address = spec.get("clusterIP", "")
        if spec.get("type") == "ExternalName" or address in ("", "None"):
            continue
        is_api = (metadata["namespace"], metadata["name"]) == ("default", "kubernetes")
        affinity = 0
        if spec.get("sessionAffinity") == "ClientIP":
            config = (spec.get("sessionAffinityConfig") or {}).get("clientIP") or {}
            affinity = config.get("timeoutSeconds") or 10_800
        for port in spec.get("ports") or []:
            if port.get("protocol", "TCP") != "TCP":
                continue
            found = [api_server] if is_api else backends(service, port, by_namespace[metadata["namespace"]])
            if not found:
                continue
            route = Route(f"{metadata['namespace']}/{metadata['name']}", tuple(found), affinity)
            result[address, port["port"]] = route
            if port.get("nodePort"):
                result[node_ip, port["nodePort"]] = route
    return result


def first_open_port() -> int:
    """The lowest port that an ordinary user may listen on."""
    return int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text(encoding="ascii"))


def may_listen_on(port: int) -> bool:
    """Whether this process's user may listen on a port."""
    return os.geteuid() == 0 or port >= first_open_port()


class Balancer:
    """Chooses a backend for each connection."""

    def __init__(self, route: Route) -> None:
        self.route = route
        self._turn = 0
        self._kept: collections.OrderedDict[str, tuple[Backend, float]] = collections.OrderedDict()

    def choose(self, client: str) -> Backend | None:
        """The backend for a client's next connection: in turn, or its own; None where there is none."""
        known = self.route.backends
        if not known:
            return None
        seconds = self.route.affinity_seconds
        if seconds and (kept := self._kept.get(client)) and kept[0] in known and time.monotonic() < kept[1]:
            backend = kept[0]
        else:
            self._turn = (self._turn + 1) % len(known)
            backend = known[self._turn]
        if seconds:
            self._kept[client] = (backend, time.monotonic() + seconds)
            self._kept.move_to_end(client)
            if len(self._kept) > AFFINITY_LIMIT:
                self._kept.popitem(last=False)
        return backend


class _Side(asyncio.Protocol):
    """One side of a proxied connection: what it receives goes to the other side."""

    transport: Any  # asyncio's Transport or uvloop's, which is no subclass of it
    other: "_Side"

    def __init__(self) -> None:
        self.ended = False
        """Whether this side has said that it sends no more."""
        self.lost = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.set_write_buffer_limits(high=BUFFER_BYTES)

    def data_received(self, data: bytes) -> None:
        self.other.transport.write(data)

    def eof_received(self) -> bool:
        self.ended = True
        if self.other.ended:
            self.other.transport.close()
            return False
        if not self.other.lost and self.other.transport.can_write_eof():
            self.other.transport.write_eof()
        return True

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        if error is None:
            self.other.transport.close()
        else:
            self.other.transport.abort()

    def pause_writing(self) -> None:
        if not self.other.lost:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if not self.other.lost:
            self.other.transport.resume_reading()


class _Arriving(asyncio.Protocol):
    """A client for whom a backend is being found: what it says meanwhile waits."""

    def __init__(self, balancer: Balancer, tasks: set[asyncio.Task[None]]) -> None:
        self._balancer = balancer
        self._tasks = tasks
        self._early: list[bytes] = []
        self._ended = False
        self._lost = False

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        task = asyncio.get_running_loop().create_task(self._connect())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def data_received(self, data: bytes) -> None:
        # Not already when it is made: uvloop starts to read after that whatever was said.
        self._transport.pause_reading()
        self._early.append(data)

    def eof_received(self) -> bool:
        self._ended = True
        return True

    def connection_lost(self, _error: Exception | None) -> None:
        self._lost = True

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        peer = self._transport.get_extra_info("peername")
        client = peer[0] if peer else ""
        backend = self._balancer.choose(client)
        if backend is None:
            self._transport.abort()
            return
        near, far = _Side(), _Side()
        near.other, far.other = far, near
        near.connection_made(self._transport)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
                await loop.create_connection(lambda: far, backend.address, backend.port)
        except (OSError, TimeoutError):
            # As with kube-proxy no other pod is tried: one that stops listening before it is out of its
            # Services costs its clients a connection.
            self._transport.abort()
            return
        if self._lost:
            far.transport.abort()
            return
        self._hand_over(near)

    def _hand_over(self, near: _Side) -> None:
        self._transport.set_protocol(near)
        for data in self._early:
            near.data_received(data)
        if self._ended:
            near.eof_received()
        elif self._early:
            self._transport.resume_reading()


class ServiceProxy:
    """Listens for all Services."""

    def __init__(
        self,
        api: Api,
        events: EventRecorder,
        services: Reflector,
        pods: Reflector,
        *,
        node_ip: str,
        own: frozenset[Listen],
    ) -> None:
        """`own` is what the agent itself listens on."""
        self._api = api
        self._events = events
        self._services = services
        self._pods = pods
        self._node_ip = node_ip
        self._own = own
        self._changed = asyncio.Event()
        self._servers: dict[Listen, asyncio.Server] = {}
        self._balancers: dict[Listen, Balancer] = {}
        self._refused: dict[Listen, str] = {}
        self._told: set[Listen] = set()
        self._connecting: set[asyncio.Task[None]] = set()

    def changed(self) -> None:
        """A Service or a pod has changed."""
        self._changed.set()

    async def run(self) -> None:
        """Follow the Services until cancelled."""
        try:
            while True:
                await self._follow()
                try:
                    async with asyncio.timeout(RETRY_SECONDS if self._refused else None):
                        await self._changed.wait()
                except TimeoutError:
                    continue
                await asyncio.sleep(SETTLE_SECONDS)
                self._changed.clear()
        finally:
            for server in self._servers.values():
                server.close()
            for task in self._connecting:
                task.cancel()

    async def _follow(self) -> None:
        services = list(self._services.items())
        wanted = routes(
            services,
            list(self._pods.items()),
            node_ip=self._node_ip,
            api_server=Backend(*self._api.address),
        )
        for listen in [listen for listen in self._servers if listen not in wanted]:
            self._servers.pop(listen).close()
            del self._balancers[listen]
        self._told &= set(wanted)
        self._refused = {listen: why for listen, why in self._refused.items() if listen in wanted}
        for listen, route in wanted.items():
            if listen in self._servers:
                self._balancers[listen].route = route
            elif listen not in self._own:
                await self._listen(listen, route)
                if listen in self._refused and listen not in self._told:
                    self._tell(services, listen, route)
        for service in services:
            await self._give_address(service)

    async def _listen(self, listen: Listen, route: Route) -> None:
        balancer = Balancer(route)
        loop = asyncio.get_running_loop()
        try:
            self._servers[listen] = await loop.create_server(
                lambda: _Arriving(balancer, self._connecting),
                *listen,
                family=socket.AF_INET,
                backlog=BACKLOG,
                reuse_address=True,
            )
        except OSError as error:
            self._refused[listen] = os.strerror(error.errno) if error.errno else str(error)
        else:
            self._refused.pop(listen, None)
            self._told.discard(listen)
            self._balancers[listen] = balancer

    def _tell(self, services: Sequence[Object], listen: Listen, route: Route) -> None:
        """Say, once, that a port cannot be served and what to do."""
        self._told.add(listen)
        address, port = listen
        text = f"cannot listen on {address}:{port}: {self._refused[listen]}"
        if not may_listen_on(port):
            text += f"; ports below {first_open_port()} are not for ordinary users: use a higher one"
        if route.backends == (Backend(*self._api.address),):
            journal.info("api_service_not_served", reason=text)  # pods are told another address
            return
        journal.warning("service_not_served", service=route.service, reason=text)
        for service in services:
            metadata = service["metadata"]
            if f"{metadata['namespace']}/{metadata['name']}" == route.service:
                item = {**service, "kind": "Service"}
                self._events.record(item, "Warning", "ListenFailed", text, component="kube-proxy")

    async def _give_address(self, service: Object) -> None:
        """A Service of type LoadBalancer is reached at its own address: there is nothing in front of it."""
        metadata, spec = service["metadata"], service["spec"]
        known = ((service.get("status") or {}).get("loadBalancer") or {}).get("ingress") or []
        address = spec.get("clusterIP")
        if spec.get("type") != "LoadBalancer" or not address or [one.get("ip") for one in known] == [address]:
            return
        try:
            await self._api.patch(
                path_of("services", metadata["namespace"], metadata["name"], "status"),
                {"status": {"loadBalancer": {"ingress": [{"ip": address, "ipMode": "VIP"}]}}},
                MERGE,
            )
        except ApiError as error:
            journal.warning("address_not_given", service=metadata["name"], error=str(error))
