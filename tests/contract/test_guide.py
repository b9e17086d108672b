"""The original guide's settings: each is a setting here, or is accepted with the reason why not."""

import re

import pytest

from tableforge_dataplane.contract import environment, reference
from tableforge_dataplane.contract.guide import HERE, WITHOUT_USE
from tableforge_dataplane.contract.settings import Secret, specs

GUIDE = """
redis: host port password db pubSubDb retryDelayOnFailover maxRetriesPerRequest lazyConnect
websocket: port host maxConnections pingInterval pongTimeout
scaling: instanceId heartbeatInterval cleanupInterval inactiveThreshold messageQueueSize
scaling: retryAttempts retryDelay
auth: required jwtSecret tokenExpiry
loadBalancing: strategy maxConnectionsPerInstance connectionThreshold scaleUpCooldown scaleDownCooldown
performance: enableCompression compressionThreshold batchMessageDelay maxBatchSize enableMessageQueuing
performance: queueFlushInterval
monitoring: enableMetrics metricsInterval healthCheckInterval enableDetailedLogging logLevel
security: enableRateLimiting maxMessagesPerSecond maxMessagesPerMinute enableConnectionLimiting
security: maxConnectionsPerIP enableDDoSProtection
clustering: enableAutoDiscovery discoveryInterval enableFailover failoverTimeout enableLoadRebalancing
clustering: rebalanceThreshold
wsConfig: perMessageDeflate.zlibDeflateOptions.threshold perMessageDeflate.zlibDeflateOptions.concurrencyLimit
wsConfig: perMessageDeflate.zlibDeflateOptions.chunkSize maxPayload skipUTF8Validation
"""

NAMES = {
    f"{line.split(':')[0]}.{name}"
    for line in GUIDE.strip().splitlines()
    for name in line.split(":")[1].split()
} | {"LOG_FORMAT", "DEBUG"}

VARIABLES = """
REDIS_HOST REDIS_PORT REDIS_PASSWORD REDIS_DB REDIS_PUBSUB_DB WS_PORT WS_HOST WS_MAX_CONNECTIONS INSTANCE_ID
HEARTBEAT_INTERVAL CLEANUP_INTERVAL INACTIVE_THRESHOLD JWT_SECRET AUTH_REQUIRED LOG_LEVEL LOG_FORMAT
"""

DEFAULTS = {
    "redis.host": "localhost",
    "redis.port": "6379",
    "redis.db": "0",
    "redis.retryDelayOnFailover": "100",
    "redis.maxRetriesPerRequest": "3",
    "redis.lazyConnect": "true",
    "websocket.port": "3001",
    "websocket.host": "0.0.0.0",
    "websocket.maxConnections": "1000",
    "websocket.pingInterval": "30000",
    "websocket.pongTimeout": "5000",
    "scaling.heartbeatInterval": "30000",
    "scaling.cleanupInterval": "60000",
    "scaling.inactiveThreshold": "120000",
    "scaling.messageQueueSize": "1000",
    "scaling.retryAttempts": "3",
    "scaling.retryDelay": "1000",
    "auth.tokenExpiry": "86400000",
    "loadBalancing.strategy": "RoundRobin",
    "loadBalancing.maxConnectionsPerInstance": "2000",
    "performance.enableCompression": "true",
    "performance.compressionThreshold": "1024",
    "performance.batchMessageDelay": "10",
    "performance.maxBatchSize": "100",
    "performance.enableMessageQueuing": "true",
    "performance.queueFlushInterval": "100",
    "monitoring.enableMetrics": "true",
    "monitoring.metricsInterval": "60000",
    "monitoring.healthCheckInterval": "30000",
    "monitoring.enableDetailedLogging": "false",
    "monitoring.logLevel": "info",
    "security.enableRateLimiting": "true",
    "security.maxMessagesPerSecond": "100",
    "security.maxMessagesPerMinute": "1000",
    "security.enableConnectionLimiting": "true",
    "security.maxConnectionsPerIP": "10",
    "security.enableDDoSProtection": "true",
    "clustering.failoverTimeout": "30000",
    "wsConfig.maxPayload": "102400",
    "LOG_FORMAT": "json",
}


def test_every_name_of_the_guide_is_known_and_no_other() -> None:
    assert HERE.keys() | WITHOUT_USE.keys() == NAMES
    assert not HERE.keys() & WITHOUT_USE.keys()


def test_every_variable_of_the_guide_is_accepted() -> None:
    known = {spec.env for spec, _ in specs().values()}
    assert [name for name in VARIABLES.split() if name not in known | environment.WITHOUT_EFFECT.keys()] == []


