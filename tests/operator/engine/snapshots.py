"""Snapshots of clusters that exist only in a test, and a world that does what a plan says."""

import dataclasses
import datetime as dt
from typing import Any

from tableforge_operator.decide import ownership, resources
from tableforge_operator.decide.changes import key_of
from tableforge_operator.decide.plan import Plan, decide
from tableforge_operator.decide.snapshot import Applied, FleetView, Now, Snapshot
from tests.operator.engine.pods import fleet

START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
SECRETS = resources.derive(bytes(32), "uid-1")


def at(seconds: float) -> Now:
    """A time, `seconds` after the start."""
    return Now(wall=START + dt.timedelta(seconds=seconds), monotonic=1000 + seconds)


def cluster(*, generation: int = 1, status: Any = None, **spec: Any) -> dict[str, Any]:
    """A WebSocketCluster as the API server hands it out."""
    found: dict[str, Any] = {
        "apiVersion": "tableforge.io/v1alpha1",
        "kind": "WebSocketCluster",
        "metadata": {"name": "tables", "namespace": "ns", "uid": "uid-1", "generation": generation},
        "spec": {"replicas": 3, "auth": {"required": False}, **spec},
    }
    if status is not None:
        found["status"] = status
    return found


def of_track(track: str = "a") -> dict[str, Any]:
    """Labels and owner of an instance's pod, as the ReplicaSet controller gives them."""
    owner = {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "name": f"tables-{track}-abc",
        "controller": True,
        "uid": "rs",
    }
    labels = {
        "app.kubernetes.io/component": "dataplane",
        "tableforge.io/cluster": "tables",
        "tableforge.io/track": track,
        "tableforge.io/accepting": "true",
        "pod-template-hash": "abc",
    }
    return {"labels": labels, "ownerReferences": [owner]}


def done(snapshot: Snapshot, plan: Plan, *, now: Now) -> Snapshot:
    """The snapshot after the plan was carried out by an API server that takes everything."""
    children, applied = dict(snapshot.children), dict(snapshot.applied)
    for wanted in plan.applies:
        before = children.get(wanted.key)
        fields = f"fields of {wanted.digest}"
        live = {
            **wanted.obj,
            "metadata": {
                **wanted.obj["metadata"],
                "uid": before["metadata"]["uid"] if before else f"uid of {wanted.key}",
                "generation": 1,
                "managedFields": [
                    {"manager": "tableforge-operator", "operation": "Apply", "time": "x", "fieldsV1": fields}
                ],
            },
        }
        if before and "status" in before:
            live["status"] = before["status"]
        children[wanted.key] = live
        applied[wanted.key] = Applied(
            digest=wanted.digest, fields=ownership.applied_fields(live), uid=live["metadata"]["uid"]
        )
    for live in plan.withdrawals:
        children.pop(key_of(live), None)
        applied.pop(key_of(live), None)
    created = snapshot.secrets_created | {key_of(secret)[1] for secret in plan.secrets}
    obj = dict(snapshot.cluster)
    if plan.status is not None:
        obj["status"] = plan.status
    return dataclasses.replace(
        snapshot,
        cluster=obj,
        children=children,
        applied=applied,
        secrets_created=created,
        counters_at=now.monotonic if plan.counters else snapshot.counters_at,
    )


def settled(snapshot: Snapshot, *, now: Now) -> Snapshot:
    """The snapshot once the operator has nothing more to do about it."""
    for _ in range(5):
        plan = decide(snapshot, now, secrets=SECRETS)
        if not plan.changes_objects and plan.status is None:
            return snapshot
        snapshot = done(snapshot, plan, now=now)
    raise AssertionError("never settles")


def with_workloads(snapshot: Snapshot, *, ready: int = 3, total: int = 3, **deployment: Any) -> Snapshot:
    """The workloads' controllers at work: that many instances, that many of them ready."""
    children = dict(snapshot.children)
    for key, obj in children.items():
        if key[0] == "Deployment":
            children[key] = {
                **obj,
                "status": {
                    "observedGeneration": 1,
                    "replicas": total,
                    "updatedReplicas": total,
                    "readyReplicas": ready,
                    **deployment,
                },
            }
        elif key[0] == "StatefulSet":
            children[key] = {**obj, "status": {"observedGeneration": 1, "replicas": 1, "readyReplicas": 1}}
    return dataclasses.replace(snapshot, children=children)


def with_fleet(snapshot: Snapshot, *, now: Now, **of_fleet: Any) -> Snapshot:
    """An instance has answered."""
    view = FleetView(fleet=fleet(**{"instances": 3, **of_fleet}), fleet_at=now.monotonic)
    return dataclasses.replace(snapshot, fleet=view)


def ready_cluster(*, now: Now, **spec: Any) -> Snapshot:
    """A cluster that is Ready and needs nothing."""
    snapshot = settled(Snapshot(cluster=cluster(**spec)), now=now)
    return settled(with_fleet(with_workloads(snapshot), now=now, connections=100, rooms=10), now=now)


def conditions(source: Plan | Snapshot) -> dict[str, dict[str, Any]]:
    """The conditions by type, of a plan's status or of a snapshot's cluster."""
    status = source.status if isinstance(source, Plan) else source.cluster.get("status")
    return {found["type"]: found for found in (status or {}).get("conditions", ())}
