"""What the children of the cluster `tables` in `games` have in common, written out."""

import json
from typing import Any

from tableforge_operator.api import WebSocketCluster
from tableforge_operator.decide.resources.config_map import config_map, live_config_map
from tests.operator.model.conftest import UID

OWNERS = [
    {
        "apiVersion": "tableforge.io/v1alpha1",
        "kind": "WebSocketCluster",
        "name": "tables",
        "uid": UID,
        "controller": True,
        "blockOwnerDeletion": False,
    }
]
DATAPLANE = {"app.kubernetes.io/component": "dataplane", "tableforge.io/cluster": "tables"}
REDIS = {"app.kubernetes.io/component": "redis", "tableforge.io/cluster": "tables"}
TRACK = {**DATAPLANE, "tableforge.io/track": "a"}
ACCEPTING = {**TRACK, "tableforge.io/accepting": "true"}
COMMON = {
    "app.kubernetes.io/name": "tableforge",
    "app.kubernetes.io/instance": "tables",
    "app.kubernetes.io/managed-by": "tableforge-operator",
}


def metadata(name: str, labels: dict[str, str]) -> dict[str, Any]:
    return {"name": name, "namespace": "games", "labels": {**COMMON, **labels}, "ownerReferences": OWNERS}


def cr(spec: dict[str, Any] | None = None, name: str = "tables") -> dict[str, Any]:
    """A WebSocketCluster to give to the API server."""
    return {
        "apiVersion": "tableforge.io/v1alpha1",
        "kind": "WebSocketCluster",
        "metadata": {"name": name},
        "spec": {"auth": {"required": False}, **(spec or {})},
    }


def environ(cluster: WebSocketCluster) -> dict[str, str]:
    """What an instance goes by: its environment, and over it the file that may change meanwhile."""
    data = dict(config_map(cluster)["data"])
    assert data.pop("TABLEFORGE_LIVE_SETTINGS_FILE") == "/etc/tableforge/live/settings.json"
    live = json.loads(live_config_map(cluster)["data"]["settings.json"])
    assert not set(data) & set(live), "nothing is said twice"
    return {**data, **live}
