"""The objects that are watched, as last seen, and which cluster each belongs to."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from tableforge_operator.api import names
from tableforge_operator.decide import ownership
from tableforge_operator.decide.snapshot import Object

ClusterKey = tuple[str, str]
"""Namespace and name of a WebSocketCluster."""
ObjectKey = tuple[str, str, str]
"""Kind, namespace and name."""

_BY_LABEL: Final = frozenset({"PersistentVolumeClaim", "Pod", "ReplicaSet"})


def cluster_of(obj: Object) -> ClusterKey | None:
    """The cluster an object belongs to: by its controller; what has another one, such as a pod, by label."""
    metadata = obj["metadata"]
    if obj["kind"] in _BY_LABEL or ownership.of_pod(obj):
        name = (metadata.get("labels") or {}).get(names.CLUSTER_LABEL)
    else:
        name = ownership.cluster_name(obj)
    return None if name is None else (metadata["namespace"], name)


class Store:
    """Objects by kind, namespace and name. What is older than what is here is passed over.

    `on_change` is called with the cluster whose object appeared, changed or went (then with True).
    """

    def __init__(self, on_change: Callable[[ClusterKey, bool], None]) -> None:
        self._on_change = on_change
        self._objects: dict[ObjectKey, Object] = {}
        self._of_cluster: dict[ClusterKey, set[ObjectKey]] = {}
        self._blind: dict[tuple[str, str | None], str] = {}
        self._absent: set[tuple[str, str | None]] = set()

    def of_cluster(self, key: ClusterKey) -> Iterator[Object]:
        """Everything that belongs to a cluster, pods included."""
        for object_key in self._of_cluster.get(key, ()):
            yield self._objects[object_key]

    def clusters(self) -> Iterable[ClusterKey]:
        """The clusters that anything here belongs to."""
        return tuple(self._of_cluster)

    def touch(self, key: ClusterKey) -> None:
        """Have a cluster looked at."""
        self._on_change(key, False)

    def put(self, obj: Object, *, notify: bool = True) -> None:
        """An object as it was just seen, or as a write of ours returned it."""
        key = _key(obj)
        known = self._objects.get(key)
        if known is not None and _version(obj) <= _version(known):
            return
        self._drop(key)
        obj = _pruned(obj)
        self._objects[key] = obj
        cluster = cluster_of(obj)
        if cluster is not None:
            self._of_cluster.setdefault(cluster, set()).add(key)
        if notify and not (
            known is not None and obj["kind"] == "ReplicaSet" and known["spec"] == obj["spec"]
        ):
            for changed in {cluster, cluster_of(known) if known is not None else None} - {None}:
                assert changed is not None  # noqa: S101 - for the type checker
                self._on_change(changed, False)

    def remove(self, obj: Object, *, notify: bool = True) -> None:
        """An object that a watch says was deleted, as it was then, or that we have deleted."""
        key = _key(obj)
        known = self._objects.get(key)
        if known is None or _version(known) > _version(obj):  # another one by that name is there already
            return
        self._drop(key)
        cluster = cluster_of(known)
        if cluster is not None and notify:
            self._on_change(cluster, True)

    def replace(self, kind: str, namespace: str | None, objects: Iterable[Object], version: str) -> None:
        """Everything of a kind as a list returned it. What is not in it, and not newer than it, is gone."""
        present = set()
        for obj in objects:
            present.add(_key(obj))
            self.put(obj)
        for key in [key for key in self._objects if key[0] == kind and namespace in (None, key[1])]:
            if key not in present and _version(self._objects[key]) <= _number(version):
                known = self._objects[key]
                self._drop(key)
                cluster = cluster_of(known)
                if cluster is not None:
                    self._on_change(cluster, True)

    def forget(self, kind: str, namespace: str | None) -> None:
        """Drop everything of a kind that the API server no longer knows."""
        for key in [key for key in self._objects if key[0] == kind and namespace in (None, key[1])]:
            self._drop(key)

    def set_blind(self, kind: str, namespace: str | None, reason: str | None) -> bool:
        """Note that a kind cannot be watched, or (None) that it can again; gives whether that is news."""
        before = self._blind.get((kind, namespace))
        if reason is None:
            self._blind.pop((kind, namespace), None)
        else:
            self._blind[kind, namespace] = reason
        return before != reason

    def blind(self, namespace: str) -> dict[str, str]:
        """The kinds that cannot be watched in a namespace, and why."""
        return {kind: reason for (kind, where), reason in self._blind.items() if where in (None, namespace)}

    def set_absent(self, kind: str, namespace: str | None, absent: bool) -> bool:
        """Note whether the API server knows a kind at all; gives whether that is news."""
        if absent == ((kind, namespace) in self._absent):
            return False
        (self._absent.add if absent else self._absent.discard)((kind, namespace))
        return True

    def absent(self, namespace: str) -> frozenset[str]:
        """The kinds that the API server does not know, as far as is known of a namespace."""
        return frozenset(kind for kind, where in self._absent if where in (None, namespace))

    def _drop(self, key: ObjectKey) -> None:
        known = self._objects.pop(key, None)
        if known is None:
            return
        cluster = cluster_of(known)
        if cluster is not None:
            keys = self._of_cluster[cluster]
            keys.discard(key)
            if not keys:
                del self._of_cluster[cluster]


def _key(obj: Object) -> ObjectKey:
    return obj["kind"], obj["metadata"]["namespace"], obj["metadata"]["name"]


def _version(obj: Object) -> int:
    return _number(obj["metadata"].get("resourceVersion", "0"))


def _number(version: str) -> int:
    # Comparable as numbers by contract since Kubernetes 1.35, and in fact ever since etcd 3.
    return int(version) if version.isdecimal() else 0


def _pruned(obj: Object) -> Object:
    """Less what nobody reads: others' managed fields, and most of pods' specs and of ReplicaSets."""
    metadata: dict[str, Any] = dict(obj["metadata"])
    ours = [
        entry for entry in metadata.get("managedFields") or () if entry.get("manager") == names.FIELD_MANAGER
    ]
    metadata.pop("managedFields", None)
    pruned: dict[str, Any] = {**obj, "metadata": metadata}
    if obj["kind"] == "Pod":
        pruned["spec"] = _of_pod(obj["spec"])
    elif obj["kind"] == "ReplicaSet":
        pruned = {
            **{part: pruned[part] for part in ("apiVersion", "kind", "metadata") if part in pruned},
            "spec": {"template": {"spec": _of_pod(obj["spec"]["template"]["spec"])}},
        }
    elif ours:
        metadata["managedFields"] = ours
    return pruned


def _of_pod(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Its node, and where its containers have their environment from."""
    found: dict[str, Any] = {
        "containers": [
            {"envFrom": container["envFrom"]}
            for container in spec.get("containers") or ()
            if container.get("envFrom")
        ]
    }
    if "nodeName" in spec:
        found["nodeName"] = spec["nodeName"]
    return found