@pytest.mark.parametrize(("name", "default"), DEFAULTS.items())
def test_defaults_are_the_guides(name: str, default: str) -> None:
    spec, _ = specs()[HERE[name]]
    assert environment.show(environment.read({}))[spec.env] == default


def test_what_has_no_use_is_accepted_and_says_why() -> None:
    variables = [variable for variable, _ in WITHOUT_USE.values() if variable]
    assert len(variables) == len(set(variables)) == len(WITHOUT_USE) - 1
    warnings = environment.read(dict.fromkeys(variables, "1")).warnings
    assert sorted(warning.split()[0] for warning in warnings) == sorted(variables)
    # a setting that acts is not said to have no effect
    assert not set(variables) & {spec.env for spec, _ in specs().values()}
    assert environment.read(dict.fromkeys(variables, "")).warnings == ()


def test_the_page_has_a_row_for_every_setting_and_every_name() -> None:
    page = reference.text()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    for spec, default in specs().values():
        [row] = [row for row in rows if row.startswith(f"| `{spec.env}`") and row.count(" | ") >= 3]
        assert isinstance(default, Secret) == (f"`{spec.env}_FILE`" in row)
        if spec.minimum is not None:
            assert f"{spec.minimum:.0f} to {spec.maximum:.0f}" in row
    for name in NAMES:
        assert any(row.startswith(f"| `{name}` |") for row in rows), name


def test_the_page_is_a_table_whatever_a_setting_says() -> None:
    for line in reference.text().splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) in (3, 4, 5), line


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        (
            {"TABLEFORGE_PERFORMANCE_COMPRESSION_THRESHOLD": "102401"},
            ["TABLEFORGE_PERFORMANCE_COMPRESSION_THRESHOLD=102401", "MAX_PAYLOAD_BYTES=102400"],
        ),
        ({"TABLEFORGE_AUTH_PREVIOUS_JWT_SECRET": "k" * 32}, ["TABLEFORGE_AUTH_PREVIOUS_JWT_SECRET"]),
        (
            {"JWT_SECRET": "k" * 32, "TABLEFORGE_AUTH_SECRET_ALGORITHM": "HS512"},
            ["JWT_SECRET", "64", "HS512"],
        ),
        ({"TABLEFORGE_AUTH_JWKS_URL": "http://id.example.com/k"}, ["https", "JWKS_PLAIN_HTTP=true"]),
        (
            {"TABLEFORGE_AUTH_JWKS_URL": "https://me:secret@id.example.com/k"},
            ["//***@id.example.com", "must match"],
        ),
        ({"TABLEFORGE_AUTH_JWKS_URL": "https://id.example.com:port/k"}, ["is no address"]),
        ({"TABLEFORGE_AUTH_JWKS_CA_FILE": "/ca.pem"}, ["TABLEFORGE_AUTH_JWKS_URL"]),
        ({"TABLEFORGE_AUTH_DEFAULT_RIGHTS": '{"joins":[]}'}, ["DEFAULT_RIGHTS", "`tableforge.joins`"]),
        ({"TABLEFORGE_AUTH_DEFAULT_RIGHTS": '{"join":["a*"]}'}, ["DEFAULT_RIGHTS", "'a*'"]),
        ({"TABLEFORGE_AUTH_DEFAULT_RIGHTS": '{"join"}'}, ["DEFAULT_RIGHTS", "JSON"]),
    ],
)
def test_what_contradicts_is_named(environ: dict[str, str], named: list[str]) -> None:
    with pytest.raises(environment.SettingsError) as caught:
        environment.read(environ)
    [problem] = caught.value.problems
    for name in named:
        assert name in problem
    assert "me:secret" not in problem


@pytest.mark.parametrize(
    "url",
    ["http://localhost:8080/keys", "http://127.0.0.1/keys", "http://[::1]:80/keys", "https://id.example.com"],
)
def test_keys_may_come_from_here_in_the_clear_and_from_elsewhere_by_https(url: str) -> None:
    assert environment.read({"TABLEFORGE_AUTH_JWKS_URL": url}).auth.jwks_url == url


def test_without_an_audience_a_providers_other_tokens_are_warned_about() -> None:
    url = {"TABLEFORGE_AUTH_JWKS_URL": "https://id.example.com/keys"}
    [warning] = environment.read(url).warnings
    assert "TABLEFORGE_AUTH_AUDIENCE" in warning
    assert environment.read({**url, "TABLEFORGE_AUTH_AUDIENCE": "tables"}).warnings == ()


def test_pings_that_come_sooner_than_their_pongs_are_due_are_warned_about() -> None:
    [warning] = environment.read({"TABLEFORGE_WEBSOCKET_PING_INTERVAL": "4000"}).warnings
    assert "PING_INTERVAL=4000 is below TABLEFORGE_WEBSOCKET_PONG_TIMEOUT=5000" in warning
