"""What the real API server says to `spec.redis`: what it takes, and each refusal with its message."""

import json

import pytest

from tests.operator.model.test_crd_on_a_cluster import cr

pytestmark = pytest.mark.cluster

SENTINEL = {"masterName": "tables", "addresses": ["one:26379"]}


def external(**fields):
    return {"redis": {"external": fields}}


TAKEN = [
    pytest.param(external(host="redis.example.com", port=7000, database=3, tls={}), id="a server"),
    pytest.param(external(host="fd00::1"), id="IPv6"),
    pytest.param(
        {
            "redis": {
                "external": {
                    "mode": "Sentinel",
                    "sentinel": {
                        "masterName": "my-master.1",
                        "addresses": ["one", "two.example.com:26380", "[fd00::3]:26379"],
                        "username": "watcher",
                        "passwordSecretRef": {"name": "sentinel-login"},
                    },
                    "username": "tables",
                    "passwordSecretRef": {"name": "login", "key": "word"},
                    "database": 2,
                    "tls": {
                        "caSecretRef": {"name": "authorities"},
                        "clientCertificateSecretRef": {"name": "ours"},
                        "serverName": "redis.example.com",
                    },
                },
                "durability": "Disk+Replica",
                "keyPrefix": "tables",
                "connectTimeout": "2s",
                "maxRetriesPerRequest": 0,
                "retryDelayOnFailover": "50ms",
                "memoryGuardPercent": 80,
            }
        },
        id="sentinels",
    ),
    pytest.param(
        external(mode="Cluster", cluster={"addresses": [f"node-{number}:65535" for number in range(16)]}),
        id="a cluster",
    ),
    pytest.param(external(mode="Sentinel", sentinel=SENTINEL, port=6379), id="a default port that is stored"),
]


@pytest.mark.parametrize("spec", TAKEN)
def test_taken(shared_kubectl, spec):
    shared_kubectl.ok("create", "--dry-run=server", "-f", "-", stdin=cr(spec))


REFUSED = [
    pytest.param(external(), "mode Standalone (the default) needs host", id="nowhere"),
    pytest.param(
        external(mode="Sentinel"),
        "spec.redis.external.sentinel: Required value: mode Sentinel needs sentinel, with masterName and "
        "addresses",
        id="no sentinels",
    ),
    pytest.param(external(mode="Cluster"), "mode Cluster needs cluster, with addresses", id="no nodes"),
    pytest.param(
        external(host="r", sentinel=SENTINEL), "sentinel is for mode Sentinel: set mode", id="mode forgotten"
    ),
    pytest.param(
        external(host="r", cluster={"addresses": ["one"]}),
        "cluster is for mode Cluster: set mode",
        id="mode of a cluster forgotten",
    ),
    pytest.param(
        external(mode="Sentinel", host="r", sentinel=SENTINEL),
        "host and port are for mode Standalone: remove them",
        id="host and sentinels",
    ),
    pytest.param(
        external(mode="Cluster", port=7000, cluster={"addresses": ["one"]}),
        "host and port are for mode Standalone",
        id="port and nodes",
    ),
    pytest.param(
        external(mode="Cluster", cluster={"addresses": ["one"]}, database=1),
        "database must be 0 in mode Cluster",
        id="a database in a cluster",
    ),
    pytest.param(external(mode="Replicated", host="r"), '"Cluster", "Sentinel", "Standalone"', id="mode"),
    pytest.param(
        external(mode="Sentinel", sentinel={"masterName": "m", "addresses": []}),
        "should have at least 1 items",
        id="no addresses",
    ),
    pytest.param(
        external(mode="Cluster", cluster={"addresses": ["n"] * 17}), "must have at most 16", id="too many"
    ),
    pytest.param(
        external(mode="Cluster", cluster={"addresses": ["redis://one:7000"]}),
        "must be host or host:port",
        id="an address with a scheme",
    ),
    pytest.param(
        external(mode="Cluster", cluster={"addresses": ["one:65536"]}),
        "must be host or host:port",
        id="a port beyond the last",
    ),
    pytest.param(
        external(mode="Cluster", cluster={"addresses": ["one,two"]}),
        "must be host or host:port",
        id="two addresses in one",
    ),
    pytest.param(
        external(mode="Sentinel", sentinel={**SENTINEL, "masterName": "a b"}),
        "must be letters, digits or any of . _ -",
        id="master name",
    ),
    pytest.param(external(host="r", username="u"), "username needs passwordSecretRef", id="user alone"),
    pytest.param(
        external(host="r", username="a b", passwordSecretRef={"name": "p"}),
        "must be a name without spaces",
        id="user with a space",
    ),
    pytest.param(
        external(mode="Sentinel", sentinel={**SENTINEL, "username": "u"}),
        "spec.redis.external.sentinel.passwordSecretRef: Required value",
        id="sentinels' user alone",
    ),
    pytest.param(
        external(host="r", tls={"caSecretRef": {"name": "a"}, "caConfigMapRef": {"name": "b"}}),
        "caSecretRef and caConfigMapRef exclude each other",
        id="two authorities",
    ),
    pytest.param(
        external(host="r", tls={"serverName": "https://r"}),
        "must be a host name or an address",
        id="server name",
    ),
    pytest.param(
        external(host="r", tls={"clientCertificateSecretRef": {}}),
        "clientCertificateSecretRef.name: Required",
        id="a certificate of nowhere",
    ),
    pytest.param(
        {"redis": {"durability": "Replica"}},
        "a managed Redis is a single one, without replicas",
        id="replicas of a managed Redis",
    ),
    pytest.param(
        {"redis": {"managed": {}, "durability": "Disk+Replica"}},
        "set durability to Disk or Memory",
        id="disk and replicas of a managed Redis",
    ),
    pytest.param(
        {"redis": {"connectTimeout": "10ms"}}, "must be a duration from 100ms to 1m", id="connect timeout"
    ),
    pytest.param({"redis": {"memoryGuardPercent": 0}}, "greater than or equal to 1", id="memory guard"),
    pytest.param({"redis": {"maxRetriesPerRequest": 21}}, "less than or equal to 20", id="retries"),
]


