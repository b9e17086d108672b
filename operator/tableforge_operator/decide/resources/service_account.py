"""The ServiceAccount of a cluster's pods: no permissions, no token."""

from typing import Any

from tableforge_operator.api import WebSocketCluster
from tableforge_operator.decide.resources.kinds import SERVICE_ACCOUNT
from tableforge_operator.decide.resources.metadata import child


def service_account(cluster: WebSocketCluster) -> dict[str, Any]:
    return {
        **child(cluster, SERVICE_ACCOUNT, cluster.name, "dataplane"),
        "automountServiceAccountToken": False,
    }
