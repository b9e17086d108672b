"""The operator, under its own rights, behind an API server that misbehaves."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from devcluster.cluster import Devcluster
from tableforge_operator.__main__ import LEASE_NAME
from tableforge_operator.kube import CLUSTERS, LEASES, Kube, resource_of
from tests.operator.engine.clusters import environments, external, find, until_condition
from tests.operator.engine.faults import ApiProxy, Fault, injected, is_watch, is_write, of
from tests.operator.engine.operators import SYSTEM_NAMESPACE, AuditLog, Operator, Operators, kubectl, until

pytestmark = pytest.mark.cluster

SERVICES = resource_of("v1", "Service")


@pytest.fixture
async def proxy(operator_kubeconfig: Path) -> AsyncIterator[ApiProxy]:
    async with ApiProxy(operator_kubeconfig) as proxy:
        yield proxy


@pytest.fixture
async def operators(proxy: ApiProxy, tmp_path: Path, namespace: str) -> AsyncIterator[Operators]:
    """Operators that reach the API server through the proxy."""
    operators = Operators(proxy.kubeconfig(tmp_path / "proxied"), tmp_path, namespace)
    yield operators
    await operators.stop()


async def counted(operator: Operator, name: str, **labels: str) -> float:
    """The sum of a metric over the series with these labels."""
    text = (await operator.get("/metrics"))[1]
    found = re.findall(rf"^{name}(?:\{{(.*)\}})? (\S+)$", text, re.MULTILINE)
    return sum(
        float(value)
        for given, value in found
        if all(f'{label}="{wanted}"' in given for label, wanted in labels.items())
    )


async def made(kube: Kube, namespace: str) -> None:
    """Wait until everything was applied and the status says that the instances are what it waits for."""
    await until_condition(kube, namespace, "Ready", "False", "RollingOut")


async def scaled(kube: Kube, namespace: str, replicas: int) -> None:
    """Wait until the Deployment is of that size."""

    async def look() -> bool:
        found = await find(kube, "apps/v1", "Deployment", namespace, "tables-a")
        return found is not None and found["spec"]["replicas"] == replicas

    await until(look, what=f"{replicas} replicas")


async def settled_and_idle(operator: Operator, audit: AuditLog) -> None:
    """Turns go by without a write."""

    async def look() -> bool:
        since = audit.position()
        async with operator.turning():
            pass
        return not audit.writes(since)

    await until(look, what="turns without a write")


async def test_conflicts_answers_that_are_lost_and_server_errors_end_in_the_same_objects(
    kube: Kube, namespace: str, operators: Operators, proxy: ApiProxy, audit: AuditLog
) -> None:
    # The very first write, of the master key, is only made once in the life of a Kubernetes cluster.
    key_lost = Fault(lambda r: "/tableforge-system/secrets" in r.path, lose_answer=True, times=1)
    faults = [
        Fault(lambda r: is_write(r) and of("services")(r), status=409, reason="Conflict", times=2),
        Fault(lambda r: is_write(r) and of("configmaps")(r), status=500, reason="InternalError", times=1),
        Fault(lambda r: is_write(r) and of("deployments")(r), lose_answer=True, times=1),
        Fault(lambda r: is_write(r) and f"/{namespace}/secrets" in r.path, lose_answer=True, times=1),
        Fault(lambda r: is_write(r) and of("serviceaccounts")(r), status=503, times=1),
        Fault(lambda r: is_write(r) and of("status")(r), status=409, reason="Conflict", times=1),
    ]
    for fault in (*faults, key_lost):
        proxy.inject(fault)
    operator = await operators()
    await kube.apply(external(namespace), field_manager="user", force=True)
    await made(kube, namespace)
    for fault in faults:
        await proxy.hit(fault, fault.times or 1)
    await until_condition(kube, namespace, "Ready", "False", "RollingOut")
    await settled_and_idle(operator, audit)
    secrets, _ = await kube.list(resource_of("v1", "Secret"), namespace)
    assert len({secret["metadata"]["name"] for secret in secrets}) == len(secrets) == 1
    assert await counted(operator, "tableforge_operator_reconcile_errors_total") >= 4


async def test_too_many_requests_are_left_off_for_as_long_as_the_api_server_says(
    kube: Kube, namespace: str, operators: Operators, proxy: ApiProxy, audit: AuditLog
) -> None:
    operator = await operators()
    await kube.apply(external(namespace), field_manager="user", force=True)
    await made(kube, namespace)
    await settled_and_idle(operator, audit)
    loop = asyncio.get_running_loop()
    seen: list[float] = []

    def noted(request: Any) -> bool:
        if is_watch(request) or "/leases" in request.path or "websocketclusters" not in request.path:
            return False
        seen.append(loop.time())
        return True

    fault = Fault(noted, status=429, reason="TooManyRequests", headers={"Retry-After": "3"}, times=2)
    async with injected(proxy, fault):
        patch = {"metadata": {"annotations": {"touched": "yes"}}, "spec": {"replicas": 2}}
        await kube.merge(CLUSTERS, namespace, "tables", patch, field_manager="user")
        await proxy.hit(fault, 2)

        await scaled(kube, namespace, 2)
    assert len(seen) >= 3
    assert seen[1] - seen[0] >= 3
    assert seen[2] - seen[1] >= 3
    assert (await operator.get("/healthz"))[0] == 200, "the lease is renewed meanwhile"


async def test_watches_that_break_and_expire_lose_nothing(
    kube: Kube, namespace: str, operators: Operators, proxy: ApiProxy, audit: AuditLog
) -> None:
    operator = await operators()
    await kube.apply(external(namespace), field_manager="user", force=True)
    await made(kube, namespace)
    await settled_and_idle(operator, audit)

    # A gap: the watches are gone and don't come back; meanwhile somebody deletes a child and edits another.
    gap = proxy.inject(Fault(is_watch, status=503, reason="ServiceUnavailable"))
    assert proxy.cut_watches() >= 7
    await proxy.hit(gap, 3)
    service = await kube.get(SERVICES, namespace, "tables")
    await kube.delete(SERVICES, namespace, "tables", uid=service["metadata"]["uid"])
    taken = {"metadata": {"labels": {"app.kubernetes.io/name": "other"}}}
    (config,) = await environments(kube, namespace)
    name = config["metadata"]["name"]
    await kube.merge(resource_of("v1", "ConfigMap"), namespace, name, taken, field_manager="eve")
    await kube.merge(CLUSTERS, namespace, "tables", {"spec": {"replicas": 2}}, field_manager="user")
    proxy.remove(gap)

    async def mended() -> bool:
        deployment = await find(kube, "apps/v1", "Deployment", namespace, "tables-a")
        config = await find(kube, "v1", "ConfigMap", namespace, name)
        return (
            await find(kube, "v1", "Service", namespace, "tables") is not None
            and deployment is not None
            and deployment["spec"]["replicas"] == 2
            and config is not None
            and config["metadata"]["labels"]["app.kubernetes.io/name"] == "tableforge"
        )

    await until(mended, what="the gap is made up for")
    await settled_and_idle(operator, audit)

    # Expiry: 410 in the stream. What happened is found by listing anew.
    before = await counted(operator, "tableforge_operator_watch_restarts_total", reason="gone")
    assert proxy.expire_watches(lambda request: True) >= 7
    service = await kube.get(SERVICES, namespace, "tables")
    await kube.delete(SERVICES, namespace, "tables", uid=service["metadata"]["uid"])
    await kube.merge(CLUSTERS, namespace, "tables", {"spec": {"replicas": 3}}, field_manager="user")

    async def again() -> bool:
        deployment = await find(kube, "apps/v1", "Deployment", namespace, "tables-a")
        return (
            await find(kube, "v1", "Service", namespace, "tables") is not None
            and deployment is not None
            and deployment["spec"]["replicas"] == 3
        )

    await until(again, what="the expiry is made up for")
    assert await counted(operator, "tableforge_operator_watch_restarts_total", reason="gone") > before


async def test_slow_answers_delay_and_cost_nothing_else(
    kube: Kube, namespace: str, operators: Operators, proxy: ApiProxy, audit: AuditLog
) -> None:
    slow = Fault(lambda r: not is_watch(r) and "/leases" not in r.path, delay_seconds=0.2)
    # One that is never answered is given up after ten seconds and asked again.
    hung = Fault(lambda r: is_write(r) and of("deployments")(r), delay_seconds=3600, times=1)
    proxy.inject(slow)
    proxy.inject(hung)
    operator = await operators()
    await kube.apply(external(namespace), field_manager="user", force=True)
    await made(kube, namespace)
    assert hung.hits == 1
    proxy.remove(slow)
    await settled_and_idle(operator, audit)
    assert (await operator.get("/healthz"))[0] == 200
    assert await counted(operator, "tableforge_operator_api_calls_total", verb="apply", code="0") >= 1


async def test_a_right_that_is_lost_and_given_back_heals_by_itself(
    kube: Kube, namespace: str, operators: Operators, proxy: ApiProxy, audit: AuditLog
) -> None:
    operator = await operators()
    lost = Fault(lambda r: is_write(r) and of("services")(r), status=403, reason="Forbidden")
    async with injected(proxy, lost):
        await kube.apply(external(namespace), field_manager="user", force=True)
        await until_condition(kube, namespace, "Ready", "False", "Forbidden")
        assert await find(kube, "apps/v1", "Deployment", namespace, "tables-a"), (
            "others are made all the same"
        )
        assert not await find(kube, "v1", "Service", namespace, "tables")
    await made(kube, namespace)
    # Credentials that are refused for a moment, for all that there is.
    refused = Fault(lambda r: "/leases" not in r.path, status=401, reason="Unauthorized")
    async with injected(proxy, refused):
        proxy.cut_watches()
        await proxy.hit(refused, 10)
    await kube.merge(CLUSTERS, namespace, "tables", {"spec": {"replicas": 2}}, field_manager="user")

    await scaled(kube, namespace, 2)
    await settled_and_idle(operator, audit)


async def test_a_lost_right_to_watch_clusters_is_told_by_the_metric_for_as_long_as_it_lasts(
    kube: Kube, namespace: str, operators: Operators, proxy: ApiProxy
) -> None:
    operator = await operators()
    await kube.apply(external(namespace), field_manager="user", force=True)
    await made(kube, namespace)

    async def watched(wanted: float) -> None:
        async def look() -> bool:
            text = (await operator.get("/metrics"))[1]
            return f'watch_up{{namespace="{namespace}",resource="websocketclusters"}} {wanted}' in text

        await until(look, what=f"the watch of clusters is {wanted}")

    await watched(1.0)
    # They may still be listed, which does not make them watched.
    lost = Fault(lambda r: is_watch(r) and of("websocketclusters")(r), status=403, reason="Forbidden")
    async with injected(proxy, lost):
        proxy.cut_watches(of("websocketclusters"))
        # Each start of kopf tries three times.
        await proxy.hit(lost, 7)
        await watched(0.0)
        log = operator.child.log.read_text()
        assert log.count(f'"event": "cannot watch", "resource": "websocketclusters in {namespace}"') == 1
        assert '"event": "watch restored"' not in log
    await watched(1.0)
    await kube.merge(CLUSTERS, namespace, "tables", {"spec": {"replicas": 2}}, field_manager="user")
    await scaled(kube, namespace, 2)


async def test_a_namespace_that_is_deleted_under_it_costs_no_other_cluster(
    kube: Kube, namespace: str, operators: Operators, proxy: ApiProxy, installed: Devcluster
) -> None:
    doomed = f"{namespace}-doomed"
    kubectl(installed.kubeconfig, "create", "namespace", doomed)
    operator = await operators(also=[doomed])
    await kube.apply(external(namespace), field_manager="user", force=True)
    await made(kube, namespace)
    # Slow enough that the deletion comes in the middle of a creation.
    slow = proxy.inject(Fault(lambda r: is_write(r) and doomed in r.path, delay_seconds=0.3))
    await kube.apply(external(doomed), field_manager="user", force=True)
    await proxy.hit(slow, 3)
    kubectl(installed.kubeconfig, "delete", "namespace", doomed, "--wait=false")

    async def gone() -> bool:
        return doomed not in kubectl(installed.kubeconfig, "get", "namespaces", "-o", "name")

    await until(gone, what="the namespace is gone")
    await kube.merge(CLUSTERS, namespace, "tables", {"spec": {"replicas": 2}}, field_manager="user")
    await scaled(kube, namespace, 2)

    async def forgotten() -> bool:
        return sum((await operator.clusters()).values()) == 1

    await until(forgotten, what="its cluster is forgotten")
    assert '"event": "reconcile failed"' not in operator.child.log.read_text()


async def test_an_api_server_that_is_away_for_a_moment_costs_nothing(
    kube: Kube, namespace: str, operators: Operators, proxy: ApiProxy, audit: AuditLog
) -> None:
    operator = await operators()
    await kube.apply(external(namespace), field_manager="user", force=True)
    await made(kube, namespace)
    # It sees nothing of this; but its lease, which a moment is shorter than, is renewed until then.
    busy = Fault(lambda r: "/leases" not in r.path, status=503, reason="ServiceUnavailable")
    gap = proxy.inject(busy)
    proxy.cut_watches()
    await proxy.hit(gap, 3)
    await kube.merge(CLUSTERS, namespace, "tables", {"spec": {"replicas": 2}}, field_manager="user")
    service = await kube.get(SERVICES, namespace, "tables")
    await kube.delete(SERVICES, namespace, "tables", uid=service["metadata"]["uid"])
    calls = "tableforge_operator_api_calls_total"
    before = await counted(operator, calls, code="0")
    await proxy.__aexit__()

    async def missed() -> bool:
        return await counted(operator, calls, code="0") >= before + 3

    await until(missed, what="the operator has missed it")
    proxy.remove(gap)
    await proxy.__aenter__()
    await scaled(kube, namespace, 2)

    async def again() -> bool:
        return await find(kube, "v1", "Service", namespace, "tables") is not None

    await until(again, what="what was deleted meanwhile is there again")
    await settled_and_idle(operator, audit)
    assert operator.child.returncode is None, "the same process"


async def test_who_cannot_renew_the_lease_ends_and_the_next_one_goes_on(
    kube: Kube, namespace: str, operators: Operators, proxy: ApiProxy
) -> None:
    operator = await operators()
    await kube.apply(external(namespace), field_manager="user", force=True)
    await made(kube, namespace)
    async with injected(proxy, Fault(lambda r: "/leases" in r.path, status=500)):
        assert await operator.child.ended(60) == 1
    assert "the lease could not be renewed in time" in operator.child.output()
    await operators()
    await kube.merge(CLUSTERS, namespace, "tables", {"spec": {"replicas": 2}}, field_manager="user")
    await scaled(kube, namespace, 2)


async def test_the_lease_is_held_and_can_be_lost_while_the_master_key_is_fetched(
    kube: Kube, operators: Operators, proxy: ApiProxy
) -> None:
    async def lease() -> Any:
        return (await kube.get(LEASES, SYSTEM_NAMESPACE, LEASE_NAME))["spec"]

    patience = {"Retry-After": "60"}
    fault = Fault(lambda r: f"/{SYSTEM_NAMESPACE}/secrets" in r.path, status=429, headers=patience)
    async with injected(proxy, fault):
        operator = await operators(leads=False)
        await proxy.hit(fault)
        first = await lease()

        async def renewed() -> bool:
            now = await lease()
            return now["holderIdentity"] == first["holderIdentity"] and now["renewTime"] > first["renewTime"]

        await until(renewed, what="the lease is renewed")
        taken = {"spec": {"holderIdentity": "another", "leaseDurationSeconds": 1}}
        await kube.merge(LEASES, SYSTEM_NAMESPACE, LEASE_NAME, taken, field_manager="user")
        assert await operator.child.ended(45) == 1
    assert "another operator holds the lease" in operator.child.output()
    assert fault.hits == 1
