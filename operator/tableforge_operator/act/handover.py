"""Leaves the number of a Deployment's instances to an autoscaler, without it ever being another one.

A field that nobody owns any more is removed by the API server, and a Deployment without `replicas` has one.
So the number is first made another field manager's too, as it is at that moment, and then given up. The
autoscaler's first change takes it from that one.
"""

from collections.abc import Mapping
from typing import Any, Final

from tableforge_operator.decide.snapshot import Object
from tableforge_operator.kube import FIELD_MANAGER, Kube

HANDOVER_FIELD_MANAGER: Final = f"{FIELD_MANAGER}-handover"


async def create(kube: Kube, obj: dict[str, Any], *, at_least: int) -> dict[str, Any]:
    """Create a Deployment of that size, and leave it to the autoscaler from then on.

    `obj` is without `replicas`. Raises ApiError.
    """
    return await apply(kube, obj, await kube.apply(_sized(obj, at_least), force=False), at_least=at_least)


async def apply(kube: Kube, obj: dict[str, Any], live: Object, *, at_least: int) -> dict[str, Any]:
    """Apply `obj`, which is without `replicas`, over `live`, as read just now; the size stays what it is.

    A fleet that is smaller than `at_least` because we wanted it so, or that has no instance at all, which no
    autoscaler touches, is set to that first. Raises ApiError; ConflictError where somebody changes the size
    at the same moment.
    """
    obj = {**obj, "metadata": {**obj["metadata"], "uid": live["metadata"]["uid"]}}
    size, ours = int(live["spec"].get("replicas", 1)), _owns_size(live, FIELD_MANAGER)
    if size < 1 or (ours and size < at_least):
        live = await kube.apply(_sized(obj, at_least), force=True)
        size, ours = at_least, True
    if ours and not _owns_size(live, HANDOVER_FIELD_MANAGER):
        head = {name: obj[name] for name in ("apiVersion", "kind")}
        metadata = {name: obj["metadata"][name] for name in ("name", "namespace", "uid")}
        await kube.apply(
            {**head, "metadata": metadata, "spec": {"replicas": size}},
            field_manager=HANDOVER_FIELD_MANAGER,
            force=False,
        )
    return await kube.apply(obj, force=True)


def _sized(obj: dict[str, Any], size: int) -> dict[str, Any]:
    return {**obj, "spec": {"replicas": size, **obj["spec"]}}


def _owns_size(live: Object, manager: str) -> bool:
    for entry in live["metadata"].get("managedFields") or ():
        fields = (entry.get("fieldsV1") or {}).get("f:spec")
        if (
            entry.get("manager") == manager
            and entry.get("operation") == "Apply"
            and isinstance(fields, Mapping)
            and "f:replicas" in fields
        ):
            return True
    return False
