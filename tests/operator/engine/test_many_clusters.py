"""Many clusters under one operator: none is forgotten, nothing is written twice, no change waits for all.

Counts and their order, no times: `python -m benchmarks.operators` measures those, with 500.
"""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from devcluster.cluster import Devcluster
from tableforge_operator.kube import CLUSTERS, Kube, resource_of
from tableforge_operator.observe.reflector import LABEL_SELECTOR
from tests.operator.engine.clusters import external
from tests.operator.engine.faults import ApiProxy, Fault, is_watch
from tests.operator.engine.operators import AuditLog, Operator, Operators, PatientKube, until

pytestmark = pytest.mark.cluster

NUMBER = 30
KINDS = [
    resource_of(*kind)
    for kind in (
        ("v1", "ConfigMap"),
        ("v1", "Service"),
        ("v1", "ServiceAccount"),
        ("apps/v1", "Deployment"),
        ("policy/v1", "PodDisruptionBudget"),
        ("networking.k8s.io/v1", "NetworkPolicy"),
    )
]
DEPLOYMENTS = resource_of("apps/v1", "Deployment")


@pytest.fixture
async def kube(installed: Devcluster) -> AsyncIterator[Kube]:
    async with await PatientKube.connect(installed.kubeconfig, calls_per_second=10_000) as kube:
        yield kube


@pytest.fixture
async def proxy(operator_kubeconfig: Path) -> AsyncIterator[ApiProxy]:
    async with ApiProxy(operator_kubeconfig) as proxy:
        yield proxy


async def versions(kube: Kube, namespace: str) -> dict[str, str]:
    """The resource version of each child, or the generation where others write its status."""
    found = {}
    for kind in KINDS:
        for obj in (await kube.list(kind, namespace, label_selector=LABEL_SELECTOR))[0]:
            metadata = obj["metadata"]
            version = str(metadata.get("generation") or metadata["resourceVersion"])
            found[f"{obj['kind']} {metadata['name']}"] = version
    return found


async def judged(kube: Kube, namespace: str) -> bool:
    clusters, _ = await kube.list(CLUSTERS, namespace)
    return len(clusters) == NUMBER and all(
        cluster.get("status", {}).get("observedGeneration") == cluster["metadata"]["generation"]
        and cluster["status"].get("conditions")
        for cluster in clusters
    )


async def idle(operator: Operator, audit: AuditLog) -> None:
    """As many turns as there are clusters go by without a write."""

    async def look() -> bool:
        since = audit.position()
        async with operator.turning(NUMBER):
            pass
        return not audit.writes(since)

    await until(look, what="nothing is written any more", seconds=240)


async def test_thirty_clusters_are_made_left_alone_and_adopted_while_one_that_changes_goes_first(
    kube: Kube, namespace: str, operator_kubeconfig: Path, proxy: ApiProxy, tmp_path: Path, audit: AuditLog
) -> None:
    operators = Operators(proxy.kubeconfig(tmp_path / "proxied"), tmp_path, namespace)
    try:
        first = await operators()

        async def make(number: int) -> None:
            obj = external(namespace, replicas=0)
            obj["metadata"]["name"] = f"tables-{number}"
            await kube.apply(obj, field_manager="user", force=True)

        await asyncio.gather(*(make(number) for number in range(NUMBER)))

        async def all_judged() -> bool:
            return await judged(kube, namespace)

        await until(all_judged, what="every cluster has its verdict", seconds=240)
        await idle(first, audit)
        children = await versions(kube, namespace)
        per_cluster, rest = divmod(len(children), NUMBER)
        assert (rest, per_cluster >= 8) == (0, True)
        writes = [write for write in audit.writes(0) if "events" not in write and "status" not in write]
        assert len(writes) == NUMBER * (per_cluster + 1), "each child and its Secret once"

        await first.child.stop()
        since = audit.position()
        # Those that are adopted take so long that the change below comes in the middle of it.
        others = re.compile("/tables-(?!7[/-])")
        slow = Fault(
            lambda r: r.method == "PATCH" and not is_watch(r) and others.search(r.path) is not None,
            delay_seconds=0.5,
        )
        proxy.inject(slow)
        second = await operators()
        await kube.merge(CLUSTERS, namespace, "tables-7", {"spec": {"replicas": 1}}, field_manager="user")

        async def scaled() -> bool:
            return bool((await kube.get(DEPLOYMENTS, namespace, "tables-7-a"))["spec"]["replicas"] == 1)

        await until(scaled, what="the one that changed is as asked for")
        adopted = len({write for write in audit.writes(since) if write.startswith("patch ")})
        assert adopted < len(children) / 2, "the others were still on their way"
        proxy.remove(slow)
        await idle(second, audit)
        applied = [
            write for write in audit.writes(since) if write.startswith("patch ") and "status" not in write
        ]
        assert len(set(applied)) == len(children)
        # The changed one's Deployment was perhaps adopted before it was changed.
        assert len(applied) <= len(children) + 1, "each child is applied once"
        after = await versions(kube, namespace)
        changed = {name for name in children if after[name] != children[name]}
        assert changed == {"Deployment tables-7-a"}, "adopting changes nothing"
        assert sum((await second.clusters()).values()) == NUMBER
    finally:
        await operators.stop()
