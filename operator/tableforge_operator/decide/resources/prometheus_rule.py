"""The PrometheusRule with a cluster's alerts, where the Prometheus operator is installed."""

from typing import Any

from tableforge_operator.api import WebSocketCluster
from tableforge_operator.decide.resources.alerts import Alert, alerts
from tableforge_operator.decide.resources.kinds import PROMETHEUS_RULE
from tableforge_operator.decide.resources.metadata import child


def prometheus_rule(cluster: WebSocketCluster) -> dict[str, Any]:
    labels = dict(sorted(cluster.spec.monitoring.prometheus_rule.labels.items()))
    return {
        **child(cluster, PROMETHEUS_RULE, cluster.name, "dataplane", labels=labels),
        "spec": {
            "groups": [
                {
                    "name": f"tableforge.{cluster.namespace}.{cluster.name}",
                    "rules": [_rule(alert, cluster) for alert in alerts(cluster)],
                }
            ]
        },
    }


def _rule(alert: Alert, cluster: WebSocketCluster) -> dict[str, Any]:
    return {
        "alert": alert.name,
        "expr": alert.expression,
        "for": alert.lasting,
        "labels": {
            "severity": alert.severity,
            # Expressions that sum up have lost them.
            "namespace": cluster.namespace,
            "tableforge_io_cluster": cluster.name,
        },
        "annotations": {"summary": alert.summary, "description": alert.description},
    }
