"""Who keeps changing what is the operator's: how often that is set back, and how it is told."""

import dataclasses
import json
from typing import Any

from tableforge_operator.act import events
from tableforge_operator.act.children import Outcome
from tableforge_operator.decide import ownership, repairs
from tableforge_operator.decide.plan import decide
from tableforge_operator.decide.snapshot import Repairs, Snapshot
from tests.operator.engine.snapshots import SECRETS, at, conditions, ready_cluster

KEY = ("Service", "tables")
THEIRS = ("meddler", "spec.type")


def entry(
    manager: str, fields: dict[str, Any], *, operation: str = "Update", time: str = "1"
) -> dict[str, Any]:
    return {"manager": manager, "operation": operation, "fieldsV1": fields, "time": time}


def ours(fields: dict[str, Any]) -> dict[str, Any]:
    return entry("tableforge-operator", fields, operation="Apply")


def live(*entries: dict[str, Any]) -> dict[str, Any]:
    return {"metadata": {"managedFields": list(entries)}}


BEFORE = ownership.applied_fields(
    live(ours({"f:spec": {"f:type": {}, "f:ports": {'k:{"port":80}': {".": {}, "f:name": {}}}}}))
)


def test_who_has_taken_a_field_and_which() -> None:
    rest = ours({"f:spec": {"f:type": {}}})
    taken = {"f:spec": {"f:ports": {'k:{"port":80}': {"f:name": {}}}}, "f:metadata": {"f:labels": {}}}
    early, late = entry("early", {"f:x": {}}, time="1"), entry("late", {"f:y": {}}, time="2")
    name = 'spec.ports[{"port":80}].name'
    assert repairs.contested(BEFORE, live(rest, late, entry("meddler", taken), early)) == ("meddler", name)
    assert repairs.contested(BEFORE, live(early, late)) == ("late", name), "taken out by who wrote last"
    assert repairs.contested(BEFORE, live(json.loads(BEFORE), early)) is None
    assert repairs.contested(BEFORE, live(rest, entry("tableforge-operator-scale", taken), early)) is None
    assert repairs.contested("", live(rest)) is None


def test_each_repair_waits_longer_and_a_child_that_is_left_alone_begins_anew() -> None:
    found: Repairs | None = None
    now, pauses = 0.0, []
    for _ in range(14):
        found = repairs.after(found, THEIRS, now)
        assert found is not None
        pauses.append(found.retry_at - now)
        now = found.retry_at + 1
    assert pauses == [0, 0, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300, 300]
    assert repairs.after(found, None, now) is found, "nothing tells of anybody"
    later = repairs.after(found, THEIRS, now + 601)
    assert later is not None
    assert later.count == 1


def contested_cluster(count: int) -> Snapshot:
    """A cluster whose Service somebody has changed just now, after so many repairs."""
    snapshot, found = ready_cluster(now=at(0)), None
    for _ in range(count):
        found = repairs.after(found, THEIRS, at(0).monotonic)
    assert found is not None
    applied = {**snapshot.applied, KEY: dataclasses.replace(snapshot.applied[KEY], fields="more")}
    return dataclasses.replace(snapshot, applied=applied, repairs={KEY: found})


def test_a_contested_child_is_set_back_when_it_is_due_and_not_before() -> None:
    snapshot = contested_cluster(5)
    waiting = decide(snapshot, at(7.9), secrets=SECRETS)
    assert waiting.applies == ()
    assert waiting.requeue_seconds is not None
    assert waiting.requeue_seconds < 0.2, "it is looked at when it is due"
    assert [(item.key, item.reason) for item in decide(snapshot, at(8), secrets=SECRETS).applies] == [
        (KEY, "Drifted")
    ]
    assert [item.key for item in decide(contested_cluster(1), at(0), secrets=SECRETS).applies] == [KEY]


def test_what_the_spec_changes_does_not_wait() -> None:
    snapshot = contested_cluster(9)
    changed = {**snapshot.cluster, "spec": {**snapshot.cluster["spec"], "service": {"type": "NodePort"}}}
    plan = decide(dataclasses.replace(snapshot, cluster=changed), at(1), secrets=SECRETS)
    assert (KEY, "Changed") in [(item.key, item.reason) for item in plan.applies]


def test_who_keeps_changing_what_is_told_once_and_stands_in_the_status_while_it_lasts() -> None:
    snapshot = contested_cluster(6)
    plan = decide(snapshot, at(1), secrets=SECRETS)
    message = conditions(plan)["Ready"]["message"]
    assert "Service tables: field manager meddler keeps changing spec.type, which is the" in message
    (event,) = plan.events
    assert (event.type, event.reason, event.message in message) == ("Warning", "FieldContested", True)
    told = dataclasses.replace(snapshot, cluster={**snapshot.cluster, "status": plan.status})
    again = decide(told, at(2), secrets=SECRETS)
    assert (again.status, again.events) == (None, ())
    assert events.of_outcomes([Outcome(key=KEY, result="repaired", contested=True)]) == ()
    over = dataclasses.replace(told, applied=ready_cluster(now=at(0)).applied)
    assert "keeps changing" not in conditions(decide(over, at(61), secrets=SECRETS))["Ready"]["message"]
    few = dataclasses.replace(told, repairs=contested_cluster(3).repairs)
    assert "keeps changing" not in conditions(decide(few, at(1), secrets=SECRETS))["Ready"]["message"]
