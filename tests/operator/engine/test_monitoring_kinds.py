"""PodMonitor and PrometheusRule come and go with the Prometheus operator's CRDs (its real ones) and the spec.

The CRDs are there for this test alone: every other one runs without them, which is no error either.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from devcluster.cluster import Devcluster
from tableforge_operator.kube import Kube, resource_of
from tests.operator.engine.clusters import condition, created, events, external, find, settled
from tests.operator.engine.operators import REPOSITORY, AuditLog, Operator, Operators, kubectl, until

pytestmark = pytest.mark.cluster

CRDS = Path(__file__).parents[1] / "prometheus_operator"
GROUP = "monitoring.coreos.com/v1"


@pytest.fixture
def kubeconfig(installed: Devcluster) -> Iterator[Path]:
    yield installed.kubeconfig
    kubectl(installed.kubeconfig, "delete", "--ignore-not-found", "-f", str(CRDS), most_seconds=240)


async def test_they_come_and_go_with_their_crds_and_with_the_spec(
    kube: Kube, namespace: str, operators: Operators, audit: AuditLog, kubeconfig: Path
) -> None:
    async def there() -> set[str]:
        kinds = ("PodMonitor", "PrometheusRule")
        return {kind for kind in kinds if await find(kube, GROUP, kind, namespace, "tables") is not None}

    operator = await operators()
    start = audit.position()
    await kube.apply(external(namespace), field_manager="user", force=True)
    await created(kube, namespace)
    async with operator.turning():
        pass
    assert not [write for write in audit.writes(start) if "podmonitor" in write or "prometheusrule" in write]
    assert "unnoticed" not in (await condition(kube, namespace, "Ready"))["message"]
    assert 'resource="podmonitors"' not in (await _watch_up(operator))

    kubectl(kubeconfig, "apply", "--server-side", "-f", str(CRDS))

    async def both() -> bool:
        return await there() == {"PodMonitor", "PrometheusRule"}

    await until(both, what="both are there")
    rule = await find(kube, GROUP, "PrometheusRule", namespace, "tables")
    assert rule is not None
    assert f"{namespace}/tables" in rule["spec"]["groups"][0]["rules"][0]["annotations"]["summary"]
    assert rule["metadata"]["ownerReferences"][0]["kind"] == "WebSocketCluster"
    kubectl(
        kubeconfig,
        "apply",
        "--server-side",
        "--dry-run=server",
        "-k",
        str(REPOSITORY / "manifests/monitoring"),
    )
    await settled(kube, namespace, operator, audit)  # unchanged, they cost nothing

    for kind in ("PodMonitor", "PrometheusRule"):
        found = await find(kube, GROUP, kind, namespace, "tables")
        assert found is not None
        uid = found["metadata"]["uid"]
        await kube.delete(resource_of(GROUP, kind), namespace, "tables", uid=uid)

        async def again(kind: str = kind, uid: str = uid) -> bool:
            found = await find(kube, GROUP, kind, namespace, "tables")
            return found is not None and found["metadata"]["uid"] != uid

        await until(again, what=f"the {kind} that somebody deleted is there again")

    off = {"monitoring": {"podMonitor": {"enabled": False}}}
    await kube.apply(external(namespace, **off), field_manager="user", force=True)

    async def without_monitor() -> bool:
        return await there() == {"PrometheusRule"}

    await until(without_monitor, what="the PodMonitor is gone")

    kubectl(kubeconfig, "delete", "-f", str(CRDS), most_seconds=240)

    async def noticed() -> bool:
        return 'resource="prometheusrules"' not in await _watch_up(operator)

    await until(noticed, what="the operator knows that the kind is gone")
    async with operator.turning():
        pass
    assert "NotReady" not in [reason for reason, _ in await events(kube, namespace)]
    found = await condition(kube, namespace, "Ready")
    assert found["reason"] == "RollingOut", "what it has always waited for here, and nothing else"
    assert "unnoticed" not in found["message"]


async def _watch_up(operator: Operator) -> str:
    _, text = await operator.get("/metrics")
    return "\n".join(line for line in text.splitlines() if line.startswith("tableforge_operator_watch_up{"))
