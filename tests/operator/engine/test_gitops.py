"""What a GitOps tool applied stays as it applied it: the operator and others keep off each other's fields."""

import json
from pathlib import Path

import pytest

from devcluster.cluster import Devcluster
from tableforge_operator.kube import CLUSTERS, Kube, Object, resource_of
from tests.operator.engine.clusters import children, created, external
from tests.operator.engine.operators import REPOSITORY, AuditLog, Operators, kubectl, until

pytestmark = pytest.mark.cluster

SAMPLES = sorted((REPOSITORY / "manifests" / "samples").glob("*.yaml"))
TRACKING = "argocd.argoproj.io/tracking-id"


def owned_by(manager: str, obj: Object) -> set[str]:
    """In which top-level fields the manager (or one of which that is the name's beginning) owns something."""
    return {
        field.removeprefix("f:")
        for entry in obj["metadata"]["managedFields"]
        if entry["manager"].startswith(manager)
        for field in entry["fieldsV1"]
    }


async def test_samples_show_no_difference_before_and_after_the_operators_work(
    kube: Kube, namespace: str, operators: Operators, installed: Devcluster, tmp_path: Path
) -> None:
    # one directory and one call: kubectl's start is what takes long
    for sample in SAMPLES:
        (tmp_path / sample.name).write_text(sample.read_text())
    folder = ("-n", namespace, "-f", str(tmp_path))
    kubectl(installed.kubeconfig, "apply", *folder)
    assert kubectl(installed.kubeconfig, "diff", *folder) == ""
    operator = await operators()

    async def all_seen() -> bool:
        found, _ = await kube.list(CLUSTERS, namespace)
        assert len(found) == len(SAMPLES)
        return all(cluster["status"].get("conditions") for cluster in found)

    await until(all_seen, what="every sample has conditions")
    async with operator.turning(2 * len(SAMPLES)):
        pass
    assert kubectl(installed.kubeconfig, "diff", *folder) == ""
    # the same as a tool with server-side apply sees it, whatever manager wrote it first
    again = ("--server-side", "--force-conflicts", "--field-manager=kustomize-controller")
    assert kubectl(installed.kubeconfig, "diff", *again, *folder) == ""


async def test_what_other_managers_add_stays_and_costs_no_write(
    kube: Kube, namespace: str, operators: Operators, audit: AuditLog
) -> None:
    first = await operators()
    wanted = external(namespace)
    wanted["metadata"] |= {
        "labels": {"app.kubernetes.io/instance": "tables-app", "team": "games"},
        "annotations": {TRACKING: f"tables-app:tableforge.io/WebSocketCluster:{namespace}/tables"},
    }
    await kube.apply(wanted, field_manager="argocd-controller", force=False)
    found = await created(kube, namespace)
    for child in found:
        mine = json.dumps({part: child["metadata"].get(part) for part in ("labels", "annotations")})
        assert "tables-app" not in mine
        assert "games" not in mine

    async with first.turning(2):
        pass
    start = audit.position()
    for child in found:
        addition = {
            "apiVersion": child["apiVersion"],
            "kind": child["kind"],
            "metadata": {
                "name": child["metadata"]["name"],
                "namespace": namespace,
                "labels": {"cost-centre": "17"},
                "annotations": {"policy.example/checked": "yes"},
            },
        }
        await kube.apply(addition, field_manager="policy-controller", force=False)
    flux = {
        "apiVersion": wanted["apiVersion"],
        "kind": wanted["kind"],
        "metadata": {
            "name": "tables",
            "namespace": namespace,
            "labels": {"kustomize.toolkit.fluxcd.io/name": "apps"},
        },
    }
    async with first.turning(2):
        await kube.apply(flux, field_manager="kustomize-controller", force=False)
        await kube.apply(wanted, field_manager="argocd-controller", force=False)
    written = [
        what for what in audit.writes(start) if not what.split()[1].startswith(("events", "websocketcl"))
    ]
    assert written == [], "what others add is no drift"

    # a change that reaches objects, then an operator that applies them all anew
    wanted["spec"]["websocket"] = {"port": 4001}
    await kube.apply(wanted, field_manager="argocd-controller", force=False)

    async def moved() -> bool:
        service = await kube.get(resource_of("v1", "Service"), namespace, "tables")
        return bool(service["spec"]["ports"][0]["port"] == 4001)

    await until(moved, what="the Service has the new port")
    assert await first.child.stop() == 0
    second = await operators()
    async with second.turning(2):
        pass
    stayed = {(child["kind"], child["metadata"]["name"]) for child in found}
    for child in await children(kube, namespace):
        if (child["kind"], child["metadata"]["name"]) not in stayed:
            assert child["kind"] == "ConfigMap", "another environment is another object"
            continue
        assert child["metadata"]["labels"]["cost-centre"] == "17"
        assert child["metadata"]["annotations"]["policy.example/checked"] == "yes"
        assert owned_by("policy-controller", child) == {"metadata"}
    cluster = await kube.get(CLUSTERS, namespace, "tables")
    assert cluster["metadata"]["labels"] == {
        **wanted["metadata"]["labels"],
        **flux["metadata"]["labels"],
    }
    assert cluster["metadata"]["annotations"] == wanted["metadata"]["annotations"]
    assert owned_by("tableforge-operator", cluster) == {"status"}
