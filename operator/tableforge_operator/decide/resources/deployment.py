"""The Deployment: one track's instances."""

from pathlib import PurePosixPath
from typing import Any, Final

from tableforge_dataplane.contract import endpoints
from tableforge_operator.api import WebSocketCluster, names
from tableforge_operator.api.references import Reference
from tableforge_operator.api.spec.common import INTERNAL_PORT
from tableforge_operator.decide.resources import pod_overrides, pod_security
from tableforge_operator.decide.resources.kinds import DEPLOYMENT
from tableforge_operator.decide.resources.metadata import (
    TRACK,
    Track,
    child,
    config_name,
    fingerprint,
    fleet_name,
    labels,
    live_config_name,
    track_labels,
)
from tableforge_operator.decide.resources.passwords import password_secret_name, window
from tableforge_operator.decide.resources.secrets import FLEET_KEY_KEY, REDIS_PASSWORD_KEY, MadeSecrets
from tableforge_operator.decide.resources.tracks import Instances

PRE_STOP_SECONDS: Final = 5
"""How long a leaving pod goes on as before: by then every node's Service rules have dropped it, so that no
new client meets an instance that drains."""
SHUTDOWN_MARGIN_SECONDS: Final = 10
"""What the grace period leaves after the drain, for closing the last connections."""
FIRST_READY_SECONDS: Final = 5
"""No instance is ready earlier after its start."""

_USUAL: Final = Instances()


def deployment(
    cluster: WebSocketCluster, *, config_hash: str, secrets: MadeSecrets, instances: Instances = _USUAL
) -> dict[str, Any]:
    """`config_hash` is of the environment, and in its ConfigMap's name."""
    spec, track = cluster.spec, track_labels(cluster, instances.track)
    hashed = template_hash(cluster, config_hash=config_hash, secrets=secrets)
    annotations = {names.TEMPLATE_HASH_ANNOTATION: hashed}
    if instances.replaces:
        annotations[names.REPLACES_ANNOTATION] = instances.replaces
    pause = instances.min_ready_seconds
    size = instances.replicas
    if size is None and not cluster.autoscaled:
        size = spec.replicas
    return {
        **child(
            cluster,
            DEPLOYMENT,
            fleet_name(cluster, instances.track),
            "dataplane",
            labels=track,
            annotations=annotations,
        ),
        "spec": {
            **({} if size is None else {"replicas": size}),
            "revisionHistoryLimit": 3,
            **({"minReadySeconds": pause} if pause else {}),
            "progressDeadlineSeconds": spec.rollout.progress_deadline.whole_seconds + pause,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "selector": {"matchLabels": track},
            "template": _template(cluster, instances.track, config_hash=config_hash, secrets=secrets),
        },
    }


def grace_period_seconds(cluster: WebSocketCluster) -> int:
    """The longest that a pod takes to leave."""
    return PRE_STOP_SECONDS + cluster.spec.rollout.drain_timeout.whole_seconds + SHUTDOWN_MARGIN_SECONDS


def template_hash(cluster: WebSocketCluster, *, config_hash: str, secrets: MadeSecrets) -> str:
    """Changes with what the instances are to be; the same for both tracks."""
    return fingerprint(_template(cluster, TRACK, config_hash=config_hash, secrets=secrets))


def _template(
    cluster: WebSocketCluster, track: Track, *, config_hash: str, secrets: MadeSecrets
) -> dict[str, Any]:
    pod = cluster.spec.pod
    return {
        "metadata": {
            "labels": {
                **pod.labels,
                **labels(cluster, "dataplane"),
                **track_labels(cluster, track),
                # From birth: a new instance has clients though no operator is there to let it in.
                names.ACCEPTING_LABEL: "true",
            },
            "annotations": {**pod.annotations, names.CONFIG_HASH_ANNOTATION: config_hash},
        },
        "spec": _pod(cluster, track, config_hash=config_hash, secrets=secrets),
    }


