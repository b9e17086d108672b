"""An operator in trouble amid a plan, and a node that is drained, under clients that never stop to talk."""

import asyncio
import json
import signal
import uuid
from base64 import b64decode
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from demo import stage
from demo.kubectl import Kubectl, KubectlError
from devcluster import Devcluster
from tableforge_dataplane.contract.fleet import Shed
from tableforge_operator.observe.fleet import Addressees, FleetReader
from tests.operator.engine.operators import AuditLog, Operator, Operators, service_account_kubeconfig
from tests.support.changes import CYCLES, THRESHOLD, Tables, until
from tests.support.crowd import Crowd

MANY: Final = 32
FEW: Final = 16
PER_SECOND: Final = 1
"""Clients sent elsewhere: so few that a plan with many clients takes longer than another operator to lead."""

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(500)]


@pytest.fixture(scope="module")
def namespace(kubectl: Kubectl) -> Iterator[str]:
    """Where the cluster is that the tests share. The installed operator rests: tests start their own."""
    name = f"troubles-{uuid.uuid4().hex[:8]}"

    async def installed(replicas: int) -> None:
        where = ("-n", stage.OPERATOR_NAMESPACE)
        await kubectl("scale", *where, stage.OPERATOR_DEPLOYMENT, f"--replicas={replicas}")
        await kubectl("rollout", "status", *where, stage.OPERATOR_DEPLOYMENT, "--timeout=110s")
        if not replicas:
            selector = "app.kubernetes.io/component=operator"
            await stage.eventually_empty(kubectl, "pods", *where, "-l", selector, timeout_seconds=120)

    asyncio.run(installed(0))
    asyncio.run(kubectl("create", "namespace", name))
    yield name
    asyncio.run(installed(1))
    asyncio.run(kubectl("delete", "namespace", name, "--wait=false"))


