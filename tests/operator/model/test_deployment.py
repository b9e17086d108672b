"""The Deployment of the instances, whole."""

import pytest

from tableforge_operator.decide.resources.deployment import deployment
from tests.operator.model import expected
from tests.operator.model.expected import metadata

SPREAD = [
    {
        "maxSkew": 1,
        "topologyKey": key,
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": expected.TRACK},
    }
    for key in ("kubernetes.io/hostname", "topology.kubernetes.io/zone")
]


def secret_volume(name, secret, key, path):
    return {
        "name": name,
        "secret": {
            "secretName": secret,
            "items": [{"key": key, "path": path}],
            "defaultMode": 0o444,
            "optional": True,
        },
    }


def build(cluster):
    return deployment(cluster, config_hash="c0ffee", fleet_secret="tables-fleet-0d1e2f30-12345678")


def test_a_cluster_of_defaults(cluster):
    assert build(cluster()) == {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata("tables-a", expected.TRACK),
        "spec": {
            "replicas": 3,
            "revisionHistoryLimit": 3,
            "progressDeadlineSeconds": 600,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "selector": {"matchLabels": expected.TRACK},
            "template": {
                "metadata": {
                    "labels": {**expected.COMMON, **expected.TRACK},
                    "annotations": {"tableforge.io/config-hash": "c0ffee"},
                },
                "spec": {
                    "serviceAccountName": "tables",
                    "automountServiceAccountToken": False,
                    "enableServiceLinks": False,
                    "terminationGracePeriodSeconds": 35,
                    "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
                    "topologySpreadConstraints": SPREAD,
                    "containers": [
                        {
                            "name": "dataplane",
                            "image": "tableforge/dataplane:0.1.0",
                            "ports": [
                                {"name": "ws", "containerPort": 3001, "protocol": "TCP"},
                                {"name": "internal", "containerPort": 3002, "protocol": "TCP"},
                            ],
                            "env": [
                                {
                                    "name": "INSTANCE_ID",
                                    "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}},
                                },
                                {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                            ],
                            "envFrom": [{"configMapRef": {"name": "tables-config"}}],
                            "resources": {
                                "requests": {"cpu": "100m", "memory": "256Mi"},
                                "limits": {"cpu": "500m", "memory": "512Mi"},
                            },
                            "livenessProbe": {
                                "httpGet": {"path": "/live", "port": "ws"},
                                "initialDelaySeconds": 30,
                                "periodSeconds": 10,
                                "timeoutSeconds": 5,
                                "failureThreshold": 3,
                            },
                            "readinessProbe": {
                                "httpGet": {"path": "/ready", "port": "ws"},
                                "initialDelaySeconds": 5,
                                "periodSeconds": 5,
                                "timeoutSeconds": 3,
                                "failureThreshold": 3,
                            },
                            "lifecycle": {"preStop": {"sleep": {"seconds": 5}}},
                            "securityContext": {
                                "allowPrivilegeEscalation": False,
                                "capabilities": {"drop": ["ALL"]},
                                "readOnlyRootFilesystem": True,
                            },
                            "terminationMessagePolicy": "FallbackToLogsOnError",
                            "volumeMounts": [
                                {
                                    "name": "fleet-key",
                                    "mountPath": "/var/run/tableforge/fleet",
                                    "readOnly": True,
                                },
                                {
                                    "name": "redis-password",
                                    "mountPath": "/var/run/tableforge/redis",
                                    "readOnly": True,
                                },
                            ],
                        }
                    ],
                    "volumes": [
                        secret_volume("fleet-key", "tables-fleet-0d1e2f30-12345678", "key", "key"),
                        secret_volume("redis-password", "tables-redis-0d1e2f30-1", "password", "password"),
                    ],
                },
            },
        },
    }


def test_every_field_of_the_pod_acts(cluster):
    toleration = {"key": "sockets", "operator": "Exists", "effect": "NoSchedule"}
    built = build(
        cluster(
            {
                "replicas": 0,
                "image": "mine:2",
                "websocket": {"port": 4000},
                "rollout": {"drainTimeout": "1500ms", "progressDeadline": "1m"},
                "pod": {
                    "resources": {"limits": {"cpu": 2}},
                    "nodeSelector": {"pool": "sockets"},
                    "tolerations": [toleration],
                    "labels": {"team": "tables"},
                    "annotations": {"example.com/note": "hello"},
                },
            }
        )
    )
    spec = built["spec"]
    assert spec["replicas"] == 0
    assert spec["progressDeadlineSeconds"] == 60
    template = spec["template"]
    assert template["metadata"]["labels"] == {"team": "tables", **expected.COMMON, **expected.TRACK}
    assert template["metadata"]["annotations"] == {
        "example.com/note": "hello",
        "tableforge.io/config-hash": "c0ffee",
    }
    pod = template["spec"]
    assert pod["nodeSelector"] == {"pool": "sockets"}
    assert pod["tolerations"] == [toleration]
    # preStop's 5, the drain of 1.5 rounded up, and the margin of 10
    assert pod["terminationGracePeriodSeconds"] == 17
    container = pod["containers"][0]
    assert container["image"] == "mine:2"
    assert container["ports"][0]["containerPort"] == 4000
    assert container["resources"] == {"limits": {"cpu": "2"}}


def test_selectors_never_change_with_the_spec(cluster):
    changed = build(cluster({"pod": {"labels": {"team": "tables"}}, "image": "mine:2", "replicas": 9}))
    assert changed["spec"]["selector"] == build(cluster())["spec"]["selector"]


def test_the_clusters_own_labels_are_not_copied(cluster):
    labelled = cluster(labels={"argocd.argoproj.io/instance": "app"}, annotations={"note": "x"})
    assert build(labelled) == build(cluster())


@pytest.mark.parametrize("label", ["tableforge.io/track", "app.kubernetes.io/component"])
def test_the_users_labels_never_win_over_ours(cluster, label):
    # The CRD refuses them; the builder doesn't rely on it.
    built = build(cluster({"pod": {"labels": {label: "x"}}}))
    assert built["spec"]["template"]["metadata"]["labels"][label] != "x"


def test_secrets_of_the_user_are_mounted_and_may_come_later(cluster):
    built = build(
        cluster(
            {
                "auth": {"jwtSecretRef": {"name": "jwt", "key": "token.key"}},
                "redis": {"external": {"host": "r", "passwordSecretRef": {"name": "login", "key": "pw"}}},
            }
        )
    )
    pod = built["spec"]["template"]["spec"]
    assert pod["volumes"][1:] == [
        secret_volume("redis-password", "login", "pw", "password"),
        secret_volume("jwt-secret", "jwt", "token.key", "secret"),
    ]
    assert [mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]] == [
        "/var/run/tableforge/fleet",
        "/var/run/tableforge/redis",
        "/var/run/tableforge/jwt",
    ]


def test_an_external_redis_without_a_password_mounts_none(cluster):
    pod = build(cluster({"redis": {"external": {"host": "r"}}}))["spec"]["template"]["spec"]
    assert [volume["name"] for volume in pod["volumes"]] == ["fleet-key"]
