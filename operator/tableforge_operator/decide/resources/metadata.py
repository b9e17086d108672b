"""Names, labels and owner references of a cluster's children. The CR's own labels are never copied."""

import hashlib
from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec

from tableforge_operator.api import WebSocketCluster, names
from tableforge_operator.decide.resources.kinds import Kind

Track = Literal["a", "b"]
Component = Literal["dataplane", "redis"]

TRACK: Final[Track] = "a"
"""The one that a cluster begins with. The track is in every selector, since those are immutable."""


def fleet_name(cluster: WebSocketCluster, track: Track = TRACK) -> str:
    """The Deployment's."""
    return f"{cluster.name}-{track}"


def instances_name(cluster: WebSocketCluster) -> str:
    """The headless Service's."""
    return f"{cluster.name}-instances"


def config_name(cluster: WebSocketCluster, config_hash: str) -> str:
    """The name of the ConfigMap with the instances' environment, by the hash of what is in it."""
    return f"{cluster.name}-config-{config_hash[:8]}"


def live_config_name(cluster: WebSocketCluster) -> str:
    """The name of the ConfigMap with the settings that reach running instances."""
    return f"{cluster.name}-live"


def redis_name(cluster: WebSocketCluster) -> str:
    """The name of the managed Redis's StatefulSet, Service and ConfigMap."""
    return f"{cluster.name}-redis"


def component_labels(cluster: WebSocketCluster, component: Component) -> dict[str, str]:
    """What tells one component's pods from everything else's: short, because selectors are immutable."""
    return {names.COMPONENT_LABEL: component, names.CLUSTER_LABEL: cluster.name}


def track_labels(cluster: WebSocketCluster, track: Track = TRACK) -> dict[str, str]:
    """What tells one track's pods from everything else's."""
    return {**component_labels(cluster, "dataplane"), names.TRACK_LABEL: track}


def scale_selector(cluster: WebSocketCluster) -> str:
    """The selector of all instances as text, for `status.selector` and for listing their pods."""
    labels = component_labels(cluster, "dataplane")
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))


def labels(cluster: WebSocketCluster, component: Component) -> dict[str, str]:
    """All labels of a child."""
    return {
        "app.kubernetes.io/name": "tableforge",
        "app.kubernetes.io/instance": cluster.name,
        "app.kubernetes.io/managed-by": "tableforge-operator",
        **component_labels(cluster, component),
    }


def child(
    cluster: WebSocketCluster, kind: Kind, name: str, component: Component, **more: Any
) -> dict[str, Any]:
    """The head of a child: apiVersion, kind and metadata. `more` adds labels and annotations."""
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": cluster.namespace,
        "labels": {**labels(cluster, component), **more.pop("labels", {})},
        "ownerReferences": [
            {
                "apiVersion": names.API_VERSION,
                "kind": names.KIND,
                "name": cluster.name,
                "uid": cluster.uid,
                "controller": True,
                # `true` would ask for a permission on the CR's finalizers that nothing else needs
                "blockOwnerDeletion": False,
            }
        ],
        **more,
    }
    return {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata}


def child_of_pod(
    cluster: WebSocketCluster, kind: Kind, pod: Mapping[str, Any], **more: Any
) -> dict[str, Any]:
    """The head of what leads to one instance: it has the pod's name, and goes with the pod."""
    name = pod["metadata"]["name"]
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": cluster.namespace,
        "labels": {**labels(cluster, "dataplane"), names.INSTANCE_LABEL: name},
        "ownerReferences": [
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "name": name,
                "uid": pod["metadata"]["uid"],
                "controller": True,
                "blockOwnerDeletion": False,
            }
        ],
        **more,
    }
    return {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata}


def fingerprint(data: Any) -> str:
    """16 hexadecimal digits that change with `data`."""
    return hashlib.sha256(msgspec.json.encode(data, order="sorted")).hexdigest()[:16]