@pytest.mark.parametrize(("spec", "said"), REFUSED)
def test_refused(shared_kubectl, spec, said):
    answer = shared_kubectl("create", "--dry-run=server", "-f", "-", stdin=cr(spec))
    assert answer.code != 0
    assert said in answer.err


EXTERNAL = external(host="redis.example.com")
MOVES = [
    pytest.param({}, EXTERNAL, id="from what is managed unsaid"),
    pytest.param({"redis": {"managed": {}}}, EXTERNAL, id="from managed"),
    pytest.param(EXTERNAL, {}, id="from external by leaving it out"),
    pytest.param(EXTERNAL, {"redis": {}}, id="from external by an empty group"),
    pytest.param(EXTERNAL, {"redis": None}, id="from external by null"),
    pytest.param(EXTERNAL, {"redis": {"managed": {}}}, id="from external"),
]


@pytest.mark.parametrize(("before", "after"), MOVES)
def test_nobody_moves_between_managed_and_external(kubectl, before, after):
    kubectl.ok("create", "-f", "-", stdin=cr(before))
    answer = kubectl("replace", "-f", "-", stdin=cr(after))
    assert answer.code != 0
    assert "create a second WebSocketCluster and move the clients" in answer.err


@pytest.mark.parametrize(
    ("patch", "said"),
    [
        ('[{"op": "remove", "path": "/spec/redis"}]', "between a managed and an external Redis"),
        ('[{"op": "remove", "path": "/spec/redis/external"}]', "between a managed and an external Redis"),
        ('[{"op": "remove", "path": "/spec"}]', "spec: Required value"),
    ],
)
def test_nor_by_a_patch_that_takes_the_group_away(kubectl, patch, said):
    kubectl.ok("create", "-f", "-", stdin=cr(EXTERNAL))
    answer = kubectl("patch", "wsc/tables", "--type=json", "-p", patch)
    assert answer.code != 0
    assert said in answer.err


def test_an_external_redis_can_be_reached_another_way(kubectl):
    kubectl.ok("create", "-f", "-", stdin=cr(EXTERNAL))
    kubectl.ok("replace", "-f", "-", stdin=cr(external(mode="Sentinel", sentinel=SENTINEL)))
    kubectl.ok("replace", "-f", "-", stdin=cr(external(mode="Cluster", cluster={"addresses": ["one"]})))


def test_storage_grows_and_shrinks_only_back_to_what_the_volume_has(kubectl):
    def sized(size):
        return cr({"redis": {"managed": {"storage": {"size": size}}}})

    kubectl.ok("create", "-f", "-", stdin=cr())
    kubectl.ok("replace", "-f", "-", stdin=sized("4Gi"))
    refused = "storage.size cannot shrink, except back to what the volume has (status.redis.storage)"
    assert refused in kubectl("replace", "-f", "-", stdin=sized("2Gi")).err
    assert refused in kubectl("replace", "-f", "-", stdin=cr()).err
    status = json.dumps({"status": {"redis": {"storage": "2Gi"}}})
    kubectl.ok("patch", "wsc/tables", "--subresource=status", "--type=merge", "-p", status)
    assert refused in kubectl("replace", "-f", "-", stdin=sized("2047Mi")).err
    kubectl.ok("replace", "-f", "-", stdin=sized("2Gi"))
    # what the volume has says nothing against any other change, though the claim were kept and is larger
    status = json.dumps({"status": {"redis": {"storage": "8Gi"}}})
    kubectl.ok("patch", "wsc/tables", "--subresource=status", "--type=merge", "-p", status)
    kubectl.ok("patch", "wsc/tables", "--type=merge", "-p", '{"spec": {"replicas": 2}}')


def test_a_claims_class_cannot_change(kubectl):
    kubectl.ok(
        "create", "-f", "-", stdin=cr({"redis": {"managed": {"storage": {"storageClassName": "fast"}}}})
    )
    answer = kubectl("replace", "-f", "-", stdin=cr({"redis": {"managed": {}}}))
    assert "storageClassName cannot change once the claim exists: set it back" in answer.err
