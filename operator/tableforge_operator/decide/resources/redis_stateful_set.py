"""The StatefulSet of the managed Redis: one pod, one claim."""

from collections.abc import Mapping
from typing import Any, Final

from tableforge_operator.api import WebSocketCluster, names
from tableforge_operator.api.quantities import mebibytes
from tableforge_operator.api.spec.common import DEFAULT_REDIS_IMAGE
from tableforge_operator.api.spec.redis_managed import ManagedRedis
from tableforge_operator.decide.resources import pod_overrides, pod_security
from tableforge_operator.decide.resources.config_map import REDIS_PORT
from tableforge_operator.decide.resources.kinds import STATEFUL_SET
from tableforge_operator.decide.resources.metadata import child, component_labels, labels, redis_name
from tableforge_operator.decide.resources.passwords import (
    AUTH_VOLUME,
    FIRST,
    Passwords,
    hashes_text,
    taken_secret_name,
)
from tableforge_operator.decide.resources.redis_config_map import AUTH_DIR, CONFIG_FILE, DATA_DIR
from tableforge_operator.decide.resources.secrets import REDIS_CONF_KEY

CONFIG_DIR: Final = "/etc/redis"
REDIS_UID: Final = 999
"""The user that the official images of Valkey and Redis drop to when they are started as root."""


def redis_stateful_set(
    cluster: WebSocketCluster,
    redis: ManagedRedis,
    *,
    config_hash: str,
    passwords: Passwords = FIRST,
    live: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """`config_hash` changes with Redis's ConfigMap. `live`: the StatefulSet as it is, where there is one."""
    name = redis_name(cluster)
    more: dict[str, Any] = {}
    if passwords.hashes:
        # On the StatefulSet and not on its pods, which it must not restart.
        more["annotations"] = {names.PASSWORD_HASHES_ANNOTATION: hashes_text(passwords.hashes)}
    return {
        **child(cluster, STATEFUL_SET, name, "redis", **more),
        "spec": {
            "replicas": 1,
            "podManagementPolicy": _policy(live),
            "serviceName": name,
            "revisionHistoryLimit": 3,
            "persistentVolumeClaimRetentionPolicy": {
                "whenDeleted": redis.persistence.on_delete,
                "whenScaled": "Retain",
            },
            "selector": {"matchLabels": component_labels(cluster, "redis")},
            "template": {
                "metadata": {
                    "labels": labels(cluster, "redis"),
                    "annotations": {names.CONFIG_HASH_ANNOTATION: config_hash},
                },
                "spec": _pod(cluster, redis, passwords),
            },
            # It cannot change any more once it is there: it is the claim itself that grows.
            "volumeClaimTemplates": [
                _claim_template(cluster, redis) if live is None else _claim_template_of(live)
            ],
        },
    }


def _policy(live: Mapping[str, Any] | None) -> str:
    """With `OrderedReady`, the default, a pod that never gets ready is not replaced when its image is set
    right (kubernetes/kubernetes#67250). What is there already cannot change.
    """
    return "Parallel" if live is None else str(live["spec"].get("podManagementPolicy", "OrderedReady"))


def _claim_template(cluster: WebSocketCluster, redis: ManagedRedis) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": redis.storage.size}},
    }
    if redis.storage.storage_class_name is not None:
        spec["storageClassName"] = redis.storage.storage_class_name
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        # All labels: by them the operator finds the claim, which belongs to the StatefulSet.
        "metadata": {"name": "data", "labels": labels(cluster, "redis")},
        "spec": spec,
    }


def _claim_template_of(live: Mapping[str, Any]) -> dict[str, Any]:
    """The template that is there, less what the API server added."""
    (template,) = live["spec"]["volumeClaimTemplates"]
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {part: template["metadata"][part] for part in ("name", "labels")},
        "spec": {
            part: template["spec"][part]
            for part in ("accessModes", "resources", "storageClassName")
            if part in template["spec"]
        },
    }


def _pod(cluster: WebSocketCluster, redis: ManagedRedis, passwords: Passwords) -> dict[str, Any]:
    memory = mebibytes(redis.max_memory)
    return {
        "serviceAccountName": cluster.name,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 30,
        **pod_overrides.pull_secrets(cluster.spec.pod),
        "securityContext": {
            **pod_security.POD,
            "runAsUser": REDIS_UID,
            "runAsGroup": REDIS_UID,
            "fsGroup": REDIS_UID,
            "fsGroupChangePolicy": "OnRootMismatch",
        },
        "containers": [
            {
                "name": "redis",
                "image": redis.image or DEFAULT_REDIS_IMAGE,
                # The official images' entry point puts `valkey-server` or `redis-server` in front of a .conf.
                "args": [f"{CONFIG_DIR}/{CONFIG_FILE}"],
                "ports": [{"name": "redis", "containerPort": REDIS_PORT, "protocol": "TCP"}],
                # While the append-only file is rewritten, a child holds copies of the pages that change.
                "resources": {
                    "requests": {"cpu": "100m", "memory": f"{memory + 64}Mi"},
                    "limits": {"memory": f"{2 * memory + 128}Mi"},
                },
                # By socket: a Redis that still loads its file accepts connections, and must not be killed.
                "livenessProbe": {
                    "tcpSocket": {"port": "redis"},
                    "initialDelaySeconds": 30,
                    "periodSeconds": 10,
                    "timeoutSeconds": 5,
                    "failureThreshold": 6,
                },
                "readinessProbe": {
                    "tcpSocket": {"port": "redis"},
                    "initialDelaySeconds": 1,
                    "periodSeconds": 3,
                    "timeoutSeconds": 3,
                    "failureThreshold": 3,
                },
                "securityContext": pod_security.CONTAINER,
                "volumeMounts": [
                    {"name": "data", "mountPath": DATA_DIR},
                    {"name": "config", "mountPath": CONFIG_DIR, "readOnly": True},
                    {"name": AUTH_VOLUME, "mountPath": AUTH_DIR, "readOnly": True},
                ],
            }
        ],
        "volumes": [
            {"name": "config", "configMap": {"name": redis_name(cluster)}},
            # Required: a Redis that started without it would let everybody in.
            {
                "name": AUTH_VOLUME,
                "secret": {
                    "secretName": taken_secret_name(cluster, passwords),
                    "items": [{"key": REDIS_CONF_KEY, "path": REDIS_CONF_KEY}],
                    "defaultMode": pod_security.SECRET_MODE,
                },
            },
        ],
    }
