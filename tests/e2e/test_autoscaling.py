"""A fleet grows because of its connections and shrinks again, with members at work on both instances.

Everything is real: the operator, Kubernetes' autoscaler, the pods' memory by the metrics API, the drain.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import pytest
from websockets.asyncio.client import connect

from demo.kubectl import Kubectl
from tests.support.ledger import Ledger

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

Found = TypeVar("Found")

CAPACITY = 20
PATIENCE_SECONDS = 120.0
CLUSTER = f"""
apiVersion: tableforge.io/v1alpha1
kind: WebSocketCluster
metadata: {{name: tables}}
spec:
  replicas: 1
  auth: {{required: false}}
  redis: {{managed: {{persistence: {{onDelete: Delete}}}}}}
  websocket: {{maxConnections: {CAPACITY}}}
  scaling: {{heartbeatInterval: 1s}}
  rollout: {{drainTimeout: 2s}}
  # Nobody knows how busy the machine is that this runs on: memory alone, and connections.
  autoscaling: {{enabled: true, maxReplicas: 3, targetCPUUtilization: 0, targetMemoryUtilization: 1000}}
  loadBalancing: {{scaleUpCooldown: 1s, scaleDownCooldown: 14s}}
"""


class Cluster:
    """The cluster `tables`, looked at again and again."""

    def __init__(self, kubectl: Kubectl, namespace: str) -> None:
        self._kubectl = kubectl
        self._in = ("-n", namespace)

    async def apply(self, manifest: str) -> None:
        await self._kubectl("apply", *self._in, "-f", "-", stdin=manifest)

    async def ready(self) -> None:
        await self._kubectl("wait", *self._in, "--for=condition=Ready", "wsc/tables", "--timeout=120s")

    async def url(self) -> str:
        service = await self._kubectl.json("get", *self._in, "service", "tables")
        return f"ws://{service['spec']['clusterIP']}:{service['spec']['ports'][0]['port']}/ws"

    async def pods(self) -> dict[str, Any]:
        """The instances that are ready and stay, by name."""
        labels = "app.kubernetes.io/component=dataplane"
        found = (await self._kubectl.json("get", *self._in, "pods", "-l", labels))["items"]
        return {
            pod["metadata"]["name"]: pod
            for pod in found
            if "deletionTimestamp" not in pod["metadata"]
            and any(
                condition["type"] == "Ready" and condition["status"] == "True"
                for condition in pod["status"].get("conditions", ())
            )
        }

    async def become(self, number: int) -> dict[str, Any]:
        """Wait until so many instances are ready, and none beside them."""

        async def look() -> dict[str, Any] | None:
            found = await self.pods()
            return found if len(found) == number else None

        return await until(look, what=f"{number} instances")

    async def says(self, kind: str, status: str, reason: str) -> None:
        """Wait until a condition has this status for this reason."""

        async def look() -> bool:
            cluster = await self._kubectl.json("get", *self._in, "wsc", "tables")
            return any(
                (found["type"], found["status"], found["reason"]) == (kind, status, reason)
                for found in cluster["status"]["conditions"]
            )

        await until(look, what=f"{kind}={status} {reason}")

    async def reasons(self) -> list[str]:
        """Of the Events about the cluster."""
        selector = "--field-selector=involvedObject.kind=WebSocketCluster"
        found = await self._kubectl.json("get", *self._in, "events", selector)
        return [event["reason"] for event in found["items"]]


async def until(look: Callable[[], Awaitable[Found | None]], *, what: str) -> Found:
    """What `look` finds, once it finds something."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not (found := await look()):  # noqa: ASYNC110 - a look at a cluster
                await asyncio.sleep(0.3)
    except TimeoutError:
        raise AssertionError(f"after {PATIENCE_SECONDS:g} s still not: {what}") from None
    return found


@contextlib.asynccontextmanager
async def guests(pod: dict[str, Any], number: int) -> AsyncIterator[None]:
    """So many connections to one pod that say nothing."""
    address = f"ws://{pod['status']['podIP']}:3001/ws"
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(number):
            await stack.enter_async_context(connect(address, proxy=None))
        yield


async def keep_publishing(ledger: Ledger, enough: asyncio.Event) -> None:
    while not enough.is_set():
        await ledger.publish(20, over_seconds=1)


async def test_a_fleet_follows_its_connections_and_nobody_loses_a_message(
    kubectl: Kubectl, namespace: str
) -> None:
    cluster = Cluster(kubectl, namespace)
    await cluster.apply(CLUSTER)
    await cluster.ready()
    url = await cluster.url()
    ((first, pod),) = (await cluster.become(1)).items()
    few = Ledger(url, members=2, rooms=2, seed=1, room_prefix="few", backoff_longest=1.0)
    many = Ledger(url, members=6, rooms=2, seed=2, room_prefix="many", backoff_longest=1.0)
    enough = asyncio.Event()
    async with few, contextlib.AsyncExitStack() as visit:
        # An instance counts as full at 16; with 18 guests and two members the first one has no room left.
        await visit.enter_async_context(guests(pod, CAPACITY - 2))
        (second,) = (await cluster.become(2)).keys() - {first}
        async with many:
            assert set().union(*many.instances.values()) == {second}, "the first one takes nobody"
            publishing = [asyncio.create_task(keep_publishing(ledger, enough)) for ledger in (few, many)]
            await cluster.says("Autoscaled", "True", "Connections")
            await visit.aclose()
            # Two members are left on the first instance, six on the second. A ReplicaSet that knows nothing
            # of them would send the younger one away.
            assert (await cluster.become(1)).keys() == {second}

            async def moved() -> bool:
                return all(second in names for names in few.instances.values())

            await until(moved, what="the first one's members are on the second one")
            await cluster.says("Autoscaled", "True", "WithinLimits")
            enough.set()
            await asyncio.gather(*publishing)
            await few.settle(timeout_seconds=60)
            await many.settle(timeout_seconds=60)
    for ledger in (few, many):
        verdict = ledger.check()
        print(verdict.describe())
        assert not verdict.broken, verdict.describe()
        assert not verdict.unknown
        assert not verdict.resets
        assert verdict.acknowledged >= 20
    assert few.instances == {name: {first, second} for name in few.instances}
    assert many.reconnects == 0
    assert {"FloorRaised", "FloorLowered"} <= set(await cluster.reasons())
