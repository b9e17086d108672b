"""The real API server and the fields that stand for settings: what it takes, the data plane takes."""

from typing import Any

import pytest

from tableforge_dataplane.contract import environment
from tableforge_operator.api import load
from tests.operator.model import expected

pytestmark = pytest.mark.cluster


def cr(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "tableforge.io/v1alpha1",
        "kind": "WebSocketCluster",
        "metadata": {"name": "tables"},
        "spec": {"auth": {"required": False}, **spec},
    }


def auth(**fields: Any) -> dict[str, Any]:
    return cr(auth={"required": False, **fields})


def option(**fields: Any) -> dict[str, Any]:
    return cr(rooms={"options": [{"pattern": "a:*", **fields}]})


REFUSED = [
    pytest.param(
        cr(auth={"issuer": "x"}),
        "auth.publicKeys or auth.jwks tell where the keys are",
        id="auth without keys",
    ),
    pytest.param(
        auth(previousJwtSecretRef={"name": "old"}), "must come with auth.jwtSecretRef", id="only the old key"
    ),
    pytest.param(auth(publicKeys={}), "either secretRef or configMapRef", id="public keys nowhere"),
    pytest.param(
        auth(
            publicKeys={
                "secretRef": {"name": "a", "key": "b"},
                "configMapRef": {"name": "a", "key": "b"},
            }
        ),
        "either secretRef or configMapRef",
        id="public keys in two places",
    ),
    pytest.param(
        auth(publicKeys={"configMapRef": {"name": "a", "key": "b/c"}}),
        "must be a key of the ConfigMap",
        id="ConfigMap key",
    ),
    pytest.param(
        auth(publicKeys={"configMapRef": {"name": "Keys", "key": "b"}}),
        "must be a name of lower-case",
        id="ConfigMap name",
    ),
    pytest.param(auth(jwks={"url": "http://id.example.com/keys"}), "starts with https://", id="plain http"),
    pytest.param(auth(jwks={"url": "https://id example"}), "starts with https://", id="no address"),
    pytest.param(auth(jwks={"url": "https://a:99999/k"}), "starts with https://", id="no port"),
    pytest.param(
        auth(jwks={"url": "https://user:pw@a/k"}), "starts with https://", id="address with a login"
    ),
    pytest.param(
        auth(
            jwks={
                "url": "https://a",
                "caSecretRef": {"name": "a", "key": "b"},
                "caConfigMapRef": {"name": "a", "key": "b"},
            }
        ),
        "auth.jwks.caSecretRef and auth.jwks.caConfigMapRef exclude each other",
        id="two authorities",
    ),
    pytest.param(auth(issuer="a b"), "printable ASCII", id="issuer"),
    pytest.param(auth(leeway="1h"), "from 0ms to 5m", id="leeway"),
    pytest.param(auth(secretAlgorithm="none"), "supported values", id="algorithm"),
    pytest.param(
        auth(defaultRights={"join": ["room-*"]}), "stands for a whole segment", id="part of a segment"
    ),
    pytest.param(auth(defaultRights={"join": ["**:a"]}), "for the last ones", id="stars in front"),
    pytest.param(auth(defaultRights={"join": [""]}), "at least 1 chars", id="no pattern"),
    pytest.param(auth(defaultRights={"join": ["a"] * 2}), "Duplicate value", id="pattern twice"),
    pytest.param(
        auth(defaultRights={"play": ["a"]}), 'unknown field "spec.auth.defaultRights.play"', id="right"
    ),
    pytest.param(
        cr(websocket={"writeLimitBytes": 65536, "maxPayloadBytes": 65536}),
        "at least twice websocket.maxPayloadBytes",
        id="write limit",
    ),
    pytest.param(
        cr(websocket={"tls": {}}), "spec.websocket.tls.secretName: Required", id="TLS without a Secret"
    ),
    pytest.param(
        cr(websocket={"tls": {"secretName": "a", "minVersion": "1.1"}}), "supported values", id="old TLS"
    ),
    pytest.param(
        cr(security={"trustedProxies": ["10.0.0.1"]}), "range of addresses such as", id="an address"
    ),
    pytest.param(cr(security={"trustedProxies": ["10.0.0.1/8"]}), "behind its prefix", id="host bits"),
    pytest.param(
        cr(security={"trustedProxies": ["10.0.0.0/8", "none"]}), "or `none` alone", id="proxies and none"
    ),
    pytest.param(
        cr(security={"proxyProtocol": True}),
        "must come with security.trustedProxies",
        id="whose PROXY header",
    ),
    pytest.param(
        cr(security={"proxyProtocol": True, "trustedProxies": ["none"]}),
        "must come with security.trustedProxies",
        id="nobody's PROXY header",
    ),
    pytest.param(
        cr(security={"allowedOrigins": ["app.example.com"]}), "must be scheme and host", id="origin"
    ),
    pytest.param(
        cr(security={"allowedOrigins": ["https://app.example.com/"]}), "must be scheme and host", id="page"
    ),
    pytest.param(cr(security={"maxConnectionsPerIP": 0}), "greater than or equal to 1", id="no connections"),
    pytest.param(cr(rooms={"logMaxMessages": 10}), "greater than or equal to 32", id="short log"),
    pytest.param(
        cr(rooms={"logMaxBytes": 65536}),
        "rooms.logMaxBytes must be at least websocket.maxPayloadBytes",
        id="small log",
    ),
    pytest.param(
        cr(rooms={"personalMaxBytes": 65536}),
        "rooms.personalMaxBytes must be at least websocket.maxPayloadBytes",
        id="small personal log",
    ),
    pytest.param(
        option(logMaxBytes=65536),
        "logMaxBytes in rooms.options must be at least websocket.maxPayloadBytes",
        id="small log of some rooms",
    ),
    pytest.param(option(logMaxMessages=1), "greater than or equal to 32", id="short log of some rooms"),
    pytest.param(option(logMaxAge="1ms"), "must be a duration from 1s", id="short life of some logs"),
    pytest.param(option(volatile=True, logMaxMessages=64), "a volatile room has no log", id="volatile log"),
    pytest.param(option(presence=False, seePresence="all"), "no presence to see", id="no presence to see"),
    pytest.param(option(join="server"), "supported values", id="who joins"),
    pytest.param(cr(rooms={"options": [{"volatile": True}]}), "pattern: Required", id="options of nothing"),
    pytest.param(
        cr(rooms={"options": [{"pattern": "a"}, {"pattern": "a"}]}), "Duplicate value", id="options twice"
    ),
    pytest.param(
        cr(performance={"compressionThreshold": 200_000}), "nothing would ever be compressed", id="threshold"
    ),
    pytest.param(cr(monitoring={"memoryThreshold": "400M"}), "whole number of Mi or Gi", id="memory unit"),
    pytest.param(cr(monitoring={"memoryThreshold": "2000Gi"}), "up to 1024Gi", id="memory"),
    pytest.param(
        cr(loadBalancing={"maxConnectionsPerInstance": 0}), "greater than or equal to 1", id="no room at all"
    ),
]


