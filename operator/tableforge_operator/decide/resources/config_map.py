"""The ConfigMap with the instances' environment."""

from typing import Any, Final

from tableforge_dataplane.contract import endpoints, settings
from tableforge_operator.api import Duration, WebSocketCluster
from tableforge_operator.api.fields import settings_in
from tableforge_operator.api.spec import INTERNAL_PORT
from tableforge_operator.decide.resources.kinds import CONFIG_MAP
from tableforge_operator.decide.resources.metadata import child, config_name, redis_name

REDIS_PORT: Final = 6379
"""Of the managed Redis."""

_SPECS: Final = settings.specs()


def config_map(cluster: WebSocketCluster) -> dict[str, Any]:
    """Every setting that the spec decides. `WS_HOST` is left to the data plane's default: all addresses."""
    values: dict[str, Any] = {
        "http.port": INTERNAL_PORT,
        "redis.durability": cluster.durability,
        "redis.host": f"{redis_name(cluster)}.{cluster.namespace}.svc",
        "redis.key_prefix": cluster.key_prefix,
        "redis.port": REDIS_PORT,
        # The data plane refuses a write limit under twice the largest frame.
        "websocket.write_limit_bytes": max(
            _SPECS["websocket.write_limit_bytes"][1], 2 * cluster.spec.websocket.max_payload_bytes
        ),
        **dict(settings_in(cluster.spec)),
    }
    files = {"http.fleet_key": endpoints.FLEET_KEY_FILE}
    external = cluster.spec.redis.external
    if external is not None:
        values["redis.host"] = external.host
    if external is None or external.password_secret_ref is not None:
        files["redis.password"] = endpoints.REDIS_PASSWORD_FILE
    if cluster.spec.auth.jwt_secret_ref is not None:
        files["auth.jwt_secret"] = endpoints.JWT_SECRET_FILE
    data = {_SPECS[name][0].env: _render(value) for name, value in values.items()}
    data |= {f"{_SPECS[name][0].env}_FILE": path for name, path in files.items()}
    return {
        **child(cluster, CONFIG_MAP, config_name(cluster), "dataplane"),
        "data": dict(sorted(data.items())),
    }


def _render(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Duration):
        return str(value.milliseconds)
    return str(value)
