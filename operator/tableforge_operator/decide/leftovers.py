"""Environments that no instance can start with any more.

Each environment is a ConfigMap of its own. Those that a spec asked for before stay for as long as a
Deployment, a ReplicaSet (whose template a Deployment may be set back to) or a pod (whose container may be
started again) names them.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

from tableforge_operator.api import WebSocketCluster
from tableforge_operator.decide.changes import key_of
from tableforge_operator.decide.resources.kinds import CONFIG_MAP, DEPLOYMENT
from tableforge_operator.decide.snapshot import ChildKey, Object, Snapshot

_ENDED: Final = ("Failed", "Succeeded")
_LOOKED_AT: Final = frozenset({"ConfigMap", "Deployment", "Pod", "ReplicaSet"})


def leftovers(
    cluster: WebSocketCluster, snapshot: Snapshot, rendered: Iterable[dict[str, Any]]
) -> tuple[Object, ...]:
    """The ConfigMaps to delete: none while anything that may name one of them is not seen."""
    if _LOOKED_AT & snapshot.blind.keys():
        return ()
    wanted: set[ChildKey] = {key_of(obj) for obj in rendered}
    # The one without a hash is of an older operator.
    ours = re.compile(rf"{re.escape(cluster.name)}-config(-[0-9a-f]{{8}})?")
    found = [
        live
        for key, live in sorted(snapshot.children.items())
        if key[0] == CONFIG_MAP.kind
        and key not in wanted
        and ours.fullmatch(key[1])
        and not live["metadata"].get("deletionTimestamp")
    ]
    if not found:
        return ()
    deployments = (live for (kind, _), live in snapshot.children.items() if kind == DEPLOYMENT.kind)
    used = named_by((*deployments, *snapshot.replica_sets, *snapshot.pods))
    return tuple(live for live in found if live["metadata"]["name"] not in used)


def named_by(objects: Iterable[Object]) -> frozenset[str]:
    """The ConfigMaps that pods, or what makes pods, take their environment from."""
    return frozenset(name for obj in objects for name in _named(obj))


def _named(obj: Object) -> Iterator[str]:
    if "template" in obj["spec"]:
        spec = obj["spec"]["template"]["spec"]
    elif (obj.get("status") or {}).get("phase") in _ENDED:
        return  # such as one that was evicted: it stays in the list for good, and starts nothing
    else:
        spec = obj["spec"]
    for container in spec.get("containers") or ():
        for source in container.get("envFrom") or ():
            if "configMapRef" in source:
                yield str(source["configMapRef"].get("name", ""))
