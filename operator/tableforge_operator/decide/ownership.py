"""Whose an object is, and which of its fields are ours: by controller reference and by `managedFields`."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from tableforge_operator.api import names


def digest(obj: Mapping[str, Any]) -> str:
    """A hash of an object as it was rendered; the same whatever the order of its keys."""
    text = json.dumps(obj, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def controller(obj: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The owner reference of the object's controller."""
    for reference in obj["metadata"].get("ownerReferences") or ():
        if reference.get("controller"):
            found: Mapping[str, Any] = reference
            return found
    return None


def cluster_name(obj: Mapping[str, Any]) -> str | None:
    """The name of the WebSocketCluster that controls the object; None where none does."""
    owner = controller(obj)
    if owner is None or owner["kind"] != names.KIND or not owner["apiVersion"].startswith(f"{names.GROUP}/"):
        return None
    return str(owner["name"])


def of_pod(obj: Mapping[str, Any]) -> bool:
    """Whether the object belongs to a pod."""
    owner = controller(obj)
    return owner is not None and (owner["apiVersion"], owner["kind"]) == ("v1", "Pod")


def applied_fields(obj: Mapping[str, Any]) -> str:
    """The fields that are ours as the API server has them: our entry of `managedFields`, less its time.

    It changes when somebody edits or takes one of them, and only then. Empty where no field is ours.
    """
    for entry in obj["metadata"].get("managedFields") or ():
        if (
            entry.get("manager") == names.FIELD_MANAGER
            and entry.get("operation") == "Apply"
            and not entry.get("subresource")
        ):
            rest = {name: value for name, value in entry.items() if name != "time"}
            return json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return ""
