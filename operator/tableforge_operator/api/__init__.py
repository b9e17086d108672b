"""The `WebSocketCluster` resource: typed models, and the CRD generated from them (`python -m …api.crd`)."""

from tableforge_operator.api.cluster import InvalidClusterError, WebSocketCluster, load
from tableforge_operator.api.quantities import Duration
from tableforge_operator.api.spec import Spec
from tableforge_operator.api.status import Condition, InstanceStatus, RebalanceStatus, RedisStatus, Status

__all__ = [
    "Condition",
    "Duration",
    "InstanceStatus",
    "InvalidClusterError",
    "RebalanceStatus",
    "RedisStatus",
    "Spec",
    "Status",
    "WebSocketCluster",
    "load",
]
