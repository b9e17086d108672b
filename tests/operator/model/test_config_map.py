"""The instances' environment: whole, and understood by the data plane."""

import json
from pathlib import Path
from typing import Any

from hypothesis import assume, given
from hypothesis import strategies as st

from tableforge_dataplane.contract import environment, settings
from tableforge_dataplane.contract.auth import parse_rights
from tableforge_dataplane.contract.room_options import parse_room_options
from tableforge_operator.api import Duration, load
from tableforge_operator.decide.resources.config_map import config_map, live_config_map
from tests.operator.model import expected
from tests.operator.model.conftest import UID
from tests.operator.model.expected import metadata
from tests.operator.model.fields import OTHERWISE, PLAIN, RAISED_MINIMUM, place

METADATA = {"name": "tables", "namespace": "games", "uid": "u-1"}
DEFAULTS = {
    "AUTH_REQUIRED": "false",
    "CLEANUP_INTERVAL": "60000",
    "HEARTBEAT_INTERVAL": "30000",
    "INACTIVE_THRESHOLD": "120000",
    "LOG_FORMAT": "json",
    "REDIS_HOST": "tables-redis.games.svc",
    "REDIS_PASSWORD_FILE": "/var/run/tableforge/redis",
    "REDIS_PORT": "6379",
    "TABLEFORGE_CLUSTERING_FAILOVER_TIMEOUT": "30000",
    "TABLEFORGE_HTTP_FLEET_KEY_FILE": "/var/run/tableforge/fleet/key",
    "TABLEFORGE_HTTP_PORT": "3002",
    "TABLEFORGE_LIVE_SETTINGS_FILE": "/etc/tableforge/live/settings.json",
    "TABLEFORGE_LOAD_BALANCING_STRATEGY": "RoundRobin",
    "TABLEFORGE_PERFORMANCE_BATCH_MESSAGE_DELAY": "10",
    "TABLEFORGE_PERFORMANCE_MAX_BATCH_SIZE": "100",
    "TABLEFORGE_REDIS_CLAIM": f"games/tables/{UID}",
    "TABLEFORGE_REDIS_DURABILITY": "Disk",
    "TABLEFORGE_REDIS_KEY_PREFIX": "games/tables",
    "TABLEFORGE_ROUTING_MODE": "Service",
    "TABLEFORGE_ROUTING_WEIGHT": "100",
    "TABLEFORGE_SCALING_DRAIN_TIMEOUT": "20000",
    "TABLEFORGE_SCALING_MESSAGE_QUEUE_SIZE": "1000",
    "TABLEFORGE_WEBSOCKET_MAX_PAYLOAD_BYTES": "102400",
    "TABLEFORGE_WEBSOCKET_PING_INTERVAL": "30000",
    "TABLEFORGE_WEBSOCKET_PONG_TIMEOUT": "5000",
    "TABLEFORGE_WEBSOCKET_WRITE_LIMIT_BYTES": "1048576",
    "WS_PORT": "3001",
}
LIVE_DEFAULTS = {
    "LOG_LEVEL": "info",
    "TABLEFORGE_ROLLOUT_MAX_RECONNECTS_PER_SECOND": "200",
    "TABLEFORGE_SECURITY_MAX_BYTES_PER_SECOND": "1048576",
    "TABLEFORGE_SECURITY_MAX_MESSAGES_PER_MINUTE": "1000",
    "TABLEFORGE_SECURITY_MAX_MESSAGES_PER_SECOND": "100",
    "TABLEFORGE_SECURITY_MAX_ROOMS_PER_CONNECTION": "100",
    "WS_MAX_CONNECTIONS": "1000",
}


def test_a_cluster_of_defaults(cluster):
    assert config_map(cluster()) == {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata("tables-config-d4c7e9c0", expected.DATAPLANE),
        "immutable": True,
        "data": DEFAULTS,
    }
    built = live_config_map(cluster())
    assert built["metadata"] == metadata("tables-live", expected.DATAPLANE)
    assert list(built["data"]) == ["settings.json"]
    assert json.loads(built["data"]["settings.json"]) == LIVE_DEFAULTS


