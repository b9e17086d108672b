"""Whatever is there and whatever is asked for: each plan can be sent, and the plans come to an end.

Worlds have had another spec before this one, and may have been left in the middle of the change: with a track
that is being prepared, environments that nobody names any more, pods of both tracks, children that somebody
edited or deleted, and an operator that remembers nothing of it. What an API server makes of the objects of
any spec is test_any_spec.py's.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Final

from hypothesis import given, settings
from hypothesis import strategies as st

from tableforge_operator.decide import deletion_costs
from tableforge_operator.decide.changes import key_of
from tableforge_operator.decide.plan import Plan, decide
from tableforge_operator.decide.resources.surroundings import Surroundings
from tableforge_operator.decide.snapshot import Now, Object, Snapshot
from tableforge_operator.kube import resource_of
from tests.operator.engine.gateways import ROUTED
from tests.operator.engine.snapshots import SECRETS, at, cluster, done, with_fleet, with_workloads
from tests.operator.engine.test_cordons import pod

PASSES: Final = 6
"""The most there are: labels and costs of pods go before anything else; Secrets and children; a managed
Redis, which waits until the Secret with its password is there; an environment, once no Deployment names it;
the status, which waits for all of these; and the one that finds nothing left. Most worlds come to an end
after the third.
"""
NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
LABEL: Final = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")


@st.composite
def specs(draw: st.DrawFn) -> dict[str, Any]:
    """What somebody asks for."""
    spec: dict[str, Any] = {
        "replicas": draw(st.integers(0, 4)),
        "image": draw(st.sampled_from(["tables:1", "tables:2"])),
        "rollout": {"strategy": draw(st.sampled_from(["RollingUpdate", "BlueGreen"]))},
        "redis": draw(
            st.just({"external": {"host": "redis.example"}})
            | st.builds(lambda number: {"managed": {"passwordGeneration": number}}, st.integers(1, 3))
        ),
        "websocket": {"maxConnections": draw(st.sampled_from([100, 1000]))},
    }
    if draw(st.booleans()):
        spec["replicas"] = max(1, spec["replicas"])
        spec["autoscaling"] = {"enabled": True, "maxReplicas": draw(st.integers(4, 8))}
    way = draw(st.sampled_from(["none", "ingress", "gateway"]))
    if way == "ingress":
        spec["ingress"] = {"host": "tables.example", "className": "public"}
    if way == "gateway":
        spec |= ROUTED
    return spec


@st.composite
def worlds(draw: st.DrawFn) -> Snapshot:
    """A cluster at any point of its life."""
    absent = frozenset[str]() if draw(st.booleans()) else Surroundings().absent_kinds
    snapshot = Snapshot(cluster=cluster(**draw(specs())), surroundings=Surroundings(absent_kinds=absent))
    for _ in range(draw(st.sampled_from([0, 1, 2, 2, 3]))):
        # Somebody asks for something else, and the operator does some of it.
        generation = snapshot.cluster["metadata"]["generation"] + 1
        asked = cluster(generation=generation, status=snapshot.cluster.get("status"), **draw(specs()))
        snapshot = dataclasses.replace(snapshot, cluster=asked)
        for _ in range(draw(st.sampled_from([0, 1, PASSES, PASSES]))):
            snapshot = carried_out(snapshot, decide(snapshot, at(-1), secrets=SECRETS), now=at(-1))
        ready = draw(st.integers(0, 5))
        snapshot = with_workloads(snapshot, ready=ready, total=draw(st.integers(ready, 6)))
    tracks = draw(st.lists(st.sampled_from(["a", "b"]), max_size=4))
    pods = [
        pod(f"tables-{track}-{number}", track=track, going=draw(st.booleans()))
        for number, track in enumerate(tracks)
    ]
    snapshot = dataclasses.replace(snapshot, pods=tuple(pods))
    if draw(st.booleans()):
        names = [one["metadata"]["name"] for one in pods]
        connections = draw(st.integers(0, 3000))
        snapshot = with_fleet(
            snapshot, now=at(draw(st.floats(-120, 0))), connections=connections, names=names
        )
    children = dict(snapshot.children)
    for key in draw(
        st.lists(st.sampled_from(sorted(children)), unique=True, max_size=4) if children else st.just([])
    ):
        if draw(st.booleans()):
            del children[key]
        else:
            children[key] = edited(children[key])
    snapshot = dataclasses.replace(snapshot, children=children)
    if draw(st.booleans()):
        snapshot = dataclasses.replace(
            snapshot, applied={}, secrets_created=frozenset(), floor=None, counters_at=None
        )
    return snapshot


def edited(obj: Object) -> Object:
    """Somebody took a field of it."""
    (entry,) = obj["metadata"]["managedFields"]
    return {**obj, "metadata": {**obj["metadata"], "managedFields": [{**entry, "fieldsV1": {"less": {}}}]}}


def carried_out(snapshot: Snapshot, plan: Plan, *, now: Now) -> Snapshot:
    """The snapshot after everything of a plan was done."""
    sizes = {
        key: obj["spec"].get("replicas") for key, obj in snapshot.children.items() if key[0] == "Deployment"
    }
    after = done(snapshot, plan, now=now)
    children, applied = dict(after.children), dict(after.applied)
    for wanted in plan.applies:
        live = children[wanted.key]
        if wanted.key[0] == "Deployment" and "replicas" not in live["spec"]:
            # As an API server keeps, or begins with, what an apply says nothing of.
            size = sizes.get(wanted.key) or wanted.instances_at_least or 1
            children[wanted.key] = {**live, "spec": {**live["spec"], "replicas": size}}
    for scale in plan.scales:
        key = key_of(scale.deployment)
        children[key] = {**children[key], "spec": {**children[key]["spec"], "replicas": scale.replicas}}
        applied.pop(key, None)
    pods = {one["metadata"]["name"]: one for one in after.pods}
    for cost in plan.costs:
        name = cost.pod["metadata"]["name"]
        pods[name] = marked(pods[name], {}, {deletion_costs.ANNOTATION: str(cost.value)})
    for marking in plan.markings:
        name = marking.pod["metadata"]["name"]
        pods[name] = marked(pods[name], marking.labels, marking.annotations)
    return dataclasses.replace(
        after,
        children=children,
        applied=applied,
        pods=tuple(pods.values()),
        floor=plan.floor,
        costs_written_at=now.monotonic if plan.costs else after.costs_written_at,
    )


def marked(obj: Object, labels: Mapping[str, str], annotations: Mapping[str, str | None]) -> dict[str, Any]:
    """A pod after labels and annotations were written to it."""
    metadata = dict(obj["metadata"])
    metadata["labels"] = {**metadata["labels"], **labels}
    both = {**metadata.get("annotations", {}), **annotations}
    metadata["annotations"] = {name: value for name, value in both.items() if value is not None}
    return {**obj, "metadata": metadata}


def faults(plan: Plan, snapshot: Snapshot) -> Iterator[str]:
    """What is wrong with the objects of a plan."""
    objects = [*plan.secrets, *(wanted.obj for wanted in plan.applies)]
    for key, count in Counter(map(key_of, objects)).items():
        if count > 1:
            yield f"{key} is there {count} times"
    removed = {key_of(obj) for obj in plan.withdrawals}
    for obj in objects:
        key, metadata = key_of(obj), obj["metadata"]
        resource_of(obj["apiVersion"], obj["kind"])
        if key in removed:
            yield f"{key} is applied and deleted"
        if not NAME.fullmatch(metadata["name"]) or len(metadata["name"]) > 253:
            yield f"{key} has no name"
        if metadata["namespace"] != "ns":
            yield f"{key} is in another namespace"
        owners = [(one["kind"], one["uid"]) for one in metadata["ownerReferences"] if one.get("controller")]
        pods = {("Pod", one["metadata"]["uid"]) for one in snapshot.pods}
        if len(owners) != 1 or owners[0] not in {("WebSocketCluster", "uid-1"), *pods}:
            yield f"{key} belongs to {owners}"
        if not all(LABEL.fullmatch(value) for value in metadata["labels"].values()):
            yield f"{key} has labels that are none: {metadata['labels']}"
        yield from (f"{key}: {where} is {value!r}" for where, value in odd(obj, ""))


def odd(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    """What no API object may hold: null, a number that is not finite, a key that is no string."""
    if isinstance(value, dict):
        for name, below in value.items():
            if not isinstance(name, str):
                yield where, name
            yield from odd(below, f"{where}.{name}")
    elif isinstance(value, list):
        for number, below in enumerate(value):
            yield from odd(below, f"{where}[{number}]")
    elif isinstance(value, float) or not isinstance(value, str | int | bool):
        yield where, value


@settings(max_examples=80, deadline=None)
@given(world=worlds(), seconds=st.floats(0, 3600))
def test_every_plan_can_be_sent_and_the_pass_after_the_last_one_changes_nothing(
    world: Snapshot, seconds: float
) -> None:
    now = at(seconds)
    for _ in range(PASSES):
        plan = decide(world, now, secrets=SECRETS)
        assert list(faults(plan, world)) == []
        if not plan.changes_objects and plan.status is None:
            break
        world = carried_out(world, plan, now=now)
    else:
        raise AssertionError(f"still something to do: {plan}")
    again = decide(world, now, secrets=SECRETS)
    assert not again.changes_objects
    assert (again.status, again.events) == (None, ())