@pytest.mark.parametrize(("obj", "said"), REFUSED)
def test_a_wrong_value_is_refused_with_what_to_change(shared_kubectl, obj, said):
    answer = shared_kubectl("create", "--dry-run=server", "-f", "-", stdin=obj)
    assert answer.code != 0
    assert said in answer.err


EVERYTHING: dict[str, Any] = {
    "websocket": {
        "writeLimitBytes": 4194304,
        "authTimeout": "3s",
        "tls": {"secretName": "certificate", "minVersion": "1.3"},
    },
    "scaling": {"retryAttempts": 5, "retryDelay": "2s"},
    "auth": {
        "jwtSecretRef": {"name": "jwt"},
        "previousJwtSecretRef": {"name": "old-jwt"},
        "secretAlgorithm": "HS512",
        "publicKeys": {"configMapRef": {"name": "keys", "key": "public.pem"}},
        "rsaAlgorithm": "PS256",
        "jwks": {
            "url": "https://id.example.com:8443/.well-known/jwks.json?x=1",
            "caConfigMapRef": {"name": "authorities", "key": "ca.pem"},
        },
        "issuer": "https://id.example.com/",
        "audience": "tables",
        "leeway": "0s",
        "defaultRights": {"join": ["lobby", "table:*", "a:*:**"], "publish": ["**"], "presence": ["*"]},
        "queryToken": True,
        "apiKeySecretRef": {"name": "api", "key": "bearer"},
    },
    "loadBalancing": {"maxConnectionsPerInstance": 5000},
    "performance": {
        "enableMessageQueuing": False,
        "queueFlushInterval": "50ms",
        "enableCompression": False,
        "compressionThreshold": 200000,
    },
    "monitoring": {
        "enableDetailedLogging": True,
        "enableMetrics": False,
        "metricsInterval": "0s",
        "healthCheckInterval": "5s",
        "memoryThreshold": "1024Gi",
        "loopLagThreshold": "1s",
    },
    "security": {
        "enableRateLimiting": False,
        "enableConnectionLimiting": False,
        "maxConnectionsPerIP": 50,
        "maxConnectionsPerUser": 5,
        "enableDDoSProtection": False,
        "maxHandshakesPerSecond": 20,
        "handshakeTimeout": "3s",
        "trustedProxies": ["10.0.0.0/8", "192.0.2.7/32", "2001:db8::/32"],
        "clientAddressHeader": "Forwarded",
        "proxyProtocol": True,
        "allowedOrigins": [
            "https://app.example.com",
            "HTTPS://*.Example.com:8443",
            "http://[::1]:5173",
            "capacitor+x://localhost",
            "null",
            "*",
        ],
    },
    "rooms": {
        "logMaxMessages": 500,
        "logMaxBytes": 2097152,
        "logMaxAge": "2h",
        "personalMaxMessages": 50,
        "personalMaxBytes": 262144,
        "personalMaxAge": "720h",
        "presence": False,
        "presenceGrace": "0s",
        "checkInterval": "5s",
        "options": [
            {"pattern": "cursor:**", "volatile": True, "presence": False},
            {
                "pattern": "news:*",
                "logMaxMessages": 64,
                "logMaxBytes": 1048576,
                "logMaxAge": "90m",
                "volatile": False,
                "presence": True,
                "join": "authenticated",
                "publish": "server",
                "seePresence": "nobody",
            },
        ],
    },
}


