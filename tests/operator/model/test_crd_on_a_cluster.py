"""What the real API server makes of the CRD: defaults, refusals with their messages, kubectl's views."""

import json
import re
from typing import Any

import pytest

from tableforge_operator.api import crd
from tests.operator.model import bounds
from tests.operator.model.fields import durations, placed
from tests.operator.model.refusals import answers, refusals

pytestmark = pytest.mark.cluster

SCHEMA = crd.crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def cr(spec: dict[str, Any] | None = None, name: str = "tables") -> dict[str, Any]:
    return {
        "apiVersion": "tableforge.io/v1alpha1",
        "kind": "WebSocketCluster",
        "metadata": {"name": name},
        "spec": {"auth": {"required": False}, **(spec or {})},
    }


EXTERNAL = {"redis": {"external": {"host": "redis.example.com"}}}


def managed(**fields: Any) -> dict[str, Any]:
    return {"redis": {"managed": fields}}


def gateway(parents, **more):
    return {"routing": {"mode": "Gateway", "gateway": {"parentRefs": parents, **more}}}


def test_the_smallest_cluster_is_filled_with_defaults(kubectl):
    (found,) = kubectl.objects("apply", "-f", "-", stdin=cr())
    assert found["spec"] == {
        "replicas": 3,
        "websocket": {
            "port": 3001,
            "maxConnections": 1000,
            "pingInterval": "30s",
            "pongTimeout": "5s",
            "maxPayloadBytes": 102400,
        },
        "redis": {},
        "scaling": {
            "heartbeatInterval": "30s",
            "cleanupInterval": "1m",
            "inactiveThreshold": "2m",
            "messageQueueSize": 1000,
        },
        "auth": {"required": False},
        "loadBalancing": {
            "strategy": "RoundRobin",
            "connectionThreshold": 0.8,
            "scaleUpCooldown": "5m",
            "scaleDownCooldown": "10m",
        },
        "autoscaling": {
            "enabled": False,
            "maxReplicas": 10,
            "targetCPUUtilization": 70,
            "targetMemoryUtilization": 80,
        },
        "performance": {"batchMessageDelay": "10ms", "maxBatchSize": 100},
        "monitoring": {
            "logLevel": "info",
            "logFormat": "json",
            "podMonitor": {"enabled": True, "interval": "30s"},
            "prometheusRule": {"enabled": True},
        },
        "security": {
            "maxMessagesPerSecond": 100,
            "maxMessagesPerMinute": 1000,
            "maxBytesPerSecond": 1048576,
            "maxRoomsPerConnection": 100,
            "networkPolicy": {"enabled": True},
        },
        "clustering": {
            "failoverTimeout": "30s",
            "enableLoadRebalancing": True,
            "rebalanceThreshold": 0.3,
            "rebalanceInterval": "1m",
            "maxMovesPerCycle": 50,
            "moveCooldown": "10m",
        },
        "routing": {"mode": "Service"},
        "rollout": {
            "drainTimeout": "20s",
            "maxReconnectsPerSecond": 200,
            "progressDeadline": "10m",
            "strategy": "RollingUpdate",
        },
        "pod": {
            "resources": {
                "requests": {"cpu": "100m", "memory": "256Mi"},
                "limits": {"cpu": "500m", "memory": "512Mi"},
            }
        },
        "service": {"type": "ClusterIP"},
    }
    # kstatus and `kubectl wait` must not take a cluster that nobody has looked at for done.
    assert found["status"] == {"observedGeneration": -1}