def test_what_may_change_meanwhile_is_in_the_file_and_nothing_else_is(cluster):
    """A restart-only setting in the file would never act, a live one elsewhere would roll the pods."""
    spec = {
        "monitoring": {"logLevel": "debug", "enableMetrics": False},
        "security": {"maxMessagesPerSecond": 7, "allowedOrigins": ["*"]},
        "rooms": {"options": [{"pattern": "a", "volatile": True}]},
        "loadBalancing": {"maxConnectionsPerInstance": 12},
        "websocket": {"maxConnections": 12},
    }
    assert config_map(cluster(spec)) == config_map(cluster())
    assert live_config_map(cluster(spec)) != live_config_map(cluster())
    restart = {"websocket": {"pingInterval": "20s"}, "monitoring": {"logFormat": "text"}}
    assert live_config_map(cluster(restart)) == live_config_map(cluster())
    assert config_map(cluster(restart)) != config_map(cluster())


def test_the_data_plane_reads_what_is_rendered(cluster):
    found = environment.read(expected.environ(cluster()))
    assert found.redis.host == "tables-redis.games.svc"
    assert found.redis.durability == "Disk"
    assert found.redis.password.file == Path("/var/run/tableforge/redis")
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
    found = environment.read(expected.environ(cluster(spec)))
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


def test_lists_and_groups_are_written_as_the_data_plane_reads_them(cluster):
    spec = {
        "security": {
            "trustedProxies": ["10.0.0.0/8", "2001:db8::/32"],
            "proxyProtocol": True,
            "allowedOrigins": ["https://app.example.com", "https://*.example.com"],
        },
        "auth": {
            "required": True,
            "jwks": {
                "url": "https://id.example.com/keys",
                "caConfigMapRef": {"name": "authorities", "key": "ca.pem"},
            },
            "publicKeys": {"configMapRef": {"name": "keys", "key": "public.pem"}},
            "issuer": "https://id.example.com/",
            "audience": "tables",
            "defaultRights": {
                "join": ["lobby", "table:*"],
                "publish": ["table:*"],
                "presence": ["lobby"],
                "direct": ["**"],
            },
            "apiKeySecretRef": {"name": "api"},
        },
        "rooms": {
            "options": [
                {"pattern": "cursor:**", "volatile": True, "presence": False},
                {"pattern": "news:*", "publish": "server", "logMaxAge": "2m", "logMaxMessages": 64},
            ]
        },
        "monitoring": {"memoryThreshold": "400Mi"},
        "websocket": {"tls": {"secretName": "certificate", "minVersion": "1.3"}},
    }
    found = environment.read(expected.environ(cluster(spec)))
    assert found.security.trusted_proxies == "10.0.0.0/8,2001:db8::/32"
    assert found.security.proxy_protocol
    assert found.security.allowed_origins == "https://app.example.com,https://*.example.com"
    assert found.auth.jwks_url == "https://id.example.com/keys"
    assert found.auth.jwks_ca_file == "/var/run/tableforge/jwks-ca/ca.crt"
    assert found.auth.public_key.file == Path("/var/run/tableforge/public-keys/keys")
    assert (found.auth.issuer, found.auth.audience) == ("https://id.example.com/", "tables")
    assert parse_rights(found.auth.default_rights) == {
        "join": ["lobby", "table:*"],
        "publish": ["table:*"],
        "presence": ["lobby"],
        "direct": ["**"],
    }
    assert found.http.api_key.file == Path("/var/run/tableforge/api/key")
    rules = parse_room_options(found.rooms.options, found.rooms, max_payload_bytes=102400)
    assert rules.of("cursor:3").volatile
    assert (rules.of("news:1").log.max_age_ms, rules.of("news:1").log.max_messages) == (120_000, 64)
    assert (rules.of("news:1").publish, rules.of("lobby").publish) == ("server", "all")
    assert found.monitoring.memory_threshold_bytes == 400 * 1024 * 1024
    assert found.websocket.tls_cert_file == "/var/run/tableforge/tls/tls.crt"
    assert found.websocket.tls_key_file == "/var/run/tableforge/tls/tls.key"
    assert found.websocket.tls_min_version == "1.3"