@pytest.fixture(scope="module")
def operator_kubeconfig(
    devcluster: Devcluster, kubectl: Kubectl, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The credentials of the operator's ServiceAccount; `kubectl` has installed it."""
    assert kubectl.kubeconfig == devcluster.kubeconfig
    return service_account_kubeconfig(devcluster, tmp_path_factory.mktemp("operator") / "kubeconfig")


@pytest.fixture
async def operators(operator_kubeconfig: Path, tmp_path: Path, namespace: str) -> AsyncIterator[Operators]:
    """Starts operators: `operator = await operators()`."""
    operators = Operators(operator_kubeconfig, tmp_path, namespace)
    yield operators
    await operators.stop()


@pytest.fixture
async def operator(operators: Operators) -> Operator:
    """One that leads."""
    return await operators()


@pytest.fixture
async def tables(kubectl: Kubectl, namespace: str, operator: Operator) -> Tables:
    """The shared cluster, Ready, with two instances that are open."""
    assert operator.child.returncode is None
    tables = Tables(kubectl, namespace)
    spec = {
        "replicas": 2,
        "auth": {"required": False},
        "redis": {"managed": {"persistence": {"onDelete": "Delete"}}},
        "scaling": {"heartbeatInterval": "3s", "cleanupInterval": "2s"},
        "clustering": {"rebalanceInterval": "10s", "failoverTimeout": "10s", "rebalanceThreshold": THRESHOLD},
        "rollout": {"maxReconnectsPerSecond": PER_SECOND, "drainTimeout": "16s"},
    }
    manifest = {
        "apiVersion": "tableforge.io/v1alpha1",
        "kind": "WebSocketCluster",
        "metadata": {"name": "tables"},
        "spec": spec,
    }
    await tables.apply(json.dumps(manifest))
    await all_open(tables)
    return tables


def crowd(url: str, name: str, *, clients: int = FEW) -> Crowd:
    """Clients in rooms that no other test has."""
    return Crowd(url, clients=clients, rooms=clients, seed=1, per_second=20, room_prefix=name)


async def all_open(tables: Tables) -> None:
    """Wait until the operator keeps new clients from no instance."""

    async def kept() -> object:
        found = await tables.closed(), await tables.shedding()
        return found if any(found) else None

    await until(kept, "all instances are open")


async def to_one_side(tables: Tables) -> tuple[str, str]:
    """Close one instance to new clients; gives those that are open and closed."""
    hot, cold = sorted(await tables.instances())
    await tables.annotate(f"pod/{cold}", "tableforge.io/cordon=true")
    await tables.lead_to({hot})
    assert await tables.closed() == {cold}
    return hot, cold


async def plan_under_way(tables: Tables, crowd: Crowd, hot: str, cold: str, request: str) -> None:
    """Open the closed one, ask for a plan, and wait until it moves clients."""
    assert crowd.connections() == {hot: crowd.size}
    await tables.annotate(f"pod/{cold}", "tableforge.io/cordon-")
    await all_open(tables)
    await tables.annotate("wsc/tables", f"tableforge.io/rebalance={request}")
    await moved(crowd, cold, 2)
    assert await tables.shedding() == {hot}


async def moved(crowd: Crowd, to: str, least: int) -> None:
    """Wait until so many clients are there."""

    async def missing() -> object:
        found = crowd.connections()
        return None if found[to] >= least else found

    await until(missing, f"{least} clients come to {to}")


async def rebalanced(tables: Tables, crowd: Crowd, request: str) -> None:
    """Wait until load is even, and the status says so."""

    async def unsaid() -> object:
        status, spread = await tables.rebalance(), crowd.spread(await tables.instances())
        said = await tables.balanced()
        served = status.get("lastRequest") == request and status.get("phase") == "Idle"
        if served and spread <= THRESHOLD and said == ("True", "WithinThreshold"):
            return None
        return spread, said, status

    await until(unsaid, "load is even, and said to be")
    status = await tables.rebalance()
    assert status["spread"] <= THRESHOLD
    assert status["movesDone"] + status["movesFailed"] <= status["movesPlanned"]


async def lease(kubectl: Kubectl) -> dict[str, Any]:
    found = await kubectl.json("get", "-n", stage.OPERATOR_NAMESPACE, "lease/tableforge-operator")
    spec: dict[str, Any] = found["spec"]
    return spec


async def test_a_leader_that_stands_still_is_replaced_and_comes_too_late(
    kubectl: Kubectl, namespace: str, operators: Operators, operator: Operator, tables: Tables
) -> None:
    other = await operators(leads=False)
    plans = len(await tables.told("RebalanceStarted"))
    hot, cold = await to_one_side(tables)
    async with crowd(await tables.url(), "stopped", clients=MANY) as clients:
        await plan_under_way(tables, clients, hot, cold, "now-stopped")
        before = await lease(kubectl)
        operator.child.send(signal.SIGSTOP)
        assert clients.spread((hot, cold)) > THRESHOLD, "it was over already"
        await other.leading()
        after = await lease(kubectl)
        assert after["leaseTransitions"] > before["leaseTransitions"]
        await rebalanced(tables, clients, "now-stopped")
        await all_open(tables)
        assert len(await tables.told("RebalanceStarted")) - plans <= CYCLES

        # what it would still have said, in its words: nobody listens
        late = Shed(
            fence=before["leaseTransitions"],
            id="late",
            instance=cold,
            connections=clients.connections()[cold],
        )
        where = clients.connections()
        answers = await say(kubectl, namespace, late, await tables.instances())
        assert answers == [(True, after["leaseTransitions"])] * 2
        for name in (hot, cold):
            assert "command_stale" in await kubectl("logs", "-n", namespace, f"pod/{name}")

        operator.child.send(signal.SIGCONT)
        assert await operator.child.ended(60) == 1
        assert "cannot go on" in operator.child.output()
        held = await lease(kubectl)
        assert (held["holderIdentity"], held["leaseTransitions"]) == (
            after["holderIdentity"],
            after["leaseTransitions"],
        )
        await clients.hear(40)
        assert await tables.closed() == await tables.shedding() == set()
        assert clients.connections() == where, "somebody obeyed"
        assert (await other.get("/readyz"))[1] == "leading\n"
    print(clients.judge())
    assert not clients.ledger.reconnects
    assert not clients.hurried(per_second=PER_SECOND)


async def say(
    kubectl: Kubectl, namespace: str, command: Shed, pods: dict[str, Any]
) -> list[tuple[bool, int]]:
    """Give it to each of the instances as an operator does; gives whether it was too late, and the fence."""
    secrets = (await kubectl.json("get", "-n", namespace, "secrets"))["items"]
    (secret,) = (one for one in secrets if one["metadata"]["name"].startswith("tables-fleet-"))
    fleet_key = b64decode(secret["data"]["key"]).decode()
    reader = FleetReader()
    found = []
    try:
        for name, pod in pods.items():
            whom = Addressees(ready=((name, pod["status"]["podIP"]),), waiting=())
            answer = await reader.command(addressees=whom, fleet_key=fleet_key, command=command)
            found.append((answer.stale, answer.fence))
    finally:
        await reader.close()
    return found


async def test_clients_of_an_evicted_pod_are_elsewhere_before_it_ends(
    kubectl: Kubectl, namespace: str, tables: Tables
) -> None:
    async def evict(name: str) -> None:
        """What `kubectl drain` does."""
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
        path = f"/api/v1/namespaces/{namespace}/pods/{name}/eviction"
        await kubectl("create", f"--raw={path}", "--filename=-", stdin=json.dumps(eviction))

    async with crowd(await tables.url(), "evicted") as clients:
        ((victim, _),) = clients.connections().most_common(1)
        (other,) = set(await tables.instances()) - {victim}
        assert clients.connections()[victim] >= FEW / 2
        await evict(victim)
        with pytest.raises(KubectlError, match="disruption budget"):
            await evict(other)
        await stage.eventually_empty(
            *(kubectl, "pods", "-n", namespace, "--field-selector", f"metadata.name={victim}"),
            timeout_seconds=120,
        )
        assert clients.connections()[victim] == 0
        assert clients.connections().total() == FEW, "somebody is nowhere"
        assert not clients.ledger.reconnects, "somebody was still there when it ended"
        await tables.wait("--for=condition=Ready")
        names = set(await tables.instances())
        assert len(names) == 2
        assert other in names
        await clients.hear(40)
    print(clients.judge())
    assert not clients.hurried(per_second=PER_SECOND)


async def test_while_it_is_paused_nothing_is_written_and_afterwards_all_open_again(
    devcluster: Devcluster, namespace: str, operator: Operator, tables: Tables
) -> None:
    audit = AuditLog(devcluster.audit_log, namespace)
    hot, cold = await to_one_side(tables)
    async with crowd(await tables.url(), "paused", clients=MANY) as clients:
        await plan_under_way(tables, clients, hot, cold, "now-paused")
        await tables.annotate("wsc/tables", "tableforge.io/paused=true")

        async def going_on() -> object:
            found = await operator.clusters()
            return None if found == {"Paused": 1} else found

        await until(going_on, "the operator knows that it is paused")
        had = clients.connections()[cold]
        start, commands = audit.position(), await taken(operator)
        async with operator.turning():
            await tables.annotate(f"pod/{cold}", "tableforge.io/cordon=true")
        async with operator.turning():
            await tables.annotate(f"pod/{cold}", "tableforge.io/cordon-")
        assert await tables.closed() == await tables.shedding() == {hot}
        # who was told before goes on
        await moved(clients, cold, had + 2)
        assert (await tables.rebalance())["phase"] == "Rebalancing"
        assert audit.writes(start) == []
        assert await taken(operator) == commands

        await tables.annotate("wsc/tables", "tableforge.io/paused-")
        await all_open(tables)
        assert (await tables.rebalance())["lastRequest"] == "now-paused"
        assert audit.writes(start), "this could not have been seen"
    print(clients.judge())
    assert not clients.ledger.reconnects
    assert not clients.hurried(per_second=PER_SECOND)


async def taken(operator: Operator) -> list[str]:
    """What it counts of its commands."""
    text = (await operator.get("/metrics"))[1]
    found = [line for line in text.splitlines() if line.startswith("tableforge_operator_commands_total")]
    assert found, "no such metric"
    return found
