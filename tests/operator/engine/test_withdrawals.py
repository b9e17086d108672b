"""What a spec no longer asks for is deleted, if it is ours; what cannot be is told and tried again."""

import dataclasses

import pytest

from tableforge_operator.decide import changes
from tableforge_operator.decide.plan import decide
from tableforge_operator.decide.snapshot import Refusal, Snapshot
from tableforge_operator.kube import Kube, Object, resource_of
from tests.operator.engine.clusters import created, events, external, find, until_condition
from tests.operator.engine.operators import AuditLog, Operators, until
from tests.operator.engine.snapshots import SECRETS, at, cluster, conditions, ready_cluster

KEY = ("NetworkPolicy", "tables")
OFF = {"security": {"networkPolicy": {"enabled": False}}}
POLICY = resource_of("networking.k8s.io/v1", "NetworkPolicy")


def switched_off() -> Snapshot:
    return dataclasses.replace(ready_cluster(now=at(0)), cluster=cluster(generation=2, **OFF))


def test_what_is_no_longer_asked_for_is_deleted_and_nothing_else() -> None:
    snapshot = switched_off()
    plan = decide(snapshot, at(1), secrets=SECRETS)
    assert [changes.key_of(obj) for obj in plan.withdrawals] == [KEY, ("NetworkPolicy", "tables-redis")]
    rest = {key: obj for key, obj in snapshot.children.items() if key[0] != "NetworkPolicy"}
    assert not decide(dataclasses.replace(snapshot, children=rest), at(1), secrets=SECRETS).withdrawals


def test_a_child_that_is_going_is_not_deleted_again() -> None:
    snapshot = switched_off()
    going = {
        key: {**obj, "metadata": {**obj["metadata"], "deletionTimestamp": "2026-01-01T00:00:00Z"}}
        for key, obj in snapshot.children.items()
    }
    assert not decide(dataclasses.replace(snapshot, children=going), at(1), secrets=SECRETS).withdrawals


def test_a_deletion_that_was_refused_is_told_and_tried_again_later() -> None:
    snapshot = switched_off()
    del snapshot.children[KEY[0], "tables-redis"]  # type: ignore[attr-defined]
    refusal = Refusal(
        reason="Forbidden",
        message="The operator may not delete NetworkPolicy tables.",
        digest=changes.WITHDRAWN,
        attempts=1,
        retry_at=at(10).monotonic,
    )
    snapshot = dataclasses.replace(snapshot, refusals={KEY: refusal})
    plan = decide(snapshot, at(1), secrets=SECRETS)
    assert not plan.withdrawals
    assert conditions(plan)["Ready"]["message"] == refusal.message
    assert plan.requeue_seconds is not None
    assert plan.requeue_seconds <= 9
    assert decide(snapshot, at(10), secrets=SECRETS).withdrawals


def test_what_was_refused_and_is_not_wanted_any_more_keeps_nobody_busy() -> None:
    snapshot = ready_cluster(now=at(0))
    refusal = Refusal(
        reason="Rejected", message="No.", digest="of old", attempts=1, retry_at=at(-100).monotonic
    )
    plan = decide(
        dataclasses.replace(snapshot, refusals={("Ingress", "tables"): refusal}), at(1), secrets=SECRETS
    )
    assert plan.requeue_seconds is not None
    assert plan.requeue_seconds > 1


@pytest.mark.cluster
async def test_switched_off_and_on_again(
    kube: Kube, namespace: str, operators: Operators, audit: AuditLog
) -> None:
    operator = await operators()
    await kube.apply(external(namespace), field_manager="user", force=True)
    await created(kube, namespace)
    theirs = await find(kube, POLICY.api_version, POLICY.kind, namespace, "tables")
    assert theirs is not None
    metadata = {"name": "theirs", "namespace": namespace, "labels": theirs["metadata"]["labels"]}
    other: Object = {
        "apiVersion": POLICY.api_version,
        "kind": POLICY.kind,
        "metadata": metadata,
        "spec": theirs["spec"],
    }
    await kube.apply(other, field_manager="user", force=True)
    await kube.apply(external(namespace, **OFF), field_manager="user", force=True)

    async def gone() -> bool:
        return await find(kube, POLICY.api_version, POLICY.kind, namespace, "tables") is None

    await until(gone, what="the policy is gone")

    async def told() -> bool:
        return "Deleted" in [reason for reason, _ in await events(kube, namespace)]

    await until(told, what="an Event tells")
    start = audit.position()
    async with operator.turning(2):
        pass
    assert not [write for write in audit.writes(start) if "networkpolicies" in write]
    assert await find(kube, POLICY.api_version, POLICY.kind, namespace, "theirs") is not None

    await kube.apply(external(namespace), field_manager="user", force=True)
    await created(kube, namespace)
    await until_condition(kube, namespace, "Ready", "False", "RollingOut")
