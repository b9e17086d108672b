"""Objects from the API server become typed clusters, and what the spec leaves open is resolved."""

import pytest

from tableforge_operator import api
from tableforge_operator.api.fields import settings_in

METADATA = {"name": "tables", "namespace": "games", "uid": "u-1"}


def load(spec, **metadata):
    return api.load({"metadata": {**METADATA, **metadata}, "spec": spec})


def test_an_empty_spec_has_the_guides_defaults():
    cluster = load({})
    assert cluster.spec.replicas == 3
    assert cluster.spec.websocket.port == 3001
    assert cluster.spec.websocket.ping_interval.seconds == 30
    assert cluster.image == "tableforge/dataplane:0.1.0"
    assert cluster.redis_image == "valkey/valkey:9.1"
    assert cluster.managed_redis is not None
    assert cluster.managed_redis.max_memory == "256mb"
    assert cluster.durability == "Disk"
    assert cluster.key_prefix == "games/tables"
    assert cluster.url == "ws://tables.games.svc:3001/ws"
    assert cluster.spec.auth.required is True
    assert not cluster.paused
    assert cluster.status.observed_generation == -1


def test_an_external_redis_defaults_to_memory():
    cluster = load({"redis": {"external": {"host": "r.example", "passwordSecretRef": {"name": "login"}}}})
    assert cluster.managed_redis is None
    assert cluster.redis_image is None
    assert cluster.durability == "Memory"
    external = cluster.spec.redis.external
    assert external is not None
    assert external.password_secret_ref is not None
    assert external.password_secret_ref.key == "password"


def test_what_the_user_says_wins():
    cluster = load(
        {
            "image": "mine:1",
            "redis": {"managed": {"image": "redis:8"}, "keyPrefix": "x", "durability": "Memory"},
        },
        annotations={"tableforge.io/paused": "true"},
        generation=7,
        deletionTimestamp="2026-01-01T00:00:00Z",
    )
    assert (cluster.image, cluster.redis_image, cluster.key_prefix, cluster.durability) == (
        "mine:1",
        "redis:8",
        "x",
        "Memory",
    )
    assert cluster.paused
    assert cluster.generation == 7
    assert cluster.deletion_timestamp == "2026-01-01T00:00:00Z"


def test_fields_of_a_later_version_are_passed_over():
    assert (
        load({"autoscaling": {"enabled": True}, "websocket": {"port": 4000, "new": 1}}).spec.websocket.port
        == 4000
    )


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ({"replicas": -1}, "$.spec.replicas"),
        ({"websocket": {"pingInterval": "soon"}}, "$.spec.websocket.pingInterval"),
        ({"websocket": {"pingInterval": 30}}, "$.spec.websocket.pingInterval"),
        ({"redis": {"external": {"mode": "Sentinel", "sentinel": {"addresses": ["a"]}}}}, "masterName"),
        ({"service": {"type": "Ingress"}}, "$.spec.service.type"),
    ],
)
def test_what_is_no_cluster_is_refused_by_field(spec, named):
    with pytest.raises(api.InvalidClusterError) as refused:
        load(spec)
    assert named in str(refused.value)


def test_every_setting_in_the_spec_is_found_once():
    found = [name for name, _ in settings_in(load({}).spec)]
    assert len(found) == len(set(found))
    assert {"websocket.port", "scaling.drain_seconds", "auth.required", "logging.level"} <= set(found)


def test_a_status_keeps_zeros_and_leaves_out_what_is_unset():
    status = api.Status(
        observed_generation=3,
        replicas=0,
        connections=0,
        active_track="a",
        redis=api.RedisStatus(durability="Disk"),
        conditions=[
            api.Condition(
                type="Ready",
                status="False",
                reason="NoReplicas",
                message="m",
                last_transition_time="2026-01-01T00:00:00Z",
                observed_generation=3,
            )
        ],
    )
    assert status.to_dict() == {
        "observedGeneration": 3,
        "replicas": 0,
        "connections": 0,
        "activeTrack": "a",
        "redis": {"durability": "Disk"},
        "conditions": [
            {
                "type": "Ready",
                "status": "False",
                "reason": "NoReplicas",
                "message": "m",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
                "observedGeneration": 3,
            }
        ],
    }
    assert api.load({"metadata": METADATA, "spec": {}, "status": status.to_dict()}).status == status