def test_what_the_api_server_takes_the_data_plane_takes(kubectl):
    obj = cr(**EVERYTHING)
    (taken,) = kubectl.objects("create", "-f", "-", stdin=obj)
    found = environment.read(expected.environ(load(taken)))
    assert found.warnings == ()
    assert (found.websocket.write_limit_bytes, found.websocket.auth_timeout_seconds) == (4194304, 3)
    assert (found.scaling.retry_attempts, found.scaling.retry_delay_seconds) == (5, 2)
    assert (found.auth.secret_algorithm, found.auth.rsa_algorithm) == ("HS512", "PS256")
    assert (found.auth.leeway_seconds, found.auth.query_token) == (0, True)
    assert found.capacity == 1000
    performance = found.performance
    assert (performance.enable_message_queuing, performance.queue_flush_interval_seconds) == (False, 0.05)
    assert (performance.enable_compression, performance.compression_threshold_bytes) == (False, 200000)
    monitoring = found.monitoring
    assert (monitoring.enable_detailed_logging, monitoring.enable_metrics) == (True, False)
    assert (monitoring.metrics_interval_seconds, monitoring.health_check_interval_seconds) == (0, 5)
    assert (monitoring.memory_threshold_bytes, monitoring.loop_lag_threshold_seconds) == (1 << 40, 1)
    security = found.security
    assert not security.enable_rate_limiting
    assert not security.enable_connection_limiting
    assert not security.enable_ddos_protection
    assert (security.max_connections_per_ip, security.max_connections_per_user) == (50, 5)
    assert (security.max_handshakes_per_second, security.handshake_timeout_seconds) == (20, 3)
    assert (security.client_address_header, security.proxy_protocol) == ("Forwarded", True)
    rooms = found.rooms
    assert (rooms.log_max_messages, rooms.log_max_bytes, rooms.log_max_age_seconds) == (500, 2097152, 7200)
    assert (rooms.personal_max_messages, rooms.personal_max_bytes) == (50, 262144)
    assert rooms.personal_max_age_seconds == 2592000
    assert (rooms.presence, rooms.presence_grace_seconds, rooms.check_interval_seconds) == (False, 0, 5)


def test_nothing_is_filled_in_for_what_is_left_out(kubectl):
    (taken,) = kubectl.objects("create", "-f", "-", stdin=cr(rooms={"options": [{"pattern": "a"}]}))
    assert taken["spec"]["rooms"] == {"options": [{"pattern": "a"}]}
    assert taken["spec"]["auth"] == {"required": False}


def test_kubectl_explains_what_holds_where_a_field_is_left_out(shared_kubectl):
    assert "Default: 1h." in shared_kubectl.ok("explain", "wsc.spec.rooms.logMaxAge")
    assert "never by the operator" in shared_kubectl.ok("explain", "wsc.spec.auth.jwks")
