"""Pods that nobody runs: their status as a kubelet would write it, and what a data plane would answer."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from aiohttp import web

from tableforge_dataplane.contract.fleet import Fleet, Health, InstanceRecord, RedisState, Totals
from tableforge_operator.kube import PODS, Kube, Object

FLEET_PORT = 3002
WS_PORT = 3001

CONNECTED = RedisState(
    connected=True, reason="Connected", message="Redis is connected.", version="9.0.0", durability="Disk"
)
AWAY = RedisState(
    connected=False,
    reason="Unreachable",
    message="Redis does not answer at tables-redis:6379: start it, or correct spec.redis.",
)


def fleet(
    *, redis: RedisState = CONNECTED, instances: int = 1, connections: int = 0, rooms: int = 0
) -> Fleet:
    """A fleet's state."""
    return Fleet(
        instance="one",
        redis=redis,
        as_of=1.0,
        totals=Totals(instances=instances, connections=connections, rooms=rooms),
        instances=[
            InstanceRecord(
                instance=f"instance-{number}",
                boot="b",
                version="0.1.0",
                started_at=1.0,
                updated_at=1.0,
                connections=connections // instances,
                rooms=rooms,
                capacity=1000,
                draining=False,
                alive=True,
            )
            for number in range(instances)
        ],
    )


def health(*waiting_for: str, redis: RedisState = CONNECTED) -> Health:
    """What an instance that is not ready says."""
    return Health(
        status="starting",
        instance="one",
        version="0.1.0",
        ready=False,
        waiting_for=list(waiting_for),
        redis=redis,
        connections=0,
        rooms=0,
        uptime_seconds=1.0,
    )


class Instance:
    """Answers at a pod's address. `fleet` and `health` may be changed at any time; None: no key, no word."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.fleet: Fleet | None = None
        self.health: Health | None = None
        self.fleet_keys: list[str] = []
        """The bearer keys it was asked with."""

    async def _fleet(self, request: web.Request) -> web.Response:
        self.fleet_keys.append(request.headers.get("Authorization", "").removeprefix("Bearer "))
        if self.fleet is None:
            return web.Response(status=404)
        return web.Response(body=msgspec.json.encode(self.fleet), content_type="application/json")

    async def _health(self, _: web.Request) -> web.Response:
        if self.health is None:
            return web.Response(status=503)
        return web.Response(
            body=msgspec.json.encode(self.health), status=503, content_type="application/json"
        )

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator["Instance"]:
        app = web.Application()
        app.router.add_get("/fleet", self._fleet)
        app.router.add_get("/health", self._health)
        runner = web.AppRunner(app)
        await runner.setup()
        try:
            for port in (FLEET_PORT, WS_PORT):
                await web.TCPSite(runner, self.address, port).start()
            yield self
        finally:
            await runner.cleanup()


async def set_pod(kube: Kube, pod: Object, *, address: str, ready: bool, **status: Any) -> None:
    """What a kubelet would write of a running pod."""
    state = "True" if ready else "False"
    metadata = pod["metadata"]
    body: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
        },
        "status": {
            "phase": "Running",
            "podIP": address,
            "podIPs": [{"ip": address}],
            "conditions": [
                {"type": kind, "status": state, "lastTransitionTime": "2026-01-01T00:00:00Z"}
                for kind in ("Ready", "ContainersReady")
            ],
            **status,
        },
    }
    await kube.apply(body, field_manager="kubelet", force=True, subresource="status")


async def pods_of(kube: Kube, namespace: str, component: str) -> list[Object]:
    """The pods of a component that are not on their way out, by name."""
    items, _ = await kube.list(PODS, namespace, label_selector=f"app.kubernetes.io/component={component}")
    return sorted(
        (pod for pod in items if not pod["metadata"].get("deletionTimestamp")),
        key=lambda pod: str(pod["metadata"]["name"]),
    )
