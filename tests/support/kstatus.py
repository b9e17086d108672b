"""kstatus, by which Flux and `kubectl`-like tools know whether an object is done: a port of its rules.

The library itself (`sigs.k8s.io/cli-utils/pkg/kstatus/status`, `Compute`) is Go. These are its rules, in its
order, for a kind that it does not know itself: deletion, generation, `Reconciling` and `Stalled`, `Ready`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Computed:
    """`status` is InProgress, Failed, Current or Terminating."""

    status: str
    message: str


def compute(obj: Mapping[str, Any]) -> Computed:
    """What kstatus makes of the object."""
    metadata, status = obj["metadata"], obj.get("status") or {}
    if metadata.get("deletionTimestamp"):
        return Computed("Terminating", "Resource scheduled for deletion")
    if "generation" in metadata and "observedGeneration" in status:
        wanted, seen = metadata["generation"], status["observedGeneration"]
        if wanted != seen:
            message = f"{obj['kind']} generation is {wanted}, but latest observed generation is {seen}"
            return Computed("InProgress", message)
    conditions = status.get("conditions") or ()
    for condition in conditions:
        if (condition["type"], condition["status"]) == ("Reconciling", "True"):
            return Computed("InProgress", condition["message"])
        if (condition["type"], condition["status"]) == ("Stalled", "True"):
            return Computed("Failed", condition["message"])
    for condition in conditions:
        if condition["type"] != "Ready":
            continue
        if condition["status"] == "True":
            return Computed("Current", "Resource is Ready")
        if condition["status"] in ("False", "Unknown"):
            return Computed("InProgress", condition["message"])
    return Computed("Current", "Resource is current")
