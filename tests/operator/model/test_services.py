"""The Services, the ServiceAccount and the PodDisruptionBudget, whole."""

from tableforge_operator.decide.resources.client_service import client_service
from tableforge_operator.decide.resources.disruption_budget import disruption_budget
from tableforge_operator.decide.resources.instances_service import instances_service
from tableforge_operator.decide.resources.redis_service import redis_service
from tableforge_operator.decide.resources.service_account import service_account
from tests.operator.model import expected
from tests.operator.model.expected import metadata


def ws(port):
    return {
        "name": "ws",
        "port": port,
        "targetPort": "ws",
        "protocol": "TCP",
        "appProtocol": "kubernetes.io/ws",
    }


def test_the_client_service_points_to_the_active_track_and_hides_the_internal_port(cluster):
    assert client_service(cluster()) == {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata("tables", expected.DATAPLANE),
        "spec": {"type": "ClusterIP", "selector": expected.ACCEPTING, "ports": [ws(3001)]},
    }


def test_it_leaves_out_nobody_while_there_are_pods_that_do_not_say(cluster):
    assert client_service(cluster(), accepting=False)["spec"]["selector"] == expected.TRACK


def test_the_client_service_is_what_the_user_asks_for(cluster):
    built = client_service(
        cluster(
            {
                "websocket": {"port": 4000},
                "service": {"type": "LoadBalancer", "annotations": {"b.example/x": "1", "a.example/y": "2"}},
            }
        )
    )
    assert built["spec"] == {"type": "LoadBalancer", "selector": expected.ACCEPTING, "ports": [ws(4000)]}
    assert built["metadata"]["annotations"] == {"a.example/y": "2", "b.example/x": "1"}


def test_with_tls_the_services_say_so(cluster):
    secured = cluster({"websocket": {"tls": {"secretName": "certificate"}}})
    port = {**ws(3001), "name": "wss", "appProtocol": "kubernetes.io/wss"}
    assert client_service(secured)["spec"]["ports"] == [port]
    assert instances_service(secured)["spec"]["ports"][0] == port
    assert secured.url == "wss://tables.games.svc:3001/ws"


def test_the_headless_service_names_every_instance_ready_or_not(cluster):
    assert instances_service(cluster()) == {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata("tables-instances", expected.DATAPLANE),
        "spec": {
            "type": "ClusterIP",
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": expected.DATAPLANE,
            "ports": [
                ws(3001),
                {"name": "internal", "port": 3002, "targetPort": "internal", "protocol": "TCP"},
            ],
        },
    }


def test_the_redis_service(cluster):
    assert redis_service(cluster()) == {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata("tables-redis", expected.REDIS),
        "spec": {
            "type": "ClusterIP",
            "selector": expected.REDIS,
            "ports": [{"name": "redis", "port": 6379, "targetPort": "redis", "protocol": "TCP"}],
        },
    }


def test_the_service_account_has_no_token(cluster):
    assert service_account(cluster()) == {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": metadata("tables", expected.DATAPLANE),
        "automountServiceAccountToken": False,
    }


def test_the_disruption_budget_covers_both_tracks(cluster):
    assert disruption_budget(cluster()) == {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata("tables", expected.DATAPLANE),
        "spec": {
            "maxUnavailable": 1,
            "selector": {"matchLabels": expected.DATAPLANE},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }
