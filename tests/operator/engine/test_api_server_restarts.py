"""The API server itself is killed and comes back: the operator misses nothing, and does nothing needless.

It goes on, or ends where it could not renew its lease in time; then it is started again, as a kubelet does.
"""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from devcluster.cluster import Devcluster
from tableforge_operator.kube import Kube, Object, resource_of
from tests.operator.engine.clusters import children, external, find, until_condition
from tests.operator.engine.operators import (
    AuditLog,
    Operators,
    install,
    kubectl,
    service_account_kubeconfig,
    until,
)

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

NAMESPACE = "tables"
SERVICES = resource_of("v1", "Service")


@pytest.fixture
async def own(tmp_path: Path) -> AsyncIterator[Devcluster]:
    """A control plane of the test's own: nobody else's is killed."""
    async with Devcluster(agent=False) as cluster:
        await asyncio.to_thread(install, cluster.kubeconfig)
        await asyncio.to_thread(kubectl, cluster.kubeconfig, "create", "namespace", NAMESPACE)
        yield cluster


@pytest.fixture
async def operators(own: Devcluster, tmp_path: Path) -> AsyncIterator[Operators]:
    credentials = await asyncio.to_thread(service_account_kubeconfig, own, tmp_path / "operator.kubeconfig")
    operators = Operators(credentials, tmp_path, NAMESPACE)
    keeping = asyncio.create_task(keep(operators))
    yield operators
    keeping.cancel()
    await asyncio.wait([keeping])
    await operators.stop()


async def keep(operators: Operators) -> None:
    """Start an operator, and another one whenever it ends."""
    while True:
        try:
            operator = await operators(leads=False)
        except AssertionError:
            continue  # it ended before it listened
        while operator.child.returncode is None:  # noqa: ASYNC110  (it doesn't tell)
            await asyncio.sleep(0.1)


def versions(objects: list[Object]) -> dict[str, str]:
    """The version of each object's metadata and spec."""
    return {
        f"{obj['kind']} {obj['metadata']['name']}": str(
            obj["metadata"].get("generation") or obj["metadata"]["resourceVersion"]
        )
        for obj in objects
    }


async def test_a_killed_api_server_costs_no_write_and_hides_no_change(
    own: Devcluster, operators: Operators
) -> None:
    audit = AuditLog(own.audit_log, NAMESPACE)
    async with await Kube.connect(own.kubeconfig) as kube:
        await kube.apply(external(NAMESPACE, replicas=2), field_manager="user", force=True)
        await until_condition(kube, NAMESPACE, "Ready", "False", "RollingOut")
        await still(operators, audit)
        known = versions(await children(kube, NAMESPACE))
    # twice: what was resumed once must be resumable again
    for replicas in (3, 4):
        started, since = len(operators.running), audit.position()
        await own.restart_api_server()
        async with await Kube.connect(own.kubeconfig) as kube:
            # before the operator's watches stand again
            await kube.apply(external(NAMESPACE, replicas=replicas), field_manager="user", force=True)
            service = await kube.get(SERVICES, NAMESPACE, "tables")
            await kube.delete(SERVICES, NAMESPACE, "tables", uid=service["metadata"]["uid"])
            await repaired(kube, replicas)
            await still(operators, audit)
            found = versions(await children(kube, NAMESPACE))
        assert {name for name, _ in found.items() ^ known.items()} == {
            "Deployment tables-a",
            "Service tables",
        }
        if len(operators.running) > started:  # a new one says once what is there already
            ended = [operator for operator in operators.running if operator.child.returncode is not None]
            assert all("could not be renewed in time" in one.child.output() for one in ended)
        else:
            writes = audit.writes(since)
            written = {write for write in writes if not re.search("/status$|^create events/", write)}
            assert written == {"patch deployments/tables-a", "patch services/tables"}
        known = found


async def repaired(kube: Kube, replicas: int) -> None:
    """Wait until the Deployment is of that size and the clients' Service is there."""

    async def look() -> bool:
        deployment = await find(kube, "apps/v1", "Deployment", NAMESPACE, "tables-a")
        service = await find(kube, "v1", "Service", NAMESPACE, "tables")
        return deployment is not None and deployment["spec"]["replicas"] == replicas and service is not None

    await until(look, what=f"{replicas} replicas, and the Service", seconds=120)


async def still(operators: Operators, audit: AuditLog) -> None:
    """Wait for turns without a write."""

    async def look() -> bool:
        operator, since = operators.running[-1], audit.position()
        try:
            async with operator.turning(2):
                pass
        except AssertionError:
            return False  # it has ended
        return operator is operators.running[-1] and not audit.writes(since)

    await until(look, what="turns without a write", seconds=180)
