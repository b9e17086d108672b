"""The NetworkPolicies: what they are, and whom they let in, by an evaluator of their semantics."""

import pytest

from tableforge_operator.decide.resources import Surroundings, children
from tests.operator.model import expected
from tests.operator.model.expected import metadata
from tests.operator.model.network_policies import Pod, lets_in, pod_of
from tests.operator.model.refusals import refusals

WS, INTERNAL, REDIS = 3001, 3002, 6379
OPERATOR = Pod("tableforge-system", {"app.kubernetes.io/component": "operator"})
MONITORING = Pod("monitoring", {"app": "prometheus"})
NEIGHBOUR = Pod("games", {"app": "shop"})
STRANGER = Pod("elsewhere", {"app": "shop"})
OUTSIDE = Pod("", {}, address="203.0.113.7")
EVERYBODY = (OPERATOR, MONITORING, NEIGHBOUR, STRANGER, OUTSIDE)


def policy(**fields):
    return {"security": {"networkPolicy": fields}}


@pytest.fixture
def world(cluster, secrets):
    """The children of a cluster, the pods they make, and whom they let in."""

    def make(spec=None, **surroundings):
        around = Surroundings(**surroundings)
        objects = children(cluster(spec), secrets=secrets, surroundings=around).applied
        return World(objects)

    return make


class World:
    def __init__(self, objects):
        self.policies = [obj for obj in objects if obj["kind"] == "NetworkPolicy"]
        self.instance = pod_of(next(obj for obj in objects if obj["kind"] == "Deployment"))
        self.redis = next((pod_of(obj) for obj in objects if obj["kind"] == "StatefulSet"), None)

    def let_in(self, target, port, sources=EVERYBODY):
        return [source for source in sources if lets_in(self.policies, source, target, port)]


def test_the_policies_of_a_cluster_of_defaults(world):
    def namespace(name):
        return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}

    assert world().policies == [
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": metadata("tables", expected.DATAPLANE),
            "spec": {
                "podSelector": {"matchLabels": expected.DATAPLANE},
                "policyTypes": ["Ingress"],
                "ingress": [
                    {"ports": [{"protocol": "TCP", "port": "ws"}]},
                    {
                        "ports": [{"protocol": "TCP", "port": "internal"}],
                        "from": [namespace("tableforge-system"), namespace("games"), namespace("monitoring")],
                    },
                ],
            },
        },
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": metadata("tables-redis", expected.REDIS),
            "spec": {
                "podSelector": {"matchLabels": expected.REDIS},
                "policyTypes": ["Ingress"],
                "ingress": [
                    {
                        "ports": [{"protocol": "TCP", "port": "redis"}],
                        "from": [{"podSelector": {"matchLabels": expected.DATAPLANE}}],
                    }
                ],
            },
        },
    ]


def test_clients_come_from_anywhere_and_the_internal_port_is_for_few(world):
    found = world()
    assert found.let_in(found.instance, WS) == list(EVERYBODY)
    assert found.let_in(found.instance, INTERNAL) == [OPERATOR, MONITORING, NEIGHBOUR]
    assert found.let_in(found.instance, 22) == []


def test_only_the_clusters_own_instances_reach_its_redis(world):
    found = world()
    other = Pod("games", {**found.instance.labels, "tableforge.io/cluster": "chess"})
    same_labels_elsewhere = Pod("elsewhere", found.instance.labels)
    other_track = Pod("games", {**found.instance.labels, "tableforge.io/track": "b"})
    sources = (*EVERYBODY, found.instance, other, same_labels_elsewhere, other_track, found.redis)
    assert found.let_in(found.redis, REDIS, sources) == [found.instance, other_track]
    assert found.let_in(found.redis, 22, sources) == []


