"""The HorizontalPodAutoscaler: how many instances run, by CPU and memory, above a floor that is ours."""

import datetime as dt
from typing import Any, Final

from tableforge_operator.api import WebSocketCluster, names
from tableforge_operator.decide.resources.deployment import grace_period_seconds
from tableforge_operator.decide.resources.floor import Floor
from tableforge_operator.decide.resources.kinds import AUTOSCALER, DEPLOYMENT
from tableforge_operator.decide.resources.metadata import Track, child, fleet_name

FLOOR_CHANGED_ANNOTATION: Final = f"{names.GROUP}/floor-changed-at"
"""When connections last moved `minReplicas`: an operator that starts keeps to the cooldowns by it."""
LONGEST_WINDOW_SECONDS: Final = 3600
"""Kubernetes looks back no further."""
LONGEST_PERIOD_SECONDS: Final = 1800


def horizontal_pod_autoscaler(cluster: WebSocketCluster, *, track: Track, floor: Floor) -> dict[str, Any]:
    """`track` is the one that serves clients."""
    spec = cluster.spec
    targets = {
        "cpu": spec.autoscaling.target_cpu_utilization,
        "memory": spec.autoscaling.target_memory_utilization,
    }
    annotations = {} if floor.changed_at is None else {FLOOR_CHANGED_ANNOTATION: stamp(floor.changed_at)}
    return {
        **child(
            cluster,
            AUTOSCALER,
            cluster.name,
            "dataplane",
            **({"annotations": annotations} if annotations else {}),
        ),
        "spec": {
            "scaleTargetRef": {
                "apiVersion": DEPLOYMENT.api_version,
                "kind": DEPLOYMENT.kind,
                "name": fleet_name(cluster, track),
            },
            "minReplicas": floor.replicas,
            "maxReplicas": spec.autoscaling.max_replicas,
            "metrics": [
                {
                    "type": "Resource",
                    "resource": {
                        "name": name,
                        "target": {"type": "Utilization", "averageUtilization": percent},
                    },
                }
                for name, percent in targets.items()
                if percent > 0
            ],
            "behavior": {
                "scaleDown": {
                    "stabilizationWindowSeconds": min(
                        spec.load_balancing.scale_down_cooldown.whole_seconds, LONGEST_WINDOW_SECONDS
                    ),
                    # Each instance that goes sends its clients elsewhere: one at a time.
                    "policies": [
                        {
                            "type": "Pods",
                            "value": 1,
                            "periodSeconds": min(grace_period_seconds(cluster), LONGEST_PERIOD_SECONDS),
                        }
                    ],
                }
            },
        },
    }


def stamp(at: dt.datetime) -> str:
    """As it stands in the annotation: whole seconds, UTC."""
    return at.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
