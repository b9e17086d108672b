"""What leads to single instances: made for each, told once every gateway has it, taken back when not."""

import dataclasses
from typing import Any

import pytest

from tableforge_operator.api import load
from tableforge_operator.decide import routing
from tableforge_operator.decide.plan import decide
from tableforge_operator.decide.resources.surroundings import Surroundings
from tableforge_operator.decide.snapshot import Refusal, Snapshot
from tests.operator.engine.gateways import PARENT, ROUTED, word
from tests.operator.engine.snapshots import SECRETS, at, cluster, conditions, ready_cluster, settled
from tests.operator.engine.test_cordons import pod

WITH_KINDS = Surroundings(absent_kinds=frozenset())
ROUTE = ("HTTPRoute", "tables")


def said(snapshot: Snapshot, name: str, *words: dict[str, Any], generation: int = 1) -> Snapshot:
    """The gateways' word on a route."""
    children, key = dict(snapshot.children), ("HTTPRoute", name)
    route = children[key]
    metadata = {**route["metadata"], "generation": generation}
    children[key] = {**route, "metadata": metadata, "status": {"parents": list(words)}}
    return dataclasses.replace(snapshot, children=children)


def routed(*pods: dict[str, Any], **spec: Any) -> Snapshot:
    """A cluster behind a gateway that has taken all, and needs nothing more."""
    for one in pods:
        one["metadata"]["labels"]["tableforge.io/instance"] = one["metadata"]["name"]
    snapshot = ready_cluster(now=at(0))
    snapshot = dataclasses.replace(
        snapshot, cluster=cluster(**{**ROUTED, **spec}), pods=pods, surroundings=WITH_KINDS
    )
    snapshot = settled(snapshot, now=at(0))
    for name in ("tables", *(one["metadata"]["name"] for one in pods)):
        snapshot = said(snapshot, name, word(generation=1))
    return snapshot


def addresses(snapshot: Snapshot) -> dict[str, str | None] | None:
    return routing.addresses(load(snapshot.cluster), snapshot)


def ready(snapshot: Snapshot) -> tuple[str, str, str]:
    plan = decide(snapshot, at(1), secrets=SECRETS)
    assert not plan.changes_objects
    found = conditions(plan if plan.status is not None else snapshot)["Ready"]
    return found["status"], found["reason"], found["message"]


def test_each_instance_gets_a_service_and_a_route_and_is_told_its_address() -> None:
    snapshot = routed(pod("one"), pod("two"))
    assert {key for key in snapshot.children if key[1] in ("one", "two")} == {
        ("Service", "one"),
        ("Service", "two"),
        ("HTTPRoute", "one"),
        ("HTTPRoute", "two"),
    }
    assert addresses(snapshot) == {"one": "/i/one/ws", "two": "/i/two/ws"}
    assert ready(snapshot)[0] == "True"


def test_what_is_made_for_instances_is_bounded_in_each_pass() -> None:
    pods = [pod(f"pod-{number:03}") for number in range(200)]
    for one in pods:
        one["metadata"]["labels"]["tableforge.io/instance"] = one["metadata"]["name"]
    snapshot = dataclasses.replace(
        ready_cluster(now=at(0)), cluster=cluster(**ROUTED), pods=tuple(pods), surroundings=WITH_KINDS
    )
    found = routing.applies(load(snapshot.cluster), snapshot, at(1))
    assert routing.AT_ONCE <= len(found) <= routing.AT_ONCE + 1


def test_a_pod_gets_its_label_before_anything_leads_to_it() -> None:
    snapshot = dataclasses.replace(
        ready_cluster(now=at(0)), cluster=cluster(**ROUTED), pods=(pod("one"),), surroundings=WITH_KINDS
    )
    plan = decide(snapshot, at(1), secrets=SECRETS)
    (marking,) = plan.markings
    assert marking.labels == {"tableforge.io/instance": "one"}
    assert plan.applies == ()


def test_where_a_gateway_does_not_take_it_there_is_no_address() -> None:
    refused = (False, "No listener lets routes of namespace ns in")
    snapshot = said(routed(pod("one"), pod("two")), "one", word(generation=1, accepted=refused))
    assert addresses(snapshot) == {"one": None, "two": "/i/two/ws"}
    assert ready(snapshot) == (
        "False",
        "RouteRefused",
        (
            "HTTPRoute one: Gateway edge/public does not accept it: NotAllowedByListeners: "
            "No listener lets routes of namespace ns in."
        ),
    )
    unresolved = word(generation=1, resolved=(False, "Service one not found."))
    snapshot = said(routed(pod("one"), pod("two")), "one", unresolved)
    assert addresses(snapshot) == {"one": None, "two": "/i/two/ws"}
    assert ready(snapshot)[2].endswith(
        "cannot find what it leads to: BackendNotFound: Service one not found."
    )


def test_nothing_is_told_before_a_gateway_has_spoken_and_nothing_by_the_word_of_another() -> None:
    assert addresses(said(routed(pod("one")), "one")) == {"one": None}
    for other in (
        {**PARENT, "name": "other"},
        {**PARENT, "namespace": "ns"},
        {**PARENT, "kind": "Service", "group": ""},
        {**PARENT, "sectionName": "https"},
    ):
        snapshot = said(routed(pod("one")), "one", word(generation=1, parent=other))
        assert addresses(snapshot) == {"one": None}, other


