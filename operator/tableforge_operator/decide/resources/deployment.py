"""The Deployment: one track's instances."""

from pathlib import PurePosixPath
from typing import Any, Final

import msgspec

from tableforge_dataplane.contract import endpoints
from tableforge_operator.api import WebSocketCluster, names
from tableforge_operator.api.spec import INTERNAL_PORT
from tableforge_operator.decide.resources import pod_security
from tableforge_operator.decide.resources.kinds import DEPLOYMENT
from tableforge_operator.decide.resources.metadata import (
    child,
    config_name,
    fleet_name,
    labels,
    track_labels,
)
from tableforge_operator.decide.resources.secrets import FLEET_KEY_KEY, REDIS_PASSWORD_KEY, redis_secret_name

PRE_STOP_SECONDS: Final = 5
"""How long a leaving pod goes on as before: by then every node's Service rules have dropped it, so that no
new client meets an instance that drains."""
SHUTDOWN_MARGIN_SECONDS: Final = 10
"""What the grace period leaves after the drain, for closing the last connections."""


def deployment(cluster: WebSocketCluster, *, config_hash: str, fleet_secret: str) -> dict[str, Any]:
    """`config_hash` changes with the ConfigMap, `fleet_secret` names the Secret with the fleet's key."""
    spec = cluster.spec
    pod_labels = {**spec.pod.labels, **labels(cluster, "dataplane"), **track_labels(cluster)}
    return {
        **child(cluster, DEPLOYMENT, fleet_name(cluster), "dataplane", labels=track_labels(cluster)),
        "spec": {
            "replicas": spec.replicas,
            "revisionHistoryLimit": 3,
            "progressDeadlineSeconds": spec.rollout.progress_deadline.whole_seconds,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "selector": {"matchLabels": track_labels(cluster)},
            "template": {
                "metadata": {
                    "labels": pod_labels,
                    "annotations": {**spec.pod.annotations, names.CONFIG_HASH_ANNOTATION: config_hash},
                },
                "spec": _pod(cluster, fleet_secret),
            },
        },
    }


def _pod(cluster: WebSocketCluster, fleet_secret: str) -> dict[str, Any]:
    spec = cluster.spec
    volumes, mounts = _secret_volumes(cluster, fleet_secret)
    pod: dict[str, Any] = {
        "serviceAccountName": cluster.name,
        "automountServiceAccountToken": False,
        # A Service called `redis` would else set REDIS_PORT.
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": (
            PRE_STOP_SECONDS + spec.rollout.drain_timeout.whole_seconds + SHUTDOWN_MARGIN_SECONDS
        ),
        "securityContext": pod_security.POD,
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": key,
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": track_labels(cluster)},
            }
            for key in ("kubernetes.io/hostname", "topology.kubernetes.io/zone")
        ],
        "containers": [
            {
                "name": "dataplane",
                "image": cluster.image,
                "ports": [
                    {"name": "ws", "containerPort": spec.websocket.port, "protocol": "TCP"},
                    {"name": "internal", "containerPort": INTERNAL_PORT, "protocol": "TCP"},
                ],
                "env": [
                    {"name": "INSTANCE_ID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                    {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                ],
                "envFrom": [{"configMapRef": {"name": config_name(cluster)}}],
                "resources": _resources(cluster),
                "livenessProbe": {
                    "httpGet": {"path": endpoints.LIVE_PATH, "port": "ws"},
                    "initialDelaySeconds": 30,
                    "periodSeconds": 10,
                    "timeoutSeconds": 5,
                    "failureThreshold": 3,
                },
                "readinessProbe": {
                    "httpGet": {"path": endpoints.READY_PATH, "port": "ws"},
                    "initialDelaySeconds": 5,
                    "periodSeconds": 5,
                    "timeoutSeconds": 3,
                    "failureThreshold": 3,
                },
                # The sleep action: slim images have no shell to sleep in.
                "lifecycle": {"preStop": {"sleep": {"seconds": PRE_STOP_SECONDS}}},
                "securityContext": pod_security.CONTAINER,
                "terminationMessagePolicy": "FallbackToLogsOnError",
                "volumeMounts": mounts,
            }
        ],
        "volumes": volumes,
    }
    if spec.pod.node_selector:
        pod["nodeSelector"] = dict(spec.pod.node_selector)
    if spec.pod.tolerations:
        pod["tolerations"] = [
            {key: value for key, value in msgspec.to_builtins(toleration).items() if value is not None}
            for toleration in spec.pod.tolerations
        ]
    return pod


def _resources(cluster: WebSocketCluster) -> dict[str, Any]:
    given = cluster.spec.pod.resources
    # As text: the API server answers with text, so that 2 and "2" are one object.
    resources = {
        "requests": {name: str(value) for name, value in given.requests.items()},
        "limits": {name: str(value) for name, value in given.limits.items()},
    }
    return {name: values for name, values in resources.items() if values}


def _secret_volumes(
    cluster: WebSocketCluster, fleet_secret: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    # Optional: a Secret that is still missing keeps an instance not ready, with the reason at /health, where
    # a required one would keep it from starting and leave the reason in an event.
    found = [("fleet-key", fleet_secret, FLEET_KEY_KEY, endpoints.FLEET_KEY_FILE)]
    external = cluster.spec.redis.external
    if external is None:
        found.append(
            ("redis-password", redis_secret_name(cluster), REDIS_PASSWORD_KEY, endpoints.REDIS_PASSWORD_FILE)
        )
    elif (password := external.password_secret_ref) is not None:
        found.append(("redis-password", password.name, password.key, endpoints.REDIS_PASSWORD_FILE))
    if (jwt := cluster.spec.auth.jwt_secret_ref) is not None:
        found.append(("jwt-secret", jwt.name, jwt.key, endpoints.JWT_SECRET_FILE))
    volumes = [
        {
            "name": name,
            "secret": {
                "secretName": secret,
                "items": [{"key": key, "path": PurePosixPath(file).name}],
                "defaultMode": pod_security.SECRET_MODE,
                "optional": True,
            },
        }
        for name, secret, key, file in found
    ]
    # Whole folders: a file mounted by `subPath` never changes after the start.
    mounts = [
        {"name": name, "mountPath": str(PurePosixPath(file).parent), "readOnly": True}
        for name, _, _, file in found
    ]
    return volumes, mounts
