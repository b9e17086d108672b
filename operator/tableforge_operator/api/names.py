"""Names that stand in objects on the API server: the resource's own, our labels and annotations."""

from typing import Final

GROUP: Final = "tableforge.io"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
KIND: Final = "WebSocketCluster"
PLURAL: Final = "websocketclusters"
SINGULAR: Final = "websocketcluster"
SHORT_NAME: Final = "wsc"
CATEGORY: Final = "tableforge"

FIELD_MANAGER: Final = "tableforge-operator"

CLUSTER_LABEL: Final = f"{GROUP}/cluster"
"""The name of the WebSocketCluster a child belongs to. Children are listed and watched by it."""
TRACK_LABEL: Final = f"{GROUP}/track"
"""`a` or `b`: which of two fleets, so that a later blue-green rollout needs no new selectors."""
COMPONENT_LABEL: Final = "app.kubernetes.io/component"
DATAPLANE: Final = "dataplane"
REDIS: Final = "redis"

CONFIG_HASH_ANNOTATION: Final = f"{GROUP}/config-hash"
"""On pod templates: changes with the ConfigMap, so that a changed setting rolls the pods."""
PAUSED_ANNOTATION: Final = f"{GROUP}/paused"
"""On the WebSocketCluster: `"true"` stops every write for it."""