def test_clients_can_be_limited_to_addresses_and_pods(world):
    found = world(policy(clients=[{"cidr": "203.0.113.0/24"}, {"podLabels": {"app": "shop"}}]))
    assert found.let_in(found.instance, WS) == [NEIGHBOUR, OUTSIDE]
    found = world(policy(clients=[{"namespace": "elsewhere", "podLabels": {"app": "shop"}}]))
    assert found.let_in(found.instance, WS) == [STRANGER]
    assert found.let_in(found.instance, INTERNAL) == [OPERATOR, MONITORING, NEIGHBOUR]


def test_the_internal_port_can_be_for_others_and_always_is_for_the_operator(world):
    found = world(policy(internal=[{"namespace": "elsewhere"}]))
    assert found.let_in(found.instance, INTERNAL) == [OPERATOR, STRANGER]
    found = world(policy(internal=[]))
    assert found.let_in(found.instance, INTERNAL) == [OPERATOR]
    found = world(policy(internal=[]), operator_namespace="elsewhere")
    assert found.let_in(found.instance, INTERNAL) == [STRANGER]


def test_the_rules_follow_the_port(world):
    found = world({"websocket": {"port": 4000}, **policy(clients=[{"namespace": "games"}])})
    assert found.let_in(found.instance, 4000) == [NEIGHBOUR]
    assert found.let_in(found.instance, WS) == []


def test_they_can_be_switched_off(world):
    found = world(policy(enabled=False))
    assert found.policies == []
    assert found.let_in(found.instance, INTERNAL) == list(EVERYBODY)


def test_an_external_redis_has_none(world):
    found = world({"redis": {"external": {"host": "redis.example.com"}}})
    assert [obj["metadata"]["name"] for obj in found.policies] == ["tables"]


REFUSED = {
    "bits-beyond-the-prefix": ({"cidr": "10.0.0.1/8"}, "without bits beyond its prefix"),
    "no-range": ({"cidr": "anywhere"}, "must be a range of addresses"),
    "both": ({"cidr": "10.0.0.0/8", "namespace": "games"}, "must name either cidr"),
    "pods-too": ({"cidr": "10.0.0.0/8", "podLabels": {"a": "b"}}, "must name either cidr"),
    "nothing": ({}, "must name either cidr"),
    "no-label": ({"podLabels": {}}, "must name either cidr"),
    "empty-namespace": ({"namespace": ""}, "must be a name of lower-case"),
    "namespace": ({"namespace": "Games"}, "must be a name of lower-case letters, digits and dashes"),
    "label": ({"podLabels": {"a b": "c"}}, "keys must be letters"),
}


@pytest.mark.cluster
@pytest.mark.parametrize("field", ["clients", "internal"])
def test_a_wrong_peer_is_refused_with_what_to_change(shared_kubectl, field):
    specs = {name: policy(**{field: [peer]}) for name, (peer, _) in REFUSED.items()}
    specs["many"] = policy(**{field: [{"namespace": f"n{number}"} for number in range(33)]})
    said = refusals(shared_kubectl, specs)
    assert "at most 32 items" in said.pop("many")
    for name, (_, message) in REFUSED.items():
        assert message in said[name], name
        assert f"spec.security.networkPolicy.{field}[0]" in said[name], name


@pytest.mark.cluster
def test_the_api_server_takes_every_form(shared_kubectl, cluster, secrets):
    peers = [{"cidr": "fd00::/8"}, {"cidr": "0.0.0.0/0"}, {"podLabels": {"a": "b"}}, {"namespace": "n"}]
    spec = policy(clients=peers, internal=[{"namespace": "n", "podLabels": {"a": "b"}}])
    shared_kubectl.ok("create", "--dry-run=server", "-f", "-", stdin=expected.cr(spec))
    applied = children(cluster(spec, namespace="default"), secrets=secrets).applied
    policies = [obj for obj in applied if obj["kind"] == "NetworkPolicy"]
    said = shared_kubectl(
        *("apply", "--server-side", "--validate=strict", "--dry-run=server"), "-f", "-", stdin=policies
    )
    assert (said.code, len(said.out.splitlines()), said.err) == (0, 2, "")
