"""Which instances new clients come to, and what is said about annotations that cannot be meant."""

import dataclasses
from typing import Any

import pytest

from tableforge_operator.api import load
from tableforge_operator.decide import annotations, cordons
from tableforge_operator.decide.plan import decide
from tableforge_operator.decide.snapshot import Snapshot
from tests.operator.engine.snapshots import SECRETS, at, cluster, conditions, of_track, ready_cluster


def pod(
    name: str, *, accepting: str | None = "true", track: str = "a", going: bool = False, **given: str
) -> dict[str, Any]:
    """An instance's pod. `given` are annotations of ours: `cordon="true"`."""
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": "ns",
        "uid": f"uid of {name}",
        **of_track(track),
        "annotations": {f"tableforge.io/{key}": value for key, value in given.items()},
    }
    if accepting is None:
        del metadata["labels"]["tableforge.io/accepting"]
    else:
        metadata["labels"]["tableforge.io/accepting"] = accepting
    if going:
        metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    ready = {"type": "Ready", "status": "True"}
    return {"kind": "Pod", "metadata": metadata, "spec": {}, "status": {"conditions": [ready]}}


def ready_with(*pods: dict[str, Any], **spec: Any) -> Snapshot:
    return dataclasses.replace(ready_cluster(now=at(0), **spec), pods=pods)


def due(snapshot: Snapshot, *closed: str) -> dict[str, tuple[dict[str, str], dict[str, str | None]]]:
    found = cordons.due(load(snapshot.cluster), snapshot, at(1), closed=frozenset(closed))
    return {one.pod["metadata"]["name"]: (dict(one.labels), dict(one.annotations)) for one in found}


def selector(snapshot: Snapshot) -> Any:
    plan = decide(snapshot, at(1), secrets=SECRETS)
    (service,) = [
        wanted.obj
        for wanted in plan.applies
        if (wanted.obj["kind"], wanted.obj["metadata"]["name"]) == ("Service", "tables")
    ]
    return service["spec"]["selector"]


def test_a_cordoned_pod_says_so_and_again_when_it_is_not() -> None:
    assert due(ready_with(pod("one"), pod("two", cordon="true"))) == {
        "two": ({"tableforge.io/accepting": "false"}, {})
    }
    assert due(ready_with(pod("one"), pod("two", accepting="false"))) == {
        "two": ({"tableforge.io/accepting": "true"}, {})
    }
    assert due(ready_with(pod("one", cordon="false"))) == {}


def test_a_label_that_somebody_has_changed_is_set_back() -> None:
    assert due(ready_with(pod("one", accepting="maybe"))) == {
        "one": ({"tableforge.io/accepting": "true"}, {})
    }


def test_a_pod_that_leaves_and_one_of_somebody_elses_are_left_alone() -> None:
    stranger = pod("stranger", accepting=None)
    stranger["metadata"]["ownerReferences"] = []
    assert due(ready_with(pod("one", accepting=None, going=True), stranger)) == {}


def test_while_pods_are_not_seen_none_is_written_to() -> None:
    snapshot = ready_with(pod("one", accepting=None))
    assert due(dataclasses.replace(snapshot, blind={"Pod": "forbidden"})) == {}


def test_after_a_refusal_nothing_is_tried_for_a_while() -> None:
    snapshot = dataclasses.replace(
        ready_with(pod("one", cordon="true")), markings_failed_at=at(0).monotonic, markings_refused="no"
    )
    assert due(snapshot) == {}
    plan = decide(snapshot, at(1), secrets=SECRETS)
    assert conditions(plan)["Ready"]["message"].endswith(
        "Cordons do not act, because pods cannot be written to: no."
    )
    later = cordons.due(load(snapshot.cluster), snapshot, at(cordons.PATIENCE_SECONDS))
    assert len(later) == 1


def test_the_planners_own_cordon_comes_and_goes_with_its_wish() -> None:
    snapshot = ready_with(pod("one"), pod("two", accepting="false", shedding="true"))
    assert due(snapshot, "two") == {}
    assert due(snapshot, "one") == {
        "one": ({"tableforge.io/accepting": "false"}, {"tableforge.io/shedding": "true"}),
        "two": ({"tableforge.io/accepting": "true"}, {"tableforge.io/shedding": None}),
    }
    assert due(ready_with(pod("one", accepting="false", shedding="true", cordon="true"))) == {
        "one": ({}, {"tableforge.io/shedding": None})
    }, "a person's stays"


def test_old_pods_are_labelled_before_the_service_asks_for_the_label() -> None:
    snapshot = ready_cluster(now=at(0))
    children = dict(snapshot.children)
    service = children["Service", "tables"]
    old = {key: value for key, value in service["spec"]["selector"].items() if "accepting" not in key}
    children["Service", "tables"] = {**service, "spec": {**service["spec"], "selector": old}}
    # As after an upgrade: what an older operator has applied is nothing that this one remembers.
    snapshot = dataclasses.replace(
        snapshot, children=children, applied={}, pods=(pod("one", accepting=None),)
    )
    plan = decide(snapshot, at(1), secrets=SECRETS)
    assert [one.pod["metadata"]["name"] for one in plan.markings] == ["one"]
    assert plan.applies == ()
    refused = dataclasses.replace(snapshot, markings_failed_at=at(0).monotonic)
    assert "tableforge.io/accepting" not in selector(refused)
    blind = dataclasses.replace(snapshot, blind={"Pod": "forbidden"})
    assert "tableforge.io/accepting" not in selector(blind)
    labelled = dataclasses.replace(snapshot, pods=(pod("one"), pod("other", accepting=None, track="b")))
    (marking,) = decide(labelled, at(1), secrets=SECRETS).markings
    assert marking.pod["metadata"]["name"] == "other"
    assert selector(dataclasses.replace(snapshot, pods=(pod("one"),)))["tableforge.io/accepting"] == "true"


