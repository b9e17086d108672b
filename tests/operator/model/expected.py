"""What the children of the cluster `tables` in `games` have in common, written out."""

from typing import Any

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
COMMON = {
    "app.kubernetes.io/name": "tableforge",
    "app.kubernetes.io/instance": "tables",
    "app.kubernetes.io/managed-by": "tableforge-operator",
}


def metadata(name: str, labels: dict[str, str]) -> dict[str, Any]:
    return {"name": name, "namespace": "games", "labels": {**COMMON, **labels}, "ownerReferences": OWNERS}