def test_everything_the_crd_takes_fits_into_the_setting(cluster):
    pattern = "é" * 254 + ":*"
    spec = {
        "security": {"allowedOrigins": ["https://" + "a" * 265 + f".b{n:02}" for n in range(64)]},
        "auth": {
            "required": False,
            "defaultRights": {right: [pattern] * 64 for right in ("join", "publish", "presence", "direct")},
        },
        "rooms": {
            "options": [
                {
                    "pattern": f"{n:03}" + "é" * 253,
                    "logMaxMessages": 1_000_000,
                    "logMaxBytes": 268_435_456,
                    "logMaxAge": "604800s",
                    "volatile": False,
                    "presence": True,
                    "join": "authenticated",
                    "publish": "authenticated",
                    "seePresence": "authenticated",
                }
                for n in range(200)
            ]
        },
    }
    found = environment.read(expected.environ(cluster(spec)))
    assert len(parse_room_options(found.rooms.options, found.rooms, max_payload_bytes=102400)) == 200
    assert len(parse_rights(found.auth.default_rights)["join"]) == 64
    assert len(found.security.allowed_origins.split(",")) == 64


def values(setting: str) -> st.SearchStrategy[Any]:
    spec, default = settings.specs()[setting]
    low, high = max(spec.minimum or 0, RAISED_MINIMUM.get(setting, 0)), spec.maximum or 0
    numbers = st.integers(int(low), int(high))
    if spec.unit is settings.Unit.MILLISECONDS:
        # Six digits and a unit are what can be written.
        return numbers.map(lambda n: f"{n}ms" if n <= 999_999 else f"{-(-n // 60_000)}m")
    if isinstance(default, bool):
        return st.booleans()
    return numbers if isinstance(default, int) else st.just(default)


TRIED = {
    setting: path
    for setting, path in PLAIN.items()
    if setting not in OTHERWISE and not path.startswith(("redis.", "websocket.tls"))
}


@given(chosen=st.fixed_dictionaries({}, optional={name: values(name) for name in TRIED}))
def test_the_data_plane_takes_whatever_the_crd_lets_through(chosen):
    spec: dict[str, Any] = {"auth": {"required": False}, "redis": {"external": {"host": "r"}}}
    for setting, value in chosen.items():
        place(spec, TRIED[setting], value)
    found = load({"metadata": METADATA, "spec": spec}).spec
    # the CRD's rules
    security, websocket, payload = found.security, found.websocket, found.websocket.max_payload_bytes
    assume(security.max_messages_per_minute >= security.max_messages_per_second)
    assume(websocket.port != 3002)
    assume(websocket.write_limit_bytes is None or websocket.write_limit_bytes >= 2 * payload)
    assume(not security.proxy_protocol)
    for room_bytes in (
        found.rooms and found.rooms.log_max_bytes,
        found.rooms and found.rooms.personal_max_bytes,
    ):
        assume(room_bytes is None or room_bytes >= payload)
    performance = found.performance
    assume(
        performance.compression_threshold is None
        or performance.enable_compression is False
        or performance.compression_threshold <= payload
    )
    read = environment.read(expected.environ(load({"metadata": METADATA, "spec": spec})))
    for setting, value in chosen.items():
        group, field = setting.split(".")
        arrived = getattr(getattr(read, group), field)
        assert arrived == (Duration.parse(value).seconds if setting.endswith("_seconds") else value)
