"""A cluster that is changed and broken under a crowd, and whose load becomes even again."""

import asyncio
import datetime as dt
import json
import math
import os
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import pytest

from demo import stage
from demo.kubectl import Kubectl
from tableforge_client import connect
from tests.support.crowd import Crowd

THRESHOLD: Final = 0.25
"""`clustering.rebalanceThreshold`: what the spread has to come down to, counted at the clients too."""
HEARTBEAT_SECONDS: Final = 3
INTERVAL_SECONDS: Final = 10
READING_SECONDS: Final = 4 * HEARTBEAT_SECONDS
"""How long two readings take at most: each waits for all records, and then for the operator to look."""
PLAN_SECONDS: Final = 8 * HEARTBEAT_SECONDS + 2 * INTERVAL_SECONDS
"""How long one takes at most: eight heartbeats, and twice what as many clients need as an interval bears."""
CYCLES: Final = 2
"""Within so many plans that begin after a change load is even again, whatever it was."""
PLANNED_WITHIN_SECONDS: Final = INTERVAL_SECONDS + PLAN_SECONDS + 3 * READING_SECONDS
"""When the second of two plans begins at the latest: one interval, one plan, the readings before each, and
those of the time before the change was over."""
CHANGE_SECONDS: Final = 90
"""How long a change itself takes at most, until all instances and all clients are there."""
EVEN_WITHIN_SECONDS: Final = CHANGE_SECONDS + PLANNED_WITHIN_SECONDS + PLAN_SECONDS + READING_SECONDS
"""How long from a change until load is even, and said to be."""

FULL: Final = os.environ.get("TABLEFORGE_FAULTS") == "full"
CLIENTS: Final = 600 if FULL else 150
RECONNECTS_PER_SECOND: Final = 40 if FULL else 10
FAULTS: Final = 6 if FULL else 1
"""At each number of instances; the kinds take turns."""
QUICK: Final = {
    "scaling": {"heartbeatInterval": f"{HEARTBEAT_SECONDS}s", "cleanupInterval": "2s"},
    "clustering": {
        "rebalanceInterval": f"{INTERVAL_SECONDS}s",
        "failoverTimeout": "5s",
        "rebalanceThreshold": THRESHOLD,
        # or what one change moved could not move at the next
        "moveCooldown": "1s",
    },
    "rollout": {"maxReconnectsPerSecond": RECONNECTS_PER_SECOND, "drainTimeout": "16s"},
    # so that in the end all of it can be read again
    "rooms": {"logMaxMessages": 100_000, "logMaxBytes": 64 * 1024 * 1024},
}
"""What a cluster that is changed has in its spec."""


class Tables:
    """The cluster `tables`, as kubectl shows it."""

    def __init__(self, kubectl: Kubectl, namespace: str) -> None:
        self._kubectl = kubectl
        self._in = ("-n", namespace)

    async def apply(self, manifest: str) -> None:
        """Apply it, and wait until it is so."""
        await self._kubectl("apply", *self._in, "-f", "-", stdin=manifest)
        await self.wait("--for=condition=Ready")

    async def wait(self, until: str) -> None:
        await self._kubectl("wait", *self._in, until, "wsc/tables", "--timeout=120s", timeout_seconds=130)

    async def patch(self, **spec: Any) -> None:
        await self._kubectl(
            "patch", *self._in, "wsc/tables", "--type=merge", "-p", json.dumps({"spec": spec})
        )

    async def annotate(self, what: str, annotation: str) -> None:
        await self._kubectl("annotate", *self._in, what, annotation, "--overwrite")

    async def scale(self, replicas: int) -> None:
        await self._kubectl("scale", *self._in, "wsc/tables", f"--replicas={replicas}")

    async def url(self) -> str:
        service = await self._kubectl.json("get", *self._in, "service/tables")
        return f"ws://{service['spec']['clusterIP']}:{service['spec']['ports'][0]['port']}/ws"

    async def instances(self) -> dict[str, Any]:
        """The pods that are ready and stay, by name."""
        pods = await self._kubectl.json(
            *("get", "pods", *self._in),
            *("-l", "tableforge.io/cluster=tables,app.kubernetes.io/component=dataplane"),
        )
        return {
            pod["metadata"]["name"]: pod
            for pod in pods["items"]
            if "deletionTimestamp" not in pod["metadata"]
            and any(
                c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", [])
            )
        }

    async def table(self) -> dict[str, Any]:
        """The rows of instances in the status, by name."""
        cluster = await self._kubectl.json("get", *self._in, "wsc/tables")
        return {row["name"]: row for row in cluster["status"]["instanceTable"]}

    async def lead_to(self, instances: set[str]) -> None:
        """Wait until new clients come to each of these, and to no other.

        The Service follows a label some time after the pod has it, and nothing says when. It leads to one
        after the other: so many more than there are instances have seen all.
        """
        url, there_are = await self.url(), len(await self.instances())

        async def others() -> object:
            found: set[str | None] = set()
            for _ in range(2 * there_are):
                async with connect(url) as newcomer:
                    found.add(newcomer.instance)
            return None if found == instances else found

        await until(others, f"new clients come to {sorted(instances)}")

    async def closed(self) -> set[str]:
        """The instances whose label keeps the Service from sending new clients to them."""
        return {
            name
            for name, pod in (await self.instances()).items()
            if pod["metadata"]["labels"]["tableforge.io/accepting"] != "true"
        }

    async def shedding(self) -> set[str]:
        """The instances that the operator, not a person, keeps new clients from."""
        return {
            name
            for name, pod in (await self.instances()).items()
            if "tableforge.io/shedding" in pod["metadata"].get("annotations", {})
        }

    async def rebalance(self) -> dict[str, Any]:
        """`status.rebalance`."""
        cluster = await self._kubectl.json("get", *self._in, "wsc/tables")
        found: dict[str, Any] = cluster.get("status", {}).get("rebalance", {})
        return found

    async def balanced(self) -> tuple[str, str]:
        """Status and reason of the condition `Balanced`."""
        cluster = await self._kubectl.json("get", *self._in, "wsc/tables")
        conditions = cluster.get("status", {}).get("conditions", [])
        found: dict[str, str] = next((one for one in conditions if one["type"] == "Balanced"), {})
        return found.get("status", ""), found.get("reason", "")

    async def told(self, reason: str) -> list[str]:
        """The messages of the Events with that reason, in their order."""
        found = await self._kubectl.json(
            *("get", "events", *self._in),
            *("--field-selector", f"involvedObject.kind=WebSocketCluster,reason={reason}"),
        )
        items = sorted(found["items"], key=lambda item: int(item["metadata"]["resourceVersion"]))
        return [item["message"] for item in items]

    async def delete_pod(self, name: str) -> None:
        await self._kubectl("delete", "pod", *self._in, name, "--grace-period=0", "--force")


