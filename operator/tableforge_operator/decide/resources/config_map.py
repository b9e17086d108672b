"""The ConfigMaps with the instances' settings: their environment, and a file with what may change meanwhile.

What is in the file reaches running instances; only a change of the environment makes new pods.
"""

from pathlib import PurePosixPath
from typing import Any, Final

import msgspec

from tableforge_dataplane.contract import endpoints, live, settings
from tableforge_operator.api import Duration, WebSocketCluster
from tableforge_operator.api.fields import Group, settings_in
from tableforge_operator.api.quantities import size_bytes
from tableforge_operator.api.references import file_variable
from tableforge_operator.api.spec.common import INTERNAL_PORT
from tableforge_operator.decide.resources.kinds import CONFIG_MAP
from tableforge_operator.decide.resources.metadata import (
    child,
    config_name,
    fingerprint,
    live_config_name,
    redis_name,
)

REDIS_PORT: Final = 6379
"""Of the managed Redis."""

LIVE_FILE: Final = PurePosixPath(endpoints.LIVE_SETTINGS_FILE).name

_SPECS: Final = settings.specs()


def config_map(cluster: WebSocketCluster) -> dict[str, Any]:
    """The environment: every setting that the spec decides and that only a restart can change.

    It never changes: another environment has another name, so that a pod whose container is started again
    gets the one it had, whatever the spec asks for by then.

    `WS_HOST` is left to the data plane's default: all addresses.
    """
    files = {"http.fleet_key": endpoints.FLEET_KEY_FILE, "live.file": endpoints.LIVE_SETTINGS_FILE}
    if cluster.managed_redis is not None:
        files["redis.password"] = endpoints.REDIS_PASSWORDS_DIR
    files |= {ref.setting: ref.file for ref in cluster.references}
    data = {
        _SPECS[name][0].env: _render(value)
        for name, value in _settings(cluster).items()
        if not _SPECS[name][0].live
    }
    data |= {file_variable(name): path for name, path in files.items()}
    return {
        **child(cluster, CONFIG_MAP, config_name(cluster, fingerprint(data)), "dataplane"),
        "immutable": True,
        "data": dict(sorted(data.items())),
    }


def live_config_map(cluster: WebSocketCluster) -> dict[str, Any]:
    """The file: the other settings that the spec decides."""
    data = {
        _SPECS[name][0].env: _render(value)
        for name, value in _settings(cluster).items()
        if _SPECS[name][0].live
    }
    text = msgspec.json.format(msgspec.json.encode(data, order="sorted"), indent=2).decode()
    return {
        **child(cluster, CONFIG_MAP, live_config_name(cluster), "dataplane"),
        "data": {LIVE_FILE: f"{text}\n"},
    }


def live_fingerprint(cluster: WebSocketCluster) -> str:
    """What an instance tells that goes by this file."""
    return live.fingerprint(live_config_map(cluster)["data"][LIVE_FILE].encode())


def _settings(cluster: WebSocketCluster) -> dict[str, Any]:
    values: dict[str, Any] = {
        "http.port": INTERNAL_PORT,
        # One key prefix is one cluster's: a second one that names the same never becomes ready.
        "redis.claim": f"{cluster.namespace}/{cluster.name}/{cluster.uid}",
        "redis.durability": cluster.durability,
        "redis.key_prefix": cluster.key_prefix,
        "routing.weight": cluster.weight,
        # The data plane refuses a write limit under twice the largest frame.
        "websocket.write_limit_bytes": max(
            _SPECS["websocket.write_limit_bytes"][1], 2 * cluster.spec.websocket.max_payload_bytes
        ),
        **_where_redis_is(cluster),
        **dict(settings_in(cluster.spec)),
    }
    external = cluster.spec.redis.external
    if external is not None and external.mode != "Standalone":
        values.pop("redis.port", None)  # its servers have theirs
    if (threshold := cluster.spec.monitoring.memory_threshold) is not None:
        values["monitoring.memory_threshold_bytes"] = size_bytes(threshold)
    return values


def _where_redis_is(cluster: WebSocketCluster) -> dict[str, Any]:
    """What no field says by itself."""
    external = cluster.spec.redis.external
    if external is None:
        return {"redis.host": f"{redis_name(cluster)}.{cluster.namespace}.svc", "redis.port": REDIS_PORT}
    return {} if external.tls is None else {"redis.tls": True}


def _render(value: Any) -> str:
    """As the data plane reads it from the environment."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Duration):
        return str(value.milliseconds)
    if isinstance(value, Group) or (isinstance(value, list) and any(isinstance(one, Group) for one in value)):
        return msgspec.json.encode(_plain(msgspec.to_builtins(value, enc_hook=_milliseconds))).decode()
    if isinstance(value, list):
        return ",".join(value)
    return str(value)


def _plain(value: Any) -> Any:
    """As JSON that the data plane reads: durations are milliseconds, what is unset isn't there."""
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items() if one is not None}
    return value


def _milliseconds(value: Any) -> Any:
    if isinstance(value, Duration):
        return value.milliseconds
    raise TypeError(f"{type(value).__name__} is nothing that a setting can hold")
