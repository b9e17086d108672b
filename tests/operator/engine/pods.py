"""Pods that nobody runs: their status as a kubelet would write it, and what a data plane would answer."""

import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
from aiohttp import web

from tableforge_dataplane.contract.fleet import (
    Fleet,
    FleetAnswer,
    FleetCommand,
    Forget,
    Health,
    InstanceRecord,
    Move,
    MoveOutcome,
    Orders,
    RedisState,
    RoomLoad,
    Shed,
    Totals,
)
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
    *,
    redis: RedisState = CONNECTED,
    instances: int = 1,
    connections: int = 0,
    rooms: int = 0,
    names: Sequence[str] = (),
) -> Fleet:
    """A fleet's state. `names` of the instances, where they matter."""
    instances = len(names) or instances
    return Fleet(
        instance="one",
        redis=redis,
        as_of=1.0,
        totals=Totals(instances=instances, connections=connections, rooms=rooms),
        instances=[
            InstanceRecord(
                instance=names[number] if names else f"instance-{number}",
                boot="b",
                version="0.1.0",
                started_at=1.0,
                updated_at=1.0,
                connections=connections // instances,
                rooms=rooms,
                capacity=1000,
                draining=False,
                alive=True,
                weight=100,
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
        self.commands: list[FleetCommand] = []
        """Those it has taken."""
        self.fence = 0
        """The highest that it has seen."""
        self.follows = True
        """Whether clients go where they are sent."""
        self.ticks = False
        """Whether all records are of the moment at which they are asked for."""

    async def _fleet(self, request: web.Request) -> web.Response:
        self.fleet_keys.append(request.headers.get("Authorization", "").removeprefix("Bearer "))
        if self.fleet is None:
            return web.Response(status=404)
        if self.ticks:
            now = time.time()
            records = [msgspec.structs.replace(record, updated_at=now) for record in self.fleet.instances]
            self.fleet = msgspec.structs.replace(self.fleet, as_of=now, instances=records)
        return web.Response(body=msgspec.json.encode(self.fleet), content_type="application/json")

    async def _command(self, request: web.Request) -> web.Response:
        """As an instance does it: orders hold at once, and stand in the records."""
        if request.headers.get("Authorization", "").removeprefix("Bearer ") not in self.fleet_keys:
            return web.Response(status=401)
        command = msgspec.json.decode(await request.read(), type=FleetCommand)
        stale = command.fence < self.fence
        if not stale:
            self.fence = command.fence
            self.commands.append(command)
            self._obey(command)
        moves = command.moves if isinstance(command, Move) and not stale else []
        outcomes = [MoveOutcome(room=move.room, outcome="moved") for move in moves]
        answer = FleetAnswer(stale=stale, fence=self.fence, moves=outcomes)
        return web.Response(
            body=msgspec.json.encode(answer), status=409 if stale else 200, content_type="application/json"
        )

    def _obey(self, command: FleetCommand) -> None:
        if self.fleet is None:
            return
        records = self.fleet.instances
        if isinstance(command, Orders):
            orders = {order.instance: order for order in command.instances}
            records = [
                record
                if (order := orders.get(record.instance)) is None
                else msgspec.structs.replace(
                    record,
                    cordoned=order.cordoned,
                    weight=100 if order.weight is None else order.weight,
                    address=order.address,
                )
                for record in records
            ]
        elif isinstance(command, Forget):
            records = [record for record in records if record.instance not in command.instances]
        elif isinstance(command, Shed) and self.follows and command.connections:
            records = _shed(records, command)
        elif isinstance(command, Move) and self.follows:
            records = _moved(records, command)
        self.fleet = msgspec.structs.replace(self.fleet, instances=records)

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
        app.router.add_post("/fleet/commands", self._command)
        runner = web.AppRunner(app)
        await runner.setup()
        try:
            for port in (FLEET_PORT, WS_PORT):
                await web.TCPSite(runner, self.address, port).start()
            yield self
        finally:
            await runner.cleanup()


def _shed(records: list[InstanceRecord], command: Shed) -> list[InstanceRecord]:
    """Clients have gone from the one to the emptiest of the others."""
    others = [record for record in records if record.instance != command.instance]
    emptiest = min(others, key=lambda record: record.connections).instance
    change = {command.instance: -command.connections, emptiest: command.connections}
    return [
        msgspec.structs.replace(
            record,
            connections=record.connections + change.get(record.instance, 0),
            commands=[*record.commands, command.id]
            if record.instance == command.instance
            else record.commands,
        )
        for record in records
    ]


def _moved(records: list[InstanceRecord], command: Move) -> list[InstanceRecord]:
    """All members of the rooms have gone to the targets, each a client of its own."""
    rooms = {record.instance: {one.room: one.members for one in record.heaviest_rooms} for record in records}
    connections = {record.instance: record.connections for record in records}
    for move in command.moves:
        members = rooms[move.source].pop(move.room)
        rooms[move.target][move.room] = members
        connections[move.source] -= members
        connections[move.target] += members
    return [
        msgspec.structs.replace(
            record,
            connections=connections[record.instance],
            heaviest_rooms=[
                RoomLoad(room=room, members=members) for room, members in rooms[record.instance].items()
            ],
        )
        for record in records
    ]


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
