"""Whether settings that running instances take on have reached all of them."""

import dataclasses

import msgspec

from tableforge_operator.api import load
from tableforge_operator.decide.plan import decide
from tableforge_operator.decide.resources.config_map import live_fingerprint
from tableforge_operator.decide.snapshot import FleetView, Snapshot
from tests.operator.engine.pods import fleet
from tests.operator.engine.snapshots import SECRETS, at, conditions, ready_cluster
from tests.operator.engine.test_cordons import pod


def ready_message(snapshot: Snapshot, **told: str) -> str:
    """What `Ready` says where the instances tell these fingerprints."""
    known = fleet(names=list(told))
    records = [
        msgspec.structs.replace(record, live_settings=told[record.instance]) for record in known.instances
    ]
    view = FleetView(fleet=msgspec.structs.replace(known, instances=records), fleet_at=at(1).monotonic)
    plan = decide(dataclasses.replace(snapshot, fleet=view), at(1), secrets=SECRETS)
    found = conditions(plan if plan.status is not None else snapshot)["Ready"]
    assert found["status"] == "True"
    return str(found["message"])


def test_whom_a_change_has_yet_to_reach_is_said() -> None:
    snapshot = dataclasses.replace(ready_cluster(now=at(0)), pods=(pod("one"), pod("two"), pod("old")))
    new = live_fingerprint(load(snapshot.cluster))
    changed = {**snapshot.cluster, "spec": {**snapshot.cluster["spec"], "monitoring": {"logLevel": "debug"}}}
    assert live_fingerprint(load(changed)) != new
    message = ready_message(snapshot, one=new, two="before", old="")
    assert "Changed settings have reached 1 of 2 instances, and two not yet" in message
    assert "Changed settings" not in ready_message(snapshot, one=new, two=new, old="")
    assert "Changed settings" not in ready_message(snapshot, one=new, two=new, old=new, gone="before")