async def until(amiss: Callable[[], Awaitable[object]], what: str, *, seconds: float = 120) -> None:
    """Ask again and again what is still amiss, until that is None."""
    found: object = None
    try:
        async with asyncio.timeout(seconds):
            while (found := await amiss()) is not None:  # noqa: ASYNC110  (it is asked, it doesn't tell)
                await asyncio.sleep(0.3)
    except TimeoutError:
        pytest.fail(f"{what}: never so, but {found}")


class Changes:
    """Changes a cluster under a crowd, and waits after each until load is even again."""

    def __init__(self, tables: Tables, crowd: Crowd, rng: random.Random) -> None:
        self._tables = tables
        self._crowd = crowd
        self._rng = rng
        self._pod_next = rng.random() < 0.5
        self._plans_before = 0
        self._what = "the start"

    async def begin(self, what: str) -> None:
        """Say what happens next."""
        self._plans_before = len(await self._tables.told("RebalanceStarted"))
        self._what = what
        print(f"{what}: {dict(self._crowd.connections())}")

    async def break_one(self) -> None:
        """Kill an instance, which one the seed decides: its process and its pod by turns."""
        await asyncio.sleep(self._rng.uniform(0.0, 2.0))
        victim = self._rng.choice(sorted(await self._tables.instances()))
        gone, self._pod_next = self._pod_next, not self._pod_next
        await self.begin(f"the {'pod' if gone else 'server'} of {victim} is killed")
        self._crowd.kill(victim, for_good=gone)
        if gone:
            await self._tables.delete_pod(victim)
        else:
            stage.kill_server(victim)

    async def grow_shrink_and_break(self) -> None:
        """From 3 to 5 and to 2, with faults in the middle of it and afterwards."""
        await self.even(3)
        await self._tables.wait("--for=condition=Balanced")

        await self.begin("from 3 to 5")
        await self._tables.scale(5)
        await self.planning()
        await self.break_one()  # in the middle of it
        await self.even(5)
        for _ in range(FAULTS - 1):
            await self.break_one()
            await self.even(5)

        await self.begin("from 5 to 2")
        await self._tables.scale(2)
        await self.even(2)
        for _ in range(FAULTS):
            await self.break_one()
            await self.even(2)
        await self._tables.wait("--for=condition=Balanced")
        await self._tables.wait("--for=condition=Ready")

    async def planning(self) -> None:
        """Wait until a plan is under way."""

        async def idle() -> object:
            found = await self._tables.rebalance()
            return None if found.get("phase") == "Rebalancing" else found

        await until(idle, f"{self._what}: a plan is under way")

    async def even(self, instances: int, *, led: bool = True) -> None:
        """Wait until so many instances share all clients evenly, and nothing is under way.

        The last plan for it began soon after the change was over: all instances there, and all clients, and
        the operator's readings are of that. But not where nobody led for a while.
        """
        over: float | None = None
        plans_before = self._plans_before

        async def uneven() -> object:
            nonlocal over, plans_before
            ready, found = await self._tables.instances(), self._crowd.connections()
            status = await self._tables.rebalance()
            spread = self._crowd.spread(ready)
            here = sum(found[name] for name in ready)
            if over is None and len(ready) == instances and here == self._crowd.size:
                over = time.time()
            if over is not None and time.time() - over < READING_SECONDS:
                # what begins now is for what was read before
                plans_before = len(await self._tables.told("RebalanceStarted"))
            if (
                len(ready) == instances
                and here == self._crowd.size
                and spread <= THRESHOLD
                and status.get("spread", math.inf) <= THRESHOLD
                and status.get("phase") != "Rebalancing"
            ):
                return None
            return f"spread {spread:.2f}, {dict(found)} on {sorted(ready)}, {status}"

        what = f"{self._what}: {instances} instances share the clients"
        await until(uneven, what, seconds=EVEN_WITHIN_SECONDS)
        plans = (await self._tables.told("RebalanceStarted"))[self._plans_before :]
        print(f"  even again: {dict(self._crowd.connections())}, {len(plans)} plans: {plans}")
        plans = plans[plans_before - self._plans_before :]
        print(f"  {len(plans)} of them began after the change was over")
        for reason in ("RebalanceFinished", "RebalanceStopped"):
            print(f"  {reason}: {await self._tables.told(reason)}")
        assert len(plans) <= CYCLES, f"{self._what}: {plans}"
        assert over is not None
        if plans:
            last = dt.datetime.fromisoformat((await self._tables.rebalance())["lastPlanAt"]).timestamp()
            print(f"  the last one began {last - over:.0f} s after the change was over")
            assert not led or last - over <= PLANNED_WITHIN_SECONDS, self._what