def _pod(
    cluster: WebSocketCluster, track: Track, *, config_hash: str, secrets: MadeSecrets
) -> dict[str, Any]:
    spec = cluster.spec
    volumes, mounts = _mounted(cluster, secrets)
    return {
        "serviceAccountName": cluster.name,
        "automountServiceAccountToken": False,
        # A Service called `redis` would else set REDIS_PORT.
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": grace_period_seconds(cluster),
        "securityContext": pod_security.POD,
        **pod_overrides.placement(spec.pod, spread=track_labels(cluster, track)),
        **pod_overrides.pull_secrets(spec.pod),
        "containers": [
            {
                "name": "dataplane",
                "image": cluster.image,
                **pod_overrides.pull_policy(spec.pod),
                "ports": [
                    {"name": "ws", "containerPort": spec.websocket.port, "protocol": "TCP"},
                    {"name": "internal", "containerPort": INTERNAL_PORT, "protocol": "TCP"},
                ],
                "env": [
                    {"name": "INSTANCE_ID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                    {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                    *pod_overrides.extra_env(spec.pod),
                ],
                "envFrom": [{"configMapRef": {"name": config_name(cluster, config_hash)}}],
                "resources": pod_overrides.resources(spec.pod),
                # The internal port knows neither TLS nor the PROXY protocol, which a kubelet doesn't speak.
                "livenessProbe": {
                    "httpGet": {"path": endpoints.LIVE_PATH, "port": "internal"},
                    "initialDelaySeconds": 30,
                    "periodSeconds": 10,
                    "timeoutSeconds": 5,
                    "failureThreshold": 3,
                },
                "readinessProbe": {
                    "httpGet": {"path": endpoints.READY_PATH, "port": "internal"},
                    "initialDelaySeconds": FIRST_READY_SECONDS,
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


def _mounted(
    cluster: WebSocketCluster, secrets: MadeSecrets
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The volumes of what an instance reads from files, and where they are mounted."""
    mounted = [
        Reference(
            setting="http.fleet_key",
            field="",
            volume="fleet-key",
            file=endpoints.FLEET_KEY_FILE,
            name=secrets.fleet,
            key=FLEET_KEY_KEY,
        )
    ]
    live = PurePosixPath(endpoints.LIVE_SETTINGS_FILE)
    volumes: dict[str, dict[str, Any]] = {
        "live-settings": {"name": "live-settings", "configMap": {"name": live_config_name(cluster)}}
    }
    mounts: dict[str, dict[str, Any]] = {
        "live-settings": {"name": "live-settings", "mountPath": str(live.parent), "readOnly": True}
    }
    for ref in (*mounted, *cluster.references):
        path = PurePosixPath(ref.file)
        source = "secret" if ref.kind == "Secret" else "configMap"
        volume = volumes.setdefault(ref.volume, {"name": ref.volume, source: _source(ref)})
        volume[source]["items"].append({"key": ref.key, "path": path.name})
        # Whole folders: a file mounted by `subPath` never changes after the start.
        mounts[ref.volume] = {"name": ref.volume, "mountPath": str(path.parent), "readOnly": True}
    if cluster.managed_redis is not None:
        volumes["redis-password"] = _passwords(cluster, secrets)
        place = {"mountPath": endpoints.REDIS_PASSWORDS_DIR, "readOnly": True}
        mounts["redis-password"] = {"name": "redis-password", **place}
    return list(volumes.values()), list(mounts.values())


def _passwords(cluster: WebSocketCluster, secrets: MadeSecrets) -> dict[str, Any]:
    """Those of the managed Redis, each in a Secret: the kubelet adds the ones to come when they are there."""
    sources = [
        {
            "secret": {
                "name": password_secret_name(cluster, generation),
                "items": [{"key": REDIS_PASSWORD_KEY, "path": str(generation)}],
                "optional": True,
            }
        }
        for generation in window(secrets.redis_password)
    ]
    projected = {"sources": sources, "defaultMode": pod_security.SECRET_MODE}
    return {"name": "redis-password", "projected": projected}


def _source(ref: Reference) -> dict[str, Any]:
    # Optional: an object that is still missing keeps an instance not ready, with the reason at /health, where
    # a required one would keep it from starting and leave the reason in an event.
    return {
        "secretName" if ref.kind == "Secret" else "name": ref.name,
        "items": [],
        "defaultMode": pod_security.SECRET_MODE,
        "optional": True,
    }
