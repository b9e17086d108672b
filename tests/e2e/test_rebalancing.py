"""Load is kept even on a cluster that grows, shrinks and breaks, under clients that never stop to talk.

What breaks and when is drawn from a seed that is printed; `TABLEFORGE_FAULTS_SEED=…` gives the same again,
`TABLEFORGE_FAULTS=full` a larger crowd and more faults.
"""

import asyncio
import contextlib
import functools
import json
import os
import random
from typing import Any, Final

import pytest

from demo import stage
from demo.kubectl import Kubectl
from tableforge_client import Client, connect
from tests.support.changes import (
    CLIENTS,
    FULL,
    QUICK,
    RECONNECTS_PER_SECOND,
    Changes,
    Tables,
    until,
)
from tests.support.crowd import Crowd

USUAL_THRESHOLD: Final = 0.3
"""`clustering.rebalanceThreshold` where nobody sets it."""

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3600 if FULL else 500)]


def manifest(**spec: Any) -> str:
    """Three instances called `tables`, quick to notice things."""
    return json.dumps(
        {
            "apiVersion": "tableforge.io/v1alpha1",
            "kind": "WebSocketCluster",
            "metadata": {"name": "tables"},
            "spec": {
                "replicas": 3,
                "auth": {"required": False},
                "redis": {"managed": {"persistence": {"onDelete": "Delete"}}},
                "scaling": {"heartbeatInterval": "3s", "cleanupInterval": "2s"},
                **spec,
            },
        }
    )


async def test_load_stays_even_while_the_fleet_grows_shrinks_and_breaks(
    kubectl: Kubectl, namespace: str
) -> None:
    seed = int(os.environ.get("TABLEFORGE_FAULTS_SEED") or random.SystemRandom().randrange(2**32))
    print(f"TABLEFORGE_FAULTS_SEED={seed}")
    tables = Tables(kubectl, namespace)
    await tables.apply(manifest(**QUICK))
    async with Crowd(await tables.url(), clients=CLIENTS, rooms=300, seed=seed, per_second=40) as crowd:
        await Changes(tables, crowd, random.Random(seed)).grow_shrink_and_break()
    crowd.judge_moves(per_second=RECONNECTS_PER_SECOND)
    for message in await tables.told("RebalanceFinished"):
        print(message)


def named(clients: list[Client], instance: str) -> list[Client]:
    """Those that are connected there."""
    return [client for client in clients if client.instance == instance]