REFUSED = [
    pytest.param(cr(name="a" * 41), "at most 40 lower-case letters", id="name too long"),
    pytest.param(cr(name="1tables"), "start with a letter", id="name starts with a digit"),
    pytest.param(cr(name="ta.bles"), "choose another name", id="name with a dot"),
    pytest.param(
        cr({"auth": {}}), "to let everybody in, set auth.required to false", id="auth without a key"
    ),
    pytest.param(
        cr({"auth": {"required": True}}),
        "spec.auth.jwtSecretRef: Required value",
        id="auth points to the field",
    ),
    pytest.param(
        cr({"redis": {"managed": {}, "external": {"host": "r"}}}),
        "redis.managed and redis.external exclude each other",
        id="two kinds of Redis",
    ),
    pytest.param(
        cr({"redis": {"external": {}}}), "spec.redis.external.host: Required", id="external without host"
    ),
    pytest.param(cr({"redis": {"keyPrefix": "a b"}}), "must be 1 to 200 letters", id="key prefix"),
    pytest.param(
        cr({"redis": {"durability": "Tape"}}), '"Disk", "Disk+Replica", "Memory", "Replica"', id="durability"
    ),
    pytest.param(cr(managed(maxMemory="256Mi")), "whole number of mb or gb", id="memory in another unit"),
    pytest.param(cr(managed(maxMemory="8mb")), "at least 16mb", id="too little memory"),
    pytest.param(
        cr(managed(storage={"size": "10"})), "whole number of Mi, Gi or Ti", id="storage without unit"
    ),
    pytest.param(
        cr(managed(maxMemory="1gb", storage={"size": "2Gi"})),
        "at least three times maxMemory",
        id="small storage",
    ),
    pytest.param(cr(managed(maxMemory="1gb")), "raise storage.size or lower maxMemory", id="default storage"),
    pytest.param(
        cr({"routing": {"mode": "Gateway"}}),
        "routing.gateway.parentRefs must name the Gateway",
        id="gateway mode without a gateway",
    ),
    pytest.param(
        cr({"routing": {"gateway": {"parentRefs": [{"name": "public"}]}}}),
        "set the mode, or remove the gateway",
        id="a gateway in service mode",
    ),
    pytest.param(cr(gateway([])), "should have at least 1 items", id="no gateway at all"),
    pytest.param(
        cr(gateway([{"name": f"g{number}"} for number in range(5)])), "at most 4", id="many gateways"
    ),
    pytest.param(
        cr(gateway([{"name": "public", "namespace": "edge"}] * 2)), "once: remove", id="a gateway twice"
    ),
    pytest.param(
        cr(gateway([{"name": "Public"}])), "lower-case letters, digits, dashes and dots", id="gateway's name"
    ),
    pytest.param(
        cr(gateway([{"name": "public"}], hostnames=["https://tables.example"])),
        "must be a host name in lower case",
        id="a URL for a host name",
    ),
    pytest.param(
        cr(gateway([{"name": "public"}], hostnames=[f"h{number}.example" for number in range(9)])),
        "at most 8 items",
        id="many host names",
    ),
    pytest.param(
        cr({"loadBalancing": {"strategy": "round-robin"}}),
        '"LeastConnections", "RoundRobin", "Weighted"',
        id="strategy",
    ),
    pytest.param(cr({"clustering": {"rebalanceThreshold": 0}}), "must be from 0.05 to 10", id="no threshold"),
    pytest.param(cr({"clustering": {"rebalanceInterval": "1s"}}), "from 10s to 24h", id="interval too short"),
    pytest.param(
        cr({"loadBalancing": {"connectionThreshold": 0}}), "must be from 0.05 to 1", id="nothing is full"
    ),
    pytest.param(cr({"clustering": {"maxMovesPerCycle": 1001}}), "less than or equal to 1000", id="moves"),
    pytest.param(
        cr({"clustering": {"maxMovesPerCycle": 0}}), "greater than or equal to 1", id="a plan without moves"
    ),
    pytest.param(
        cr({"rollout": {"maxReconnectsPerSecond": 0}}),
        "greater than or equal to 1",
        id="nobody may reconnect",
    ),
    pytest.param(cr({"websocket": {"port": 80}}), "greater than or equal to 1024", id="privileged port"),
    pytest.param(cr({"websocket": {"port": 3002}}), "websocket.port 3002 is taken", id="the internal port"),
    pytest.param(
        cr({"websocket": {"pingInterval": "100ms"}}),
        "must be a duration from 1s to 1h",
        id="duration too short",
    ),
    pytest.param(
        cr({"websocket": {"pingInterval": "soon"}}), "written like 500ms, 30s, 2m or 1h30m", id="no duration"
    ),
    pytest.param(
        cr({"websocket": {"maxPayloadBytes": 2**21}}), "less than or equal to 1048576", id="payload"
    ),
    pytest.param(cr({"replicas": 1001}), "less than or equal to 1000", id="replicas"),
    pytest.param(
        cr({"security": {"maxMessagesPerMinute": 99}}),
        "maxMessagesPerMinute must be at least security.maxMessagesPerSecond",
        id="rates contradict",
    ),
    pytest.param(cr({"monitoring": {"logLevel": "loud"}}), "supported values", id="log level"),
    pytest.param(
        cr({"pod": {"resources": {"requests": {"cpu": 2}, "limits": {"cpu": "1500m"}}}}),
        "lower the request or raise the limit",
        id="request above limit",
    ),
    pytest.param(
        cr({"pod": {"resources": {"limits": {"memory": "lots"}}}}), "must be a quantity", id="quantity"
    ),
    pytest.param(
        cr({"pod": {"labels": {"tableforge.io/track": "b"}}}), "are the operator's", id="reserved label"
    ),
    pytest.param(
        cr({"service": {"annotations": {"app.kubernetes.io/name": "x"}}}),
        "remove them",
        id="reserved annotation",
    ),
    pytest.param(
        cr({"auth": {"jwtSecretRef": {"name": "Tables_JWT"}}}),
        'spec.auth.jwtSecretRef.name: Invalid value: "Tables_JWT": must be a name of lower-case',
        id="Secret name",
    ),
    pytest.param(
        cr({"auth": {"jwtSecretRef": {"name": "jwt", "key": "a/b"}}}),
        "must be a key of the Secret",
        id="Secret key",
    ),
    pytest.param(
        cr({"redis": {"external": {"host": "redis://r"}}}),
        "must be a host name or an address, without a scheme",
        id="host with a scheme",
    ),
    pytest.param(cr({"redis": {"external": {"host": "r:6379"}}}), "without a port", id="host with a port"),
    pytest.param(
        cr(managed(storage={"storageClassName": "Fast SSD"})), "must be a name of", id="storage class"
    ),
    pytest.param(cr({"pod": {"labels": {"a b": "c"}}}), "keys must be letters", id="label key"),
    pytest.param(cr({"pod": {"labels": {"a": "b c"}}}), "values must be at most", id="label value"),
    pytest.param(cr({"pod": {"nodeSelector": {"a": "-"}}}), "values must be at most", id="node selector"),
    pytest.param(cr({"pod": {"annotations": {"a/b/c": ""}}}), "keys must be letters", id="annotation"),
    pytest.param(
        cr({"service": {"annotations": {"a/b/c": ""}}}), "keys must be letters", id="Service's annotation"
    ),
    pytest.param(
        cr({"pod": {"tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]}}),
        "set operator to Equal",
        id="toleration that compares nothing",
    ),
    pytest.param(
        cr({"pod": {"tolerations": [{"effect": "NoSchedule"}]}}), "set it to Exists", id="toleration of all"
    ),
    pytest.param(
        cr({"pod": {"tolerations": [{"key": "a", "effect": "NoSchedule", "tolerationSeconds": 9}]}}),
        "for the effect NoExecute only",
        id="toleration with seconds",
    ),
]


@pytest.mark.parametrize(("obj", "said"), REFUSED)
def test_a_wrong_value_is_refused_with_what_to_change(shared_kubectl, obj, said):
    answer = shared_kubectl("create", "--dry-run=server", "-f", "-", stdin=obj)
    assert answer.code != 0
    assert said in answer.err


def test_every_duration_keeps_to_its_bounds(shared_kubectl):
    specs, wanted = {}, {}
    for number, (path, low, high, message) in enumerate(durations()):
        # the next one that can be written
        over = f"{high.milliseconds + 1}ms" if high.seconds < 60 else f"{high.whole_seconds // 60 + 1}m"
        for side, value in (("over", over), ("under", f"{low.milliseconds - 1}ms")):
            if not value.startswith("-"):
                specs[f"{side}-{number}"] = placed(path, value)
                wanted[f"{side}-{number}"] = f'spec.{path}: Invalid value: "{value}": {message}'
    said = refusals(shared_kubectl, specs)
    assert {name: said[name] for name in wanted if wanted[name] not in said[name]} == {}


def test_every_bound_of_the_spec_is_kept(shared_kubectl):
    cases = {f"case-{number}": case for number, case in enumerate(bounds.outside(SCHEMA, "spec"))}
    assert len(cases) > 250
    said = refusals(shared_kubectl, {name: case.obj["spec"] for name, case in cases.items()})
    assert not_refused_for_it(cases, said) == []


def test_every_bound_of_the_status_is_kept(kubectl):
    cases = {f"case-{number}": case for number, case in enumerate(bounds.outside(SCHEMA, "status"))}
    assert len(cases) > 50
    kubectl.ok("create", "-f", "-", stdin=[cr(name=name) for name in cases])
    objects = [{**cr(name=name), **case.obj} for name, case in cases.items()]
    said = answers(kubectl, objects, "replace", "--subresource=status")
    assert not_refused_for_it(cases, said) == []


def not_refused_for_it(cases, said):
    """What was taken, or refused in other words or for another field: which bound, and what was said."""
    return [
        (case.path, case.word, said[name])
        for name, case in cases.items()
        if not re.search(rf"{re.escape(case.path)}: .*{re.escape(case.said)}", said[name])
    ]


CHANGES = [
    pytest.param(
        {}, EXTERNAL, "create a second WebSocketCluster and move the clients", id="to an external Redis"
    ),
    pytest.param(
        EXTERNAL, {}, "create a second WebSocketCluster and move the clients", id="to a managed Redis"
    ),
    pytest.param({}, {"redis": {"keyPrefix": "x"}}, "redis.keyPrefix cannot change", id="key prefix set"),
    pytest.param(
        {"redis": {"keyPrefix": "x"}},
        {"redis": {"keyPrefix": "y"}},
        "redis.keyPrefix cannot change",
        id="key prefix",
    ),
    pytest.param(
        {}, managed(storage={"storageClassName": "fast"}), "redis.managed.storage", id="storage class"
    ),
    pytest.param(
        managed(passwordGeneration=3),
        managed(passwordGeneration=2),
        "redis.managed.passwordGeneration cannot go back to a password that was given up",
        id="former password",
    ),
    pytest.param(
        managed(passwordGeneration=2),
        {},
        "redis.managed.passwordGeneration cannot go back to a password that was given up",
        id="first password, unsaid",
    ),
]


@pytest.mark.parametrize(("before", "after", "said"), CHANGES)
def test_a_change_that_would_lose_data_is_refused(kubectl, before, after, said):
    kubectl.ok("create", "-f", "-", stdin=cr(before))
    answer = kubectl("replace", "-f", "-", stdin=cr(after))
    assert answer.code != 0
    assert said in answer.err


def test_changes_that_lose_nothing_are_taken(kubectl):
    kubectl.ok("create", "-f", "-", stdin=cr())
    kubectl.ok("replace", "-f", "-", stdin=cr(managed(maxMemory="300mb")))
    kubectl.ok("replace", "-f", "-", stdin=cr({"redis": {"durability": "Memory"}, "replicas": 0}))


def test_a_generous_spec_is_taken(shared_kubectl):
    spec = {
        "image": "registry.example:5000/team/dataplane@sha256:" + "0" * 64,
        "redis": {
            "external": {
                "host": "redis-1.example.com",
                "database": 3,
                "passwordSecretRef": {"name": "login"},
            },
            "keyPrefix": "team/tables",
            "durability": "Disk",
        },
        "auth": {"jwtSecretRef": {"name": "jwt", "key": "token.key"}},
        "websocket": {"pingInterval": "1m30s", "pongTimeout": "500ms"},
        "pod": {
            "resources": {"requests": {"cpu": 1, "memory": "1Gi"}, "limits": {"memory": "1.5Gi"}},
            "nodeSelector": {"pool": "sockets"},
            "tolerations": [
                {"key": "sockets", "operator": "Exists", "effect": "NoSchedule"},
                {"key": "spot", "value": "yes", "effect": "NoExecute", "tolerationSeconds": 30},
                {"operator": "Exists"},
            ],
            "labels": {"team": "tables", "example.com/Tier_1": "a.b-C", "empty": ""},
            "annotations": {"example.com/note": "x" * 1000},
        },
        "service": {"type": "LoadBalancer", "annotations": {"example.com/internal": "true"}},
        "loadBalancing": {"strategy": "Weighted"},
        "clustering": {"rebalanceThreshold": 0.5, "rebalanceInterval": "1h", "moveCooldown": "90s"},
        **gateway(
            [{"name": "public", "namespace": "edge", "sectionName": "wss"}, {"name": "public"}],
            hostnames=["tables.example.com", "*.tables.example.com"],
        ),
    }
    shared_kubectl.ok("create", "--dry-run=server", "-f", "-", stdin={**cr(), "spec": spec})


def test_an_unknown_field_is_named(shared_kubectl):
    answer = shared_kubectl("create", "--dry-run=server", "-f", "-", stdin=cr({"websocket": {"prot": 3001}}))
    assert answer.code != 0
    assert 'unknown field "spec.websocket.prot"' in answer.err


def test_kubectl_explains_it_like_documentation(shared_kubectl):
    said = shared_kubectl.ok("explain", "wsc.spec.redis")
    assert "a Redis that the operator runs" in said
    assert "enum: Disk, Disk+Replica, Memory, Replica" in said
    assert "Default: 30s." in shared_kubectl.ok("explain", "wsc.spec.websocket.pingInterval")


def test_the_columns_show_what_the_status_says(kubectl):
    kubectl.ok("create", "-f", "-", stdin=cr())
    status = {
        "conditions": [
            {
                "type": "Ready",
                "status": "True",
                "reason": "Ready",
                "message": "All 3 instances are ready.",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }
        ],
        "instances": 3,
        "connections": 0,
        "rooms": 12,
        "url": "ws://tables.games.svc:3001/ws",
    }
    kubectl.ok(
        "patch", "wsc/tables", "--subresource=status", "--type=merge", "-p", json.dumps({"status": status})
    )
    head, row = kubectl.ok("get", "wsc").splitlines()
    assert head.split() == ["NAME", "READY", "INSTANCES", "CONNECTIONS", "ROOMS", "AGE"]
    assert row.split()[:5] == ["tables", "True", "3", "0", "12"]
    assert "All 3 instances are ready." in kubectl.ok("get", "wsc", "-o", "wide")
    assert "tables" in kubectl.ok("get", "tableforge")


def test_the_table_of_instances_is_bounded_and_may_leave_out_what_is_not_known(kubectl):
    kubectl.ok("create", "-f", "-", stdin=cr())
    row = {"accepting": True, "draining": False, "connections": 1, "rooms": 1, "version": "0.1.0"}

    def patch(count):
        table = [{"name": f"tables-a-abc-{number}", **row} for number in range(count)]
        status = json.dumps({"status": {"instanceTable": table, "instancesNotShown": 10}})
        return kubectl("patch", "wsc/tables", "--subresource=status", "--type=merge", "-p", status)

    assert patch(50).code == 0
    assert "must have at most 50 items" in patch(51).err
    assert "Instance Table:" in kubectl.ok("describe", "wsc/tables")


def test_a_cluster_counts_as_ready_only_once_its_generation_was_observed(kubectl):
    kubectl.ok("create", "-f", "-", stdin=cr())
    ready = {
        "type": "Ready",
        "status": "True",
        "reason": "Ready",
        "message": "All 3 instances are ready.",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }

    def say(status: dict[str, Any]) -> None:
        kubectl.ok(
            "patch",
            "wsc/tables",
            "--subresource=status",
            "--type=merge",
            "-p",
            json.dumps({"status": status}),
        )

    say({"conditions": [ready]})
    assert kubectl("wait", "wsc/tables", "--for=condition=Ready", "--timeout=1s").code != 0
    say({"observedGeneration": 1})
    kubectl.ok("wait", "wsc/tables", "--for=condition=Ready", "--timeout=120s")


def test_kubectl_scales_it(kubectl):
    kubectl.ok("create", "-f", "-", stdin=cr())
    kubectl.ok("scale", "wsc/tables", "--replicas=5")
    (found,) = kubectl.objects("get", "wsc/tables")
    assert found["spec"]["replicas"] == 5
    assert "less than or equal to 1000" in kubectl("scale", "wsc/tables", "--replicas=5000").err


def test_a_status_has_its_own_door(kubectl):
    kubectl.ok("create", "-f", "-", stdin={**cr(), "status": {"observedGeneration": 99, "rooms": 5}})
    (found,) = kubectl.objects("get", "wsc/tables")
    assert found["status"] == {"observedGeneration": -1}
