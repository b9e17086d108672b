"""The instances' environment: whole, and understood by the data plane."""

from pathlib import Path
from typing import Any

from hypothesis import assume, given
from hypothesis import strategies as st

from tableforge_dataplane.contract import environment, settings
from tableforge_operator.api import Duration, load
from tableforge_operator.decide.resources.config_map import config_map
from tests.operator.model import expected
from tests.operator.model.expected import metadata
from tests.operator.model.fields import FIELDS, RAISED_MINIMUM

METADATA = {"name": "tables", "namespace": "games", "uid": "u-1"}
DEFAULTS = {
    "AUTH_REQUIRED": "false",
    "CLEANUP_INTERVAL": "60000",
    "HEARTBEAT_INTERVAL": "30000",
    "INACTIVE_THRESHOLD": "120000",
    "LOG_FORMAT": "json",
    "LOG_LEVEL": "info",
    "REDIS_HOST": "tables-redis.games.svc",
    "REDIS_PASSWORD_FILE": "/var/run/tableforge/redis/password",
    "REDIS_PORT": "6379",
    "TABLEFORGE_CLUSTERING_FAILOVER_TIMEOUT": "30000",
    "TABLEFORGE_HTTP_FLEET_KEY_FILE": "/var/run/tableforge/fleet/key",
    "TABLEFORGE_HTTP_PORT": "3002",
    "TABLEFORGE_PERFORMANCE_BATCH_MESSAGE_DELAY": "10",
    "TABLEFORGE_PERFORMANCE_MAX_BATCH_SIZE": "100",
    "TABLEFORGE_REDIS_DURABILITY": "Disk",
    "TABLEFORGE_REDIS_KEY_PREFIX": "games/tables",
    "TABLEFORGE_SCALING_DRAIN_TIMEOUT": "20000",
    "TABLEFORGE_SCALING_MESSAGE_QUEUE_SIZE": "1000",
    "TABLEFORGE_SECURITY_MAX_BYTES_PER_SECOND": "1048576",
    "TABLEFORGE_SECURITY_MAX_MESSAGES_PER_MINUTE": "1000",
    "TABLEFORGE_SECURITY_MAX_MESSAGES_PER_SECOND": "100",
    "TABLEFORGE_SECURITY_MAX_ROOMS_PER_CONNECTION": "100",
    "TABLEFORGE_WEBSOCKET_MAX_PAYLOAD_BYTES": "102400",
    "TABLEFORGE_WEBSOCKET_PING_INTERVAL": "30000",
    "TABLEFORGE_WEBSOCKET_PONG_TIMEOUT": "5000",
    "TABLEFORGE_WEBSOCKET_WRITE_LIMIT_BYTES": "1048576",
    "WS_MAX_CONNECTIONS": "1000",
    "WS_PORT": "3001",
}


def test_a_cluster_of_defaults(cluster):
    assert config_map(cluster()) == {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata("tables-config", expected.DATAPLANE),
        "data": DEFAULTS,
    }


def test_the_data_plane_reads_what_is_rendered(cluster):
    found = environment.read(config_map(cluster())["data"])
    assert found.redis.host == "tables-redis.games.svc"
    assert found.redis.durability == "Disk"
    assert found.redis.password.file == Path("/var/run/tableforge/redis/password")
    assert found.http.fleet_key.file == Path("/var/run/tableforge/fleet/key")
    assert found.websocket.ping_interval_seconds == 30
    assert found.auth.required is False
    assert found.warnings == ()


