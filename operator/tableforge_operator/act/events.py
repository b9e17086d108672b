"""Tells Events about a cluster: on transitions only, the same one not again at once."""

import asyncio
import datetime as dt
import logging
import time
from collections.abc import Iterable
from typing import Final

from tableforge_operator.act.children import Outcome
from tableforge_operator.act.memory import Memory
from tableforge_operator.decide.rollout import News
from tableforge_operator.decide.snapshot import Object
from tableforge_operator.decide.status import Event
from tableforge_operator.kube import FIELD_MANAGER, ApiError, Kube

REPEAT_SECONDS: Final = 60.0
"""For how long the same reason and message is not told again."""
MESSAGE_LIMIT: Final = 1024

log = logging.getLogger(__name__)


async def tell(
    kube: Kube, cluster: Object, events: Iterable[Event], *, memory: Memory, reporter: str
) -> None:
    """Create the Events. What fails is logged and given up: an Event is news, not state."""
    now = asyncio.get_running_loop().time()
    memory.told = {what: at for what, at in memory.told.items() if now - at < REPEAT_SECONDS}
    for event in events:
        what = (event.reason, event.message)
        if what in memory.told:
            continue
        memory.told[what] = now
        try:
            await kube.create(_object(cluster, event, reporter))
        except ApiError as error:
            name = f"{cluster['metadata']['namespace']}/{cluster['metadata']['name']}"
            log.warning("event lost", extra={"cluster": name, "reason": event.reason, "error": error.message})


def of_plan(news: Iterable[News], outcome: Outcome) -> tuple[Event, ...]:
    """What a plan has to tell of a child, where it has come about."""
    if outcome.result in ("refused", "unchanged"):
        return ()
    return tuple(one.event for one in news if one.child == outcome.key)


def of_outcomes(outcomes: Iterable[Outcome]) -> tuple[Event, ...]:
    """What was created, repaired and deleted, one Event each."""
    outcomes = tuple(outcomes)
    created = [
        " ".join(outcome.key) for outcome in outcomes if outcome.result == "created" and not outcome.of_pod
    ]
    repaired = [
        " ".join(outcome.key)
        for outcome in outcomes
        if outcome.result == "repaired" and not outcome.contested
    ]
    withdrawn = [" ".join(outcome.key) for outcome in outcomes if outcome.result == "withdrawn"]
    found: list[Event] = []
    if created:
        found.append(Event(type="Normal", reason="Created", message=f"Created {', '.join(created)}."))
    if repaired:
        found.append(
            Event(
                type="Normal",
                reason="DriftRepaired",
                message=f"Set back {', '.join(repaired)}: fields that the operator owns had been changed.",
            )
        )
    if withdrawn:
        found.append(
            Event(
                type="Normal",
                reason="Deleted",
                message=f"Deleted {', '.join(withdrawn)}, which the spec no longer asks for.",
            )
        )
    return tuple(found)


def _object(cluster: Object, event: Event, reporter: str) -> dict[str, object]:
    metadata = cluster["metadata"]
    stamp = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": f"{metadata['name']}.{time.time_ns():x}",
            "namespace": metadata["namespace"],
        },
        "involvedObject": {
            "apiVersion": cluster["apiVersion"],
            "kind": cluster["kind"],
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"],
        },
        "type": event.type,
        "reason": event.reason,
        "message": event.message[:MESSAGE_LIMIT],
        "source": {"component": FIELD_MANAGER},
        "reportingComponent": FIELD_MANAGER,
        "reportingInstance": reporter,
        "firstTimestamp": stamp,
        "lastTimestamp": stamp,
        "count": 1,
    }
