"""`spec.service`: what each field does to the Service, what is refused, and what becomes of a live one."""

import pytest

from tableforge_operator.decide.resources.client_service import client_service
from tests.operator.model import expected
from tests.operator.model.refusals import refusals

BALANCED = {
    "type": "LoadBalancer",
    "port": 443,
    "nodePort": 30443,
    "externalTrafficPolicy": "Local",
    "loadBalancerClass": "example.com/internal",
    "loadBalancerSourceRanges": ["10.0.0.0/8", "fd00::/8"],
}


def test_every_field_acts(cluster):
    made = cluster({"service": BALANCED})
    assert made.url == "ws://tables.games.svc:443/ws"
    assert client_service(made)["spec"] == {
        "type": "LoadBalancer",
        "selector": expected.ACCEPTING,
        "ports": [
            {
                "name": "ws",
                "port": 443,
                "nodePort": 30443,
                "targetPort": "ws",
                "protocol": "TCP",
                "appProtocol": "kubernetes.io/ws",
            }
        ],
        "externalTrafficPolicy": "Local",
        "loadBalancerClass": "example.com/internal",
        "loadBalancerSourceRanges": ["10.0.0.0/8", "fd00::/8"],
    }


REFUSED = {
    "node-port": ({"nodePort": 30000}, "set service.type, or remove the port"),
    "policy": ({"externalTrafficPolicy": "Local"}, "set service.type, or remove it"),
    "class": ({"type": "NodePort", "loadBalancerClass": "a"}, "or remove the class"),
    "class-name": (
        {"type": "LoadBalancer", "loadBalancerClass": "a b"},
        "must be a name of letters, digits, dashes, dots and underscores",
    ),
    "ranges": ({"loadBalancerSourceRanges": ["10.0.0.0/8"]}, "use security.networkPolicy.clients"),
    "range": (
        {"type": "LoadBalancer", "loadBalancerSourceRanges": ["10.1.0.0/8"]},
        "spec.service.loadBalancerSourceRanges[0]: Invalid value",
    ),
    "port": ({"port": 65536}, "less than or equal to 65535"),
    "type": ({"type": "ExternalName"}, "supported values"),
}


@pytest.mark.cluster
def test_wrong_values_are_refused_with_what_to_change(shared_kubectl):
    said = refusals(shared_kubectl, {name: {"service": asked} for name, (asked, _) in REFUSED.items()})
    wrong = {name: said[name] for name, (_, message) in REFUSED.items() if message not in said[name]}
    assert wrong == {}


@pytest.mark.cluster
def test_a_load_balancers_class_cannot_change_and_can_after_it_is_gone(kubectl):
    def change(service):
        return kubectl("apply", "-f", "-", stdin=expected.cr({"service": service}))

    assert change(BALANCED).code == 0
    refused = change({**BALANCED, "loadBalancerClass": "example.com/other"})
    assert "set service.type to ClusterIP first" in refused.err
    assert change({"type": "ClusterIP"}).code == 0
    assert change({**BALANCED, "loadBalancerClass": "example.com/other"}).code == 0


@pytest.mark.cluster
def test_a_service_goes_from_every_type_to_every_other(kubectl, cluster):
    """Each apply drops what the former one said; the API server must not be left with a mixture."""
    asked = (
        BALANCED,
        {},
        {"type": "NodePort", "nodePort": 30444, "externalTrafficPolicy": "Local"},
        {"type": "NodePort"},
        BALANCED,
        {"type": "LoadBalancer", "loadBalancerClass": "example.com/internal"},
        {"type": "NodePort", "port": 80},
        {},
    )
    for service in asked:
        wanted = client_service(cluster({"service": service}, namespace=kubectl.namespace))
        # Nobody stands behind the owner reference: the garbage collector would take it away.
        del wanted["metadata"]["ownerReferences"]
        apply = ("apply", "--server-side", "--validate=strict", "--field-manager=tableforge-operator")
        kubectl.ok(*apply, "-f", "-", stdin=wanted)
        (live,) = kubectl.objects("get", "service/tables")
        spec = live["spec"]
        assert spec["type"] == service.get("type", "ClusterIP")
        assert [port["port"] for port in spec["ports"]] == [service.get("port", 3001)]
        for field in ("loadBalancerClass", "loadBalancerSourceRanges"):
            assert spec.get(field) == service.get(field)
        if spec["type"] == "ClusterIP":
            assert "nodePort" not in spec["ports"][0]
            assert "externalTrafficPolicy" not in spec
        else:
            assert spec["externalTrafficPolicy"] == service.get("externalTrafficPolicy", "Cluster")
            assert spec["ports"][0]["nodePort"] == service.get("nodePort", spec["ports"][0]["nodePort"])
