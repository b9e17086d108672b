"""The configuration file of the managed Redis. The password is not in it: it comes from a Secret's file."""

from typing import Any, Final

from tableforge_dataplane.contract import endpoints
from tableforge_operator.api import WebSocketCluster
from tableforge_operator.api.spec.redis_managed import ManagedRedis
from tableforge_operator.decide.resources.config_map import REDIS_PORT
from tableforge_operator.decide.resources.kinds import CONFIG_MAP
from tableforge_operator.decide.resources.metadata import child, redis_name
from tableforge_operator.decide.resources.secrets import REDIS_CONF_KEY

CONFIG_FILE: Final = "redis.conf"
DATA_DIR: Final = "/data"
AUTH_DIR: Final = f"{endpoints.SECRETS_DIR}/redis"


def redis_config_map(cluster: WebSocketCluster, redis: ManagedRedis) -> dict[str, Any]:
    # `always` syncs once per turn of the event loop, before the replies: a group commit.
    appendfsync = "always" if cluster.durability == "Disk" else "everysec"
    lines = [
        f"port {REDIS_PORT}",
        f"dir {DATA_DIR}",
        f"include {AUTH_DIR}/{REDIS_CONF_KEY}",
        "appendonly yes",
        f"appendfsync {appendfsync}",
        # The append-only file is the persistence: a snapshot beside it would only cost memory.
        'save ""',
        f"maxmemory {redis.max_memory}",
        # Evicting would take live rooms: everything has a lifetime, and a full Redis refuses.
        "maxmemory-policy noeviction",
        "client-output-buffer-limit pubsub 32mb 8mb 60",
        "tcp-keepalive 60",
    ]
    return {
        **child(cluster, CONFIG_MAP, redis_name(cluster), "redis"),
        "data": {CONFIG_FILE: "".join(f"{line}\n" for line in lines)},
    }