def test_once_it_asks_for_it_it_goes_on_asking() -> None:
    late = dataclasses.replace(
        ready_with(pod("one", accepting=None)), applied={}, markings_failed_at=at(0).monotonic
    )
    assert selector(late)["tableforge.io/accepting"] == "true"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"cordon": "yes"},
            'Annotation tableforge.io/cordon of pod one is "yes", which is passed over: write "true"',
        ),
        (
            {"weight": "heavy"},
            'tableforge.io/weight of pod one is "heavy", which is passed over: write a number from',
        ),
        ({"weight": "0"}, "write a number from 0.01 to 1000000"),
        ({"weight": "1" * 5000}, f'is "{"1" * annotations.SHOWN}…"'),
        (
            {"cordn": "true"},
            "Annotation tableforge.io/cordn of pod one is not known, and passed over: remove it",
        ),
    ],
)
def test_what_cannot_be_meant_is_told_once_and_otherwise_passed_over(
    given: dict[str, str], said: str
) -> None:
    snapshot = ready_with(pod("one", **given), pod("two"))
    assert due(snapshot) == {}
    plan = decide(snapshot, at(1), secrets=SECRETS)
    ready = conditions(plan)["Ready"]
    assert ready["status"] == "True"
    assert said in ready["message"]
    (event,) = plan.events
    assert (event.type, event.reason) == ("Warning", "AnnotationIgnored")
    assert said in event.message
    assert plan.status is not None
    told = dataclasses.replace(snapshot, cluster={**snapshot.cluster, "status": plan.status})
    assert decide(told, at(2), secrets=SECRETS).status is None
    assert decide(told, at(2), secrets=SECRETS).events == ()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"tableforge.io/paused": "yes"}, 'write "true" or "false"'),
        ({"tableforge.io/rebalance": "soon"}, "write now, or now- and a word"),
        ({"tableforge.io/rebalancing": "now"}, "is not known"),
    ],
)
def test_likewise_on_the_cluster(given: dict[str, str], said: str) -> None:
    snapshot = ready_with(pod("one"))
    obj = {**snapshot.cluster, "metadata": {**snapshot.cluster["metadata"], "annotations": given}}
    plan = decide(dataclasses.replace(snapshot, cluster=obj), at(1), secrets=SECRETS)
    assert said in conditions(plan)["Ready"]["message"]


@pytest.mark.parametrize("given", ["now", "now-2", "now-2026-11-29T00:00:00Z"])
def test_a_request_to_rebalance(given: str) -> None:
    asked = {
        **cluster(),
        "metadata": {**cluster()["metadata"], "annotations": {"tableforge.io/rebalance": given}},
    }
    assert annotations.of_cluster(load(asked)) == (given, ())


def test_of_many_remarks_the_first_are_told() -> None:
    snapshot = ready_with(*(pod(f"pod-{number}", cordon="yes") for number in range(50)))
    message = conditions(decide(snapshot, at(1), secrets=SECRETS))["Ready"]["message"]
    assert message.endswith("There are 47 more such remarks.")
    assert "pod-2 " in message
    assert "pod-3 " not in message


def test_that_everybody_is_cordoned_is_told() -> None:
    snapshot = ready_with(pod("one", accepting="false", cordon="true"))
    message = conditions(decide(snapshot, at(1), secrets=SECRETS))["Ready"]["message"]
    assert "All instances (1) are cordoned, so no new client gets in" in message


def test_a_weight_that_changes_nothing_is_told_and_one_that_counts_is_not() -> None:
    snapshot = ready_with(pod("one", weight="250"), pod("two"))
    plan = decide(snapshot, at(1), secrets=SECRETS)
    said = (
        "Annotation tableforge.io/weight of pod one changes nothing while spec.loadBalancing.strategy is "
        "RoundRobin: set that to Weighted, or remove the annotation."
    )
    ready = conditions(plan)["Ready"]
    assert (ready["status"], ready["message"].endswith(said)) == ("True", True)
    assert [(event.type, event.reason, event.message) for event in plan.events] == [
        ("Warning", "AnnotationIgnored", said)
    ]
    several = ready_with(*(pod(name, weight="250") for name in ("one", "three", "two")))
    message = conditions(decide(several, at(1), secrets=SECRETS))["Ready"]["message"]
    assert "of pod one and 2 more changes nothing" in message
    weighted = ready_with(pod("one", weight="250"), loadBalancing={"strategy": "Weighted"})
    plan = decide(weighted, at(1), secrets=SECRETS)
    assert (plan.status, plan.events) == (None, ())
