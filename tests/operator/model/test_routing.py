"""What leads from a gateway to the instances, whole."""

from tableforge_operator.api.spec.routing import Gateway
from tableforge_operator.decide.resources.http_route import http_route, instance_address, instance_route
from tableforge_operator.decide.resources.instance_service import instance_service
from tests.operator.model import expected
from tests.operator.model.expected import metadata
from tests.operator.model.test_services import ws

POD = {"metadata": {"name": "tables-a-abc-x1", "uid": "uid-of-pod"}}
ROUTED = {
    "websocket": {"port": 4000},
    "routing": {
        "mode": "Gateway",
        "gateway": {
            "parentRefs": [{"name": "public", "namespace": "edge", "sectionName": "wss"}, {"name": "inside"}],
            "hostnames": ["tables.example"],
        },
    },
}
OF_POD = {
    "name": "tables-a-abc-x1",
    "namespace": "games",
    "labels": {**expected.COMMON, **expected.DATAPLANE, "tableforge.io/instance": "tables-a-abc-x1"},
    "ownerReferences": [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "name": "tables-a-abc-x1",
            "uid": "uid-of-pod",
            "controller": True,
            "blockOwnerDeletion": False,
        }
    ],
}


def gateway(cluster) -> Gateway:
    found = cluster(ROUTED).spec.routing.gateway
    assert found is not None
    return found


def test_the_route_of_all_instances_leads_to_the_client_service(cluster):
    assert http_route(cluster(ROUTED), gateway(cluster)) == {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": metadata("tables", expected.DATAPLANE),
        "spec": {
            "parentRefs": [{"name": "public", "namespace": "edge", "sectionName": "wss"}, {"name": "inside"}],
            "hostnames": ["tables.example"],
            "rules": [
                {
                    "matches": [
                        {"path": {"type": "Exact", "value": "/ws"}},
                        {"path": {"type": "Exact", "value": "/health"}},
                    ],
                    "backendRefs": [{"name": "tables", "port": 4000}],
                }
            ],
        },
    }


def test_an_instances_route_leads_to_it_alone_and_goes_with_its_pod(cluster):
    assert instance_route(cluster(ROUTED), gateway(cluster), POD) == {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": OF_POD,
        "spec": {
            "parentRefs": [{"name": "public", "namespace": "edge", "sectionName": "wss"}, {"name": "inside"}],
            "hostnames": ["tables.example"],
            "rules": [
                {
                    "matches": [{"path": {"type": "PathPrefix", "value": "/i/tables-a-abc-x1"}}],
                    "backendRefs": [{"name": "tables-a-abc-x1", "port": 4000}],
                }
            ],
        },
    }
    assert instance_service(cluster(ROUTED), POD) == {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": OF_POD,
        "spec": {
            "type": "ClusterIP",
            "selector": {**expected.DATAPLANE, "tableforge.io/instance": "tables-a-abc-x1"},
            "ports": [ws(4000)],
        },
    }
    assert instance_address("tables-a-abc-x1") == "/i/tables-a-abc-x1/ws"


def test_without_host_names_those_of_the_listeners_hold(cluster):
    asked = cluster({"routing": {"mode": "Gateway", "gateway": {"parentRefs": [{"name": "public"}]}}})
    assert "hostnames" not in http_route(asked, asked.spec.routing.gateway)["spec"]


def test_a_weight_is_the_cpu_that_a_pod_is_set_aside(cluster):
    for resources, weight in (
        (None, 100),
        ({"requests": {"cpu": "1500m"}}, 1500),
        ({"limits": {"cpu": 2}}, 2000),
        ({"requests": {"cpu": "0.5"}, "limits": {"cpu": "4"}}, 500),
        ({"requests": {"memory": "1Gi"}}, 100),
        ({"requests": {"cpu": "0"}}, 1),
        ({"requests": {"cpu": "5k"}}, 1_000_000),
    ):
        spec = {} if resources is None else {"pod": {"resources": resources}}
        assert cluster(spec).weight == weight, resources