def test_what_it_said_of_an_older_route_changes_nothing_until_it_has_looked_again() -> None:
    stale = said(routed(pod("one")), "one", word(generation=1), generation=2)
    assert addresses(stale) == {}, "it keeps what it was told"
    refused = word(generation=1, accepted=(False, "no"))
    assert addresses(said(routed(pod("one")), "one", refused, generation=2)) == {"one": None}


def test_every_gateway_that_the_spec_names_must_have_taken_it() -> None:
    refs = [{"name": "public", "namespace": "edge"}, {"name": "inside", "sectionName": "ws"}]
    spec = {"routing": {"mode": "Gateway", "gateway": {"parentRefs": refs}}}
    inside = {"group": PARENT["group"], "kind": "Gateway", "name": "inside", "sectionName": "ws"}
    snapshot = routed(pod("one"), **spec)
    assert addresses(snapshot) == {"one": None}
    assert "Gateway ns/inside, listener ws, has not said yet" in ready(snapshot)[2]
    both = (word(generation=1), word(generation=1, parent=inside))
    assert addresses(said(snapshot, "one", *both)) == {"one": "/i/one/ws"}
    refused = (word(generation=1), word(generation=1, parent=inside, accepted=(False, "no")))
    assert addresses(said(snapshot, "one", *refused)) == {"one": None}


def test_a_pod_that_is_not_ready_has_no_address() -> None:
    unready = pod("one")
    unready["status"] = {"conditions": [{"type": "Ready", "status": "False"}]}
    assert addresses(routed(unready)) == {"one": None}


def test_while_routes_are_not_seen_everybody_keeps_what_it_was_told() -> None:
    snapshot = dataclasses.replace(routed(pod("one")), blind={"HTTPRoute": "forbidden"})
    assert addresses(snapshot) == {}


def test_in_mode_service_there_is_nothing_of_it() -> None:
    snapshot = dataclasses.replace(ready_cluster(now=at(0)), pods=(pod("one"),), surroundings=WITH_KINDS)
    snapshot = settled(snapshot, now=at(1))
    assert not [key for key in snapshot.children if key[0] == "HTTPRoute" or key[1] == "one"]
    assert addresses(snapshot) is None


def test_back_to_mode_service_the_route_goes_and_those_of_instances_go_with_their_pods() -> None:
    snapshot = routed(pod("one"))
    owner = {"apiVersion": "v1", "kind": "Pod", "name": "one", "uid": "uid of one", "controller": True}
    assert snapshot.children["HTTPRoute", "one"]["metadata"]["ownerReferences"] == [
        {**owner, "blockOwnerDeletion": False}
    ]
    back = dataclasses.replace(snapshot, cluster=cluster(generation=2))
    plan = decide(back, at(1), secrets=SECRETS)
    assert [(obj["kind"], obj["metadata"]["name"]) for obj in plan.withdrawals] == [ROUTE]


@pytest.mark.parametrize("absent", [True, False])
def test_without_the_gateway_api_it_is_said_what_to_install(absent: bool) -> None:
    kinds = frozenset({"HTTPRoute"}) if absent else frozenset()
    snapshot = dataclasses.replace(
        ready_cluster(now=at(0)),
        cluster=cluster(**ROUTED),
        surroundings=Surroundings(absent_kinds=kinds),
    )
    snapshot = settled(snapshot, now=at(0))
    status, reason, message = ready(snapshot)
    assert status == "False"
    assert (reason == "GatewayApiMissing") is absent
    if absent:
        assert "install the Gateway API (https://" in message
        assert "or set spec.routing.mode to Service" in message
        assert message.endswith("Until then the instances stay as they are.")
        assert ROUTE not in snapshot.children


def template(snapshot: Snapshot) -> Any:
    return snapshot.children["Deployment", "tables-a"]["spec"]["template"]


def test_without_the_gateway_api_no_pod_is_replaced_for_the_mode() -> None:
    before = ready_cluster(now=at(0))
    asked = settled(dataclasses.replace(before, cluster=cluster(generation=2, **ROUTED)), now=at(1))
    assert template(asked) == template(before)
    there = settled(dataclasses.replace(asked, surroundings=WITH_KINDS), now=at(2))
    assert template(there) != template(before), "once it is installed they are replaced"
    gone = settled(dataclasses.replace(there, surroundings=Surroundings()), now=at(3))
    assert template(gone) == template(there), "nor are they for kinds that are gone, perhaps for a moment"
    status, reason, message = ready(gone)
    assert (status, reason) == ("False", "GatewayApiMissing")
    assert message.endswith("or set spec.routing.mode to Service.")


def test_a_gateway_that_says_nothing_is_waited_for() -> None:
    snapshot = said(routed(pod("one")), "tables")
    assert ready(snapshot)[1:] == (
        "RouteWaiting",
        (
            "HTTPRoute tables: Gateway edge/public has not said yet whether it takes it: see that it exists, "
            "and that its controller runs."
        ),
    )


def test_a_refusal_of_an_instances_service_is_told_and_tried_again_later() -> None:
    snapshot = routed(pod("one"))
    children = {key: obj for key, obj in snapshot.children.items() if key != ("Service", "one")}
    gone = dataclasses.replace(snapshot, children=children)
    (wanted,) = decide(gone, at(1), secrets=SECRETS).applies
    assert wanted.key == ("Service", "one")
    refusal = Refusal(
        reason="NameConflict",
        message="It is taken.",
        digest=wanted.digest,
        attempts=1,
        retry_at=at(9).monotonic,
    )
    refused = dataclasses.replace(gone, refusals={wanted.key: refusal})
    assert ready(refused)[1:] == ("NameConflict", "It is taken.")
    assert decide(refused, at(9), secrets=SECRETS).applies
