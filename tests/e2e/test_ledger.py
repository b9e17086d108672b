"""The promise, on a cluster: pods and Redis are killed under four clients in twenty rooms, and every
acknowledged message reaches every member once and in order.

The seed is printed; with `TABLEFORGE_LEDGER_SEED=…` in the environment things break in the same order again.
"""

import asyncio
import os
import random
import time

import pytest

from demo import stage
from demo.kubectl import Kubectl, KubectlError
from demo.screen import DemoError
from tests.support.changes import Tables
from tests.support.ledger import Ledger

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

MESSAGES = 2000
OVER_SECONDS = 60.0
MORE_PER_SECOND = 10.0
"""Beside those, until the last fault is over: however slow the machine, each finds something to lose."""
FAULTS = ["kill a server"] * 3 + ["delete a pod"] * 2 + ["kill Redis", "delete Redis's pod"]


class Breaker:
    """Breaks a cluster called `tables`, one thing after the other, each while publishes are on the way."""

    def __init__(self, kubectl: Kubectl, namespace: str, ledger: Ledger, rng: random.Random) -> None:
        self._kubectl = kubectl
        self._namespace = namespace
        self._ledger = ledger
        self._rng = rng
        self._began = time.monotonic()
        self.done: list[str] = []

    async def run(self) -> None:
        """Every fault once, in an order that the seed decides."""
        for fault in self._rng.sample(FAULTS, len(FAULTS)):
            await asyncio.sleep(self._rng.uniform(1.0, 4.0))
            await self._ledger.busy(at_least=4)
            what = await self._once_it_is_there(fault)
            print(f"{time.monotonic() - self._began:6.2f} s  {fault}: {what}")
            self.done.append(fault)

    async def _once_it_is_there(self, fault: str) -> str:
        """What an earlier fault took may not be back yet, or said to be ready though it isn't."""
        async with asyncio.timeout(120):
            while True:
                try:
                    return await self._break(fault)
                except (DemoError, KubectlError, LookupError) as error:
                    print(f"not yet: {error!r}")
                    await asyncio.sleep(0.5)

    async def _break(self, fault: str) -> str:
        if "Redis" in fault:
            pod = await self._kubectl.json("get", "pod", "-n", self._namespace, "tables-redis-0")
            if fault == "kill Redis":
                return f"pid {stage.kill_redis(pod['status']['podIP'])}"
            await self._delete("tables-redis-0")
            return "tables-redis-0"
        name = self._rng.choice(await self._ready_instances())
        if fault == "kill a server":
            return f"{name}, pid {stage.kill_server(name)}"
        await self._delete(name)
        return name

    async def _ready_instances(self) -> list[str]:
        pods = await self._kubectl.json(
            "get", "pods", "-n", self._namespace, "-l", "app.kubernetes.io/component=dataplane"
        )
        return sorted(
            pod["metadata"]["name"]
            for pod in pods["items"]
            if "deletionTimestamp" not in pod["metadata"]
            and any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"]["conditions"])
        )

    async def _delete(self, pod: str) -> None:
        await self._kubectl("delete", "pod", "-n", self._namespace, pod, "--grace-period=0", "--force")


async def test_no_acknowledged_message_is_lost_doubled_or_out_of_order(
    kubectl: Kubectl, namespace: str
) -> None:
    seed = int(os.environ.get("TABLEFORGE_LEDGER_SEED") or random.SystemRandom().randrange(2**32))
    print(f"seed {seed}")
    await kubectl("apply", "-n", namespace, "-f", str(stage.SAMPLE))
    await kubectl("wait", "-n", namespace, "--for=condition=Ready", "wsc/tables", "--timeout=120s")
    claim = await kubectl.json("get", "-n", namespace, "pvc", "data-tables-redis-0")
    tables = Tables(kubectl, namespace)
    await tables.lead_to(set(await tables.instances()))
    url = await tables.url()

    async with Ledger(url, members=4, rooms=20, seed=seed, burst=8, backoff_longest=2.0) as ledger:
        assert len({name for names in ledger.instances.values() for name in names}) == 3, ledger.instances
        breaker, over = Breaker(kubectl, namespace, ledger, random.Random(seed)), asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(ledger.talk(per_second=MORE_PER_SECOND, until=over))
            publishing = group.create_task(ledger.publish(MESSAGES, over_seconds=OVER_SECONDS))
            await breaker.run()
            await publishing
            over.set()
        await kubectl("wait", "-n", namespace, "--for=condition=Ready", "wsc/tables", "--timeout=120s")
        await ledger.settle(timeout_seconds=60)
    verdict = ledger.check()
    print(f"{len(breaker.done)} faults, {ledger.reconnects} reconnects; {verdict.describe()}")
    assert not verdict.broken, verdict.describe()
    assert not verdict.unknown
    assert not verdict.resets
    assert verdict.acknowledged >= MESSAGES
    assert verdict.deliveries == verdict.acknowledged * 4
    assert len(breaker.done) == len(FAULTS)
    assert ledger.reconnects, "no fault met a client"
    after = await kubectl.json("get", "-n", namespace, "pvc", "data-tables-redis-0")
    assert after["metadata"]["uid"] == claim["metadata"]["uid"], "Redis came back on another claim"
