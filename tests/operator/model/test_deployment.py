"""The Deployment of the instances, whole."""

import json

import pytest

from tableforge_operator.decide.resources.deployment import deployment, template_hash
from tableforge_operator.decide.resources.secrets import MadeSecrets
from tableforge_operator.decide.resources.tracks import Instances
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


LIVE = {"name": "live-settings", "configMap": {"name": "tables-live"}}
TEMPLATE = {"config_hash": "c0ffee", "secrets": MadeSecrets(fleet="tables-fleet-0d1e2f30-12345678")}


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
    return deployment(cluster, **TEMPLATE)


def test_a_cluster_of_defaults(cluster):
    annotations = {"tableforge.io/template-hash": template_hash(cluster(), **TEMPLATE)}
    assert build(cluster()) == {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {**metadata("tables-a", expected.TRACK), "annotations": annotations},
        "spec": {
            "replicas": 3,
            "revisionHistoryLimit": 3,
            "progressDeadlineSeconds": 600,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "selector": {"matchLabels": expected.TRACK},
            "template": {
                "metadata": {
                    "labels": {**expected.COMMON, **expected.ACCEPTING},
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
                            "envFrom": [{"configMapRef": {"name": "tables-config-c0ffee"}}],
                            "resources": {
                                "requests": {"cpu": "100m", "memory": "256Mi"},
                                "limits": {"cpu": "500m", "memory": "512Mi"},
                            },
                            "livenessProbe": {
                                "httpGet": {"path": "/live", "port": "internal"},
                                "initialDelaySeconds": 30,
                                "periodSeconds": 10,
                                "timeoutSeconds": 5,
                                "failureThreshold": 3,
                            },
                            "readinessProbe": {
                                "httpGet": {"path": "/ready", "port": "internal"},
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
                                    "name": "live-settings",
                                    "mountPath": "/etc/tableforge/live",
                                    "readOnly": True,
                                },
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
                        LIVE,
                        secret_volume("fleet-key", "tables-fleet-0d1e2f30-12345678", "key", "key"),
                        {
                            "name": "redis-password",
                            "projected": {
                                "sources": [
                                    {
                                        "secret": {
                                            "name": f"tables-redis-0d1e2f30-{generation}",
                                            "items": [{"key": "password", "path": str(generation)}],
                                            "optional": True,
                                        }
                                    }
                                    for generation in (1, 2, 3, 4)
                                ],
                                "defaultMode": 0o444,
                            },
                        },
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
    assert template["metadata"]["labels"] == {"team": "tables", **expected.COMMON, **expected.ACCEPTING}
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
    assert pod["volumes"][2:] == [
        secret_volume("redis-password", "login", "pw", "password"),
        secret_volume("jwt-secret", "jwt", "token.key", "secret"),
    ]
    assert [mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]] == [
        "/etc/tableforge/live",
        "/var/run/tableforge/fleet",
        "/var/run/tableforge/redis",
        "/var/run/tableforge/jwt",
    ]


def test_an_external_redis_without_a_password_mounts_none(cluster):
    pod = build(cluster({"redis": {"external": {"host": "r"}}}))["spec"]["template"]["spec"]
    assert [volume["name"] for volume in pod["volumes"]] == ["live-settings", "fleet-key"]


def test_both_tracks_have_the_same_template_but_for_the_track(cluster):
    made = [deployment(cluster(), instances=Instances(track=track), **TEMPLATE) for track in ("a", "b")]
    a, b = (json.dumps(one, sort_keys=True) for one in made)
    assert a != b
    assert b == a.replace('"tableforge.io/track": "a"', '"tableforge.io/track": "b"').replace(
        '"name": "tables-a"', '"name": "tables-b"'
    )


@pytest.mark.parametrize(
    ("changed", "spec"),
    [
        (True, {"image": "tableforge/dataplane:0.2.0"}),
        (True, {"pod": {"labels": {"team": "tables"}}}),
        (True, {"rollout": {"drainTimeout": "21s"}}),
        (False, {"replicas": 7}),
        (False, {"rollout": {"progressDeadline": "1m", "strategy": "BlueGreen"}}),
    ],
)
def test_the_hash_changes_with_what_the_pods_are_to_be(cluster, changed, spec):
    assert (template_hash(cluster(spec), **TEMPLATE) != template_hash(cluster(), **TEMPLATE)) is changed


def test_a_pause_between_pods_gets_its_time_in_the_progress_deadline(cluster):
    spec = deployment(cluster(), instances=Instances(min_ready_seconds=45), **TEMPLATE)["spec"]
    assert (spec["minReadySeconds"], spec["progressDeadlineSeconds"]) == (45, 645)
    assert spec["template"] == build(cluster())["spec"]["template"]


def test_whatever_the_instances_read_from_files_is_mounted(cluster):
    auth = {
        "jwtSecretRef": {"name": "jwt"},
        "previousJwtSecretRef": {"name": "old-jwt", "key": "token.key"},
        "publicKeys": {"configMapRef": {"name": "keys", "key": "public.pem"}},
        "jwks": {"url": "https://id.example.com/keys", "caSecretRef": {"name": "ca", "key": "ca.pem"}},
        "apiKeySecretRef": {"name": "api"},
    }
    built = build(
        cluster(
            {
                "auth": auth,
                "websocket": {"tls": {"secretName": "certificate"}},
                "redis": {"external": {"host": "r"}},
            }
        )
    )
    pod = built["spec"]["template"]["spec"]
    assert pod["volumes"][2:] == [
        secret_volume("jwt-secret", "jwt", "secret", "secret"),
        secret_volume("previous-jwt-secret", "old-jwt", "token.key", "secret"),
        secret_volume("api-key", "api", "key", "key"),
        {
            "name": "public-keys",
            "configMap": {
                "name": "keys",
                "items": [{"key": "public.pem", "path": "keys"}],
                "defaultMode": 0o444,
                "optional": True,
            },
        },
        secret_volume("jwks-ca", "ca", "ca.pem", "ca.crt"),
        {
            "name": "tls",
            "secret": {
                "secretName": "certificate",
                "items": [{"key": "tls.crt", "path": "tls.crt"}, {"key": "tls.key", "path": "tls.key"}],
                "defaultMode": 0o444,
                "optional": True,
            },
        },
    ]
    mounts = pod["containers"][0]["volumeMounts"]
    assert {mount["name"]: mount["mountPath"] for mount in mounts[2:]} == {
        "jwt-secret": "/var/run/tableforge/jwt",
        "previous-jwt-secret": "/var/run/tableforge/previous-jwt",
        "api-key": "/var/run/tableforge/api",
        "public-keys": "/var/run/tableforge/public-keys",
        "jwks-ca": "/var/run/tableforge/jwks-ca",
        "tls": "/var/run/tableforge/tls",
    }


def test_public_keys_may_be_in_a_secret(cluster):
    built = build(cluster({"auth": {"publicKeys": {"secretRef": {"name": "keys", "key": "public.pem"}}}}))
    volumes = built["spec"]["template"]["spec"]["volumes"]
    assert secret_volume("public-keys", "keys", "public.pem", "keys") in volumes