async def test_what_people_ask_of_it_is_done_and_said(kubectl: Kubectl, namespace: str) -> None:
    tables = Tables(kubectl, namespace)
    per_second = 1
    await tables.apply(
        manifest(
            # so that nothing happens but what is asked for
            clustering={"rebalanceInterval": "1h", "failoverTimeout": "10s"},
            rollout={"maxReconnectsPerSecond": per_second, "drainTimeout": "5s"},
        )
    )
    url = await tables.url()
    everyone = set(await tables.instances())
    cold = min(everyone)
    pod = f"pod/{cold}"

    async def closed() -> object:
        return await tables.closed() or None

    async def served(request: str) -> object:
        found = await tables.rebalance()
        return None if found.get("lastRequest") == request and found.get("phase") != "Rebalancing" else found

    async with connect(url) as ada, connect(url) as ben, connect(url) as cleo:
        (there,) = named([ada, ben, cleo], cold)
        session = there.session
        await tables.annotate(pod, "tableforge.io/cordon=true")
        await tables.lead_to(everyone - {cold})

        async def shown() -> object:
            rows = await tables.table()
            return None if {name for name, row in rows.items() if not row["accepting"]} == {cold} else rows

        await until(shown, "the status says so")
        async with Crowd(url, clients=60, rooms=30, seed=1, per_second=20) as crowd:
            assert crowd.connections()[cold] == 0, "a new client came to a cordoned instance"
            assert there.session == session, "who was there stays"
            await tables.annotate(pod, "tableforge.io/cordon-")
            await tables.lead_to(everyone)

            async def counted() -> object:
                here = crowd.connections()
                rows = await tables.table()
                wrong = {
                    name: row
                    for name, row in rows.items()
                    if abs(here[name] + len(named([ada, ben, cleo], name)) - row["connections"])
                    > 0.05 * row["connections"]
                }
                return wrong or None

            await until(counted, "the status has each instance's clients")
            rows = list((await tables.table()).values())
            assert {row["name"] for row in rows} == set(await tables.instances())
            assert rows[-1]["name"] == cold, "the fullest first"
            assert all(row["ready"] and row["track"] == "a" and not row["draining"] for row in rows)

            # load is uneven, and said to be, and left so for an hour
            await tables.wait("--for=condition=Balanced=False")
            assert (await tables.balanced())[1] == "AboveThreshold"
            assert (await tables.rebalance())["phase"] == "Idle"
            assert await tables.told("RebalanceStarted") == []

            async def moving(least: int) -> object:
                found = crowd.connections()[cold]
                return None if found >= least else (found, await tables.rebalance())

            # asked for, and switched off in the middle
            await tables.annotate("wsc/tables", "tableforge.io/rebalance=now")
            await until(lambda: moving(3), "clients move at once")
            status, balanced, shedding, kept = await asyncio.gather(
                tables.rebalance(), tables.balanced(), tables.shedding(), tables.closed()
            )
            assert status["phase"] == "Rebalancing"
            assert status["lastRequest"] == "now"
            assert balanced == ("False", "Rebalancing")
            assert shedding == kept == everyone - {cold}
            await tables.patch(clustering={"enableLoadRebalancing": False})
            await tables.wait("--for=jsonpath={.status.rebalance.phase}=Stopped")
            await until(closed, "all are open again")
            assert await tables.shedding() == set()
            assert await tables.balanced() == ("Unknown", "Disabled")
            assert len(await tables.told("RebalanceStopped")) == 1
            moved = crowd.connections()[cold]
            await crowd.hear(200)
            # who was told before may still have followed
            assert crowd.connections()[cold] <= moved + 3 * per_second
            assert crowd.spread(await tables.instances()) > USUAL_THRESHOLD, "it went on to its end"

            # the operator dies in the middle
            await tables.patch(clustering={"enableLoadRebalancing": True})
            await tables.annotate("wsc/tables", "tableforge.io/rebalance=now-2")
            moved = crowd.connections()[cold]
            await until(lambda: moving(moved + 2), "clients move at once")
            assert await tables.shedding()
            await kubectl(
                *("delete", "pod", "-n", stage.OPERATOR_NAMESPACE),
                *("-l", "app.kubernetes.io/component=operator", "--grace-period=0", "--force"),
            )
            await until(closed, "the next operator opens what nobody remembers")
            assert await tables.shedding() == set()
            assert (await tables.rebalance())["lastRequest"] == "now-2"

            # and the next one makes it even; what the last one ordered may still go on meanwhile
            for request in ("now-3", "now-4", "now-5"):
                await tables.annotate("wsc/tables", f"tableforge.io/rebalance={request}")
                await until(functools.partial(served, request), f"{request} is served")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(20):
                        while await tables.balanced() != ("True", "WithinThreshold"):  # noqa: ASYNC110
                            await asyncio.sleep(0.3)  # (kubectl is asked, it doesn't tell)
                if (await tables.balanced())[0] == "True":
                    break
            assert await tables.balanced() == ("True", "WithinThreshold"), await tables.rebalance()
            # it counts three more clients than the crowd does
            assert crowd.spread(await tables.instances()) <= USUAL_THRESHOLD + 3 / (crowd.size / 3)
            assert there.session == session, "nobody had to leave the idle one"
        print(crowd.judge())
        assert not crowd.hurried(per_second=per_second)