def test_every_field_arrives_at_the_data_plane(cluster):
    spec = {
        "websocket": {
            "port": 4000,
            "maxConnections": 50,
            "pingInterval": "1m30s",
            "pongTimeout": "750ms",
            # above half the default write limit: the operator raises that with it
            "maxPayloadBytes": 1048576,
        },
        "redis": {
            "external": {
                "host": "redis.example.com",
                "port": 7000,
                "database": 4,
                "passwordSecretRef": {"name": "login"},
            },
            "keyPrefix": "team/tables",
            "durability": "Disk",
        },
        "scaling": {
            "heartbeatInterval": "7s",
            "cleanupInterval": "8s",
            "inactiveThreshold": "9s",
            "messageQueueSize": 10,
        },
        "auth": {"required": True, "jwtSecretRef": {"name": "jwt"}},
        "performance": {"batchMessageDelay": "3ms", "maxBatchSize": 11},
        "monitoring": {"logLevel": "debug", "logFormat": "text"},
        "security": {
            "maxMessagesPerSecond": 12,
            "maxMessagesPerMinute": 13,
            "maxBytesPerSecond": 1400,
            "maxRoomsPerConnection": 15,
        },
        "clustering": {"failoverTimeout": "16s"},
        "rollout": {"drainTimeout": "17s"},
    }
    found = environment.read(config_map(cluster(spec))["data"])
    assert (found.websocket.port, found.websocket.max_connections) == (4000, 50)
    assert (found.websocket.ping_interval_seconds, found.websocket.pong_timeout_seconds) == (90, 0.75)
    assert (found.websocket.max_payload_bytes, found.websocket.write_limit_bytes) == (1048576, 2097152)
    assert (found.redis.host, found.redis.port, found.redis.database) == ("redis.example.com", 7000, 4)
    assert (found.redis.key_prefix, found.redis.durability) == ("team/tables", "Disk")
    assert found.redis.password.file == Path("/var/run/tableforge/redis/password")
    assert (found.scaling.heartbeat_interval_seconds, found.scaling.cleanup_interval_seconds) == (7, 8)
    assert (found.scaling.inactive_threshold_seconds, found.scaling.message_queue_size) == (9, 10)
    assert (found.scaling.failover_timeout_seconds, found.scaling.drain_seconds) == (16, 17)
    assert found.auth.required
    assert found.auth.jwt_secret.file == Path("/var/run/tableforge/jwt/secret")
    assert (found.performance.batch_message_delay_seconds, found.performance.max_batch_size) == (0.003, 11)
    assert (found.logging.level, found.logging.format) == ("debug", "text")
    assert (found.security.max_messages_per_second, found.security.max_messages_per_minute) == (12, 13)
    assert (found.security.max_bytes_per_second, found.security.max_rooms_per_connection) == (1400, 15)


def test_an_external_redis_without_a_password_gets_no_file(cluster):
    data = config_map(cluster({"redis": {"external": {"host": "r"}}}))["data"]
    assert "REDIS_PASSWORD_FILE" not in data
    assert data["TABLEFORGE_REDIS_DURABILITY"] == "Memory"
    assert data["REDIS_DB"] == "0"


def values(setting: str) -> st.SearchStrategy[Any]:
    spec, default = settings.specs()[setting]
    low, high = max(spec.minimum or 0, RAISED_MINIMUM.get(setting, 0)), spec.maximum or 0
    numbers = st.integers(int(low), int(high))
    if spec.unit is settings.Unit.MILLISECONDS:
        # Six digits and a unit are what can be written.
        return numbers.map(lambda n: f"{n}ms" if n <= 999_999 else f"{n // 1000}s")
    return numbers if isinstance(default, int) else st.just(default)


@given(chosen=st.fixed_dictionaries({}, optional={name: values(name) for name in FIELDS}))
def test_the_data_plane_takes_whatever_the_crd_lets_through(chosen):
    spec: dict[str, Any] = {"auth": {"required": False}, "redis": {"external": {"host": "r"}}}
    for setting, value in chosen.items():
        *groups, field = FIELDS[setting].split(".")
        place = spec
        for group in groups:
            place = place.setdefault(group, {})
        place[field] = value
    security = load({"metadata": METADATA, "spec": spec}).spec.security
    assume(security.max_messages_per_minute >= security.max_messages_per_second)  # the CRD's rule
    built = config_map(load({"metadata": METADATA, "spec": spec}))
    found = environment.read(built["data"])
    for setting, value in chosen.items():
        group, field = setting.split(".")
        arrived = getattr(getattr(found, group), field)
        assert arrived == (Duration.parse(value).seconds if setting.endswith("_seconds") else value)
