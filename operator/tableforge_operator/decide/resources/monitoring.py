"""What the Prometheus operator is told of a cluster."""

from collections.abc import Collection
from typing import Any

from tableforge_operator.api import WebSocketCluster
from tableforge_operator.decide.resources.kinds import POD_MONITOR, PROMETHEUS_RULE
from tableforge_operator.decide.resources.pod_monitor import pod_monitor
from tableforge_operator.decide.resources.prometheus_rule import prometheus_rule


def monitoring(cluster: WebSocketCluster, *, absent_kinds: Collection[str]) -> list[dict[str, Any]]:
    """Nothing of a kind that this Kubernetes cluster doesn't have, nor of instances that give no metrics."""
    asked = cluster.spec.monitoring
    found: list[dict[str, Any]] = []
    if asked.enable_metrics is False:
        return found
    if asked.pod_monitor.enabled and POD_MONITOR.kind not in absent_kinds:
        found.append(pod_monitor(cluster))
    if asked.prometheus_rule.enabled and PROMETHEUS_RULE.kind not in absent_kinds:
        found.append(prometheus_rule(cluster))
    return found
