"""`spec.pod`: what each field does to the pods, and what is refused."""

import pytest

from tableforge_dataplane.contract import settings
from tableforge_operator.api.spec.pod import Pod
from tableforge_operator.decide.resources import children, pod_overrides
from tests.operator.model import expected
from tests.operator.model.refusals import refusals


def variable(**fields):
    return {"pod": {"extraEnv": [fields]}}


EVERYTHING = {
    "resources": {"requests": {"cpu": 1}, "limits": {"memory": "1Gi", "example.com/gpu": 1}},
    "nodeSelector": {"pool": "sockets"},
    "tolerations": [{"key": "sockets", "operator": "Exists", "effect": "NoSchedule"}],
    "labels": {"team": "tables"},
    "annotations": {"example.com/note": "hello"},
    "topologySpreadConstraints": [
        {"topologyKey": "topology.kubernetes.io/zone", "maxSkew": 2, "whenUnsatisfiable": "DoNotSchedule"},
        {"topologyKey": "kubernetes.io/hostname"},
    ],
    "priorityClassName": "system-cluster-critical",
    "imagePullPolicy": "Always",
    "imagePullSecrets": [{"name": "registry"}],
    "extraEnv": [
        {"name": "HTTPS_PROXY", "value": "http://proxy:3128"},
        {"name": "EMPTY", "value": ""},
        {"name": "LICENCE", "valueFrom": {"secretKeyRef": {"name": "licence", "key": "key"}}},
        {"name": "REGION", "valueFrom": {"configMapKeyRef": {"name": "place", "key": "region"}}},
    ],
}


@pytest.fixture
def pods(cluster, secrets):
    """The pods' templates by component."""

    def make(spec):
        objects = children(cluster(spec), secrets=secrets).applied
        return {
            obj["metadata"]["labels"]["app.kubernetes.io/component"]: obj["spec"]["template"]
            for obj in objects
            if obj["kind"] in ("Deployment", "StatefulSet")
        }

    return make


def test_every_field_acts(pods):
    template = pods({"pod": EVERYTHING})["dataplane"]
    spec, (container,) = template["spec"], template["spec"]["containers"]
    spread = {"labelSelector": {"matchLabels": expected.TRACK}}
    assert spec["topologySpreadConstraints"] == [
        {
            "topologyKey": "topology.kubernetes.io/zone",
            "maxSkew": 2,
            "whenUnsatisfiable": "DoNotSchedule",
            **spread,
        },
        {
            "topologyKey": "kubernetes.io/hostname",
            "maxSkew": 1,
            "whenUnsatisfiable": "ScheduleAnyway",
            **spread,
        },
    ]
    assert spec["nodeSelector"] == EVERYTHING["nodeSelector"]
    assert spec["tolerations"] == EVERYTHING["tolerations"]
    assert spec["priorityClassName"] == "system-cluster-critical"
    assert spec["imagePullSecrets"] == [{"name": "registry"}]
    assert container["imagePullPolicy"] == "Always"
    assert container["env"][-4:] == EVERYTHING["extraEnv"]
    assert container["resources"] == {
        "requests": {"cpu": "1"},
        "limits": {"memory": "1Gi", "example.com/gpu": "1"},
    }
    assert template["metadata"]["labels"]["team"] == "tables"
    assert template["metadata"]["annotations"]["example.com/note"] == "hello"


def test_what_is_unset_is_left_to_kubernetes(pods):
    template = pods({})["dataplane"]
    spec, (container,) = template["spec"], template["spec"]["containers"]
    assert not {"priorityClassName", "imagePullSecrets", "nodeSelector", "tolerations"} & set(spec)
    assert "imagePullPolicy" not in container
    assert [variable["name"] for variable in container["env"]] == ["INSTANCE_ID", "POD_IP"]


def test_spreading_can_be_switched_off():
    assert pod_overrides.placement(Pod(topology_spread_constraints=[]), spread={}) == {}


def test_the_managed_redis_is_pulled_with_the_same_login_and_else_left_alone(pods):
    plain, told = pods({})["redis"], pods({"pod": EVERYTHING})["redis"]
    assert told["spec"].pop("imagePullSecrets") == [{"name": "registry"}]
    assert told == plain


REFUSED = {
    "unknown-request": (
        {"pod": {"resources": {"requests": {"cores": 1}}}},
        "must be of cpu, memory, ephemeral-storage, hugepages-<size>, or something",
    ),
    "unknown-limit": ({"pod": {"resources": {"limits": {"gpu": 1}}}}, "such as example.com/gpu"),
    "spread-twice": (
        {
            "pod": {
                "topologySpreadConstraints": [{"topologyKey": "zone"}, {"topologyKey": "zone", "maxSkew": 2}]
            }
        },
        "must have one entry for each topologyKey and whenUnsatisfiable",
    ),
    "no-name": (variable(value="x"), "extraEnv[0].name: Required value"),
    "digit-first": (variable(name="1X", value="x"), "not start with a digit"),
    "dash": (variable(name="A-B", value="x"), "must be letters, digits and underscores"),
    "ours": (variable(name="WS_PORT", value="1"), "is a variable of the data plane itself"),
    "no-value": (variable(name="A"), "must have one of value and valueFrom"),
    "two-values": (
        variable(name="A", value="", valueFrom={"secretKeyRef": {"name": "a", "key": "b"}}),
        "must have one of value and valueFrom",
    ),
    "no-source": (variable(name="A", valueFrom={}), "must name one of secretKeyRef and configMapKeyRef"),
    "two-sources": (
        variable(
            name="A",
            valueFrom={
                "secretKeyRef": {"name": "a", "key": "b"},
                "configMapKeyRef": {"name": "a", "key": "b"},
            },
        ),
        "must name one of secretKeyRef and configMapKeyRef",
    ),
    "secret-name": (
        variable(name="A", valueFrom={"secretKeyRef": {"name": "A_B", "key": "b"}}),
        "must be a name of lower-case",
    ),
    "secret-key": (
        variable(name="A", valueFrom={"secretKeyRef": {"name": "a", "key": "b/c"}}),
        "letters, digits or any of - _ .",
    ),
    "twice": (
        {"pod": {"extraEnv": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]}},
        "Duplicate value",
    ),
    "too-many": (
        {"pod": {"extraEnv": [{"name": f"A{number}", "value": ""} for number in range(33)]}},
        "at most 32 items",
    ),
    "too-long": (variable(name="A", value="x" * 4097), "may not be more than 4096"),
    "no-topology": (
        {"pod": {"topologySpreadConstraints": [{"maxSkew": 1}]}},
        "topologyKey: Required value",
    ),
    "topology": (
        {"pod": {"topologySpreadConstraints": [{"topologyKey": "a b"}]}},
        "must be the key of a label",
    ),
    "skew": (
        {"pod": {"topologySpreadConstraints": [{"topologyKey": "a", "maxSkew": 0}]}},
        "greater than or equal to 1",
    ),
    "priority": ({"pod": {"priorityClassName": "Very High"}}, "must be a name of lower-case"),
    "policy": ({"pod": {"imagePullPolicy": "Sometimes"}}, "supported values"),
    "pull-secret": ({"pod": {"imagePullSecrets": [{"name": "A"}]}}, "must be a name of lower-case"),
    "pull-secret-twice": (
        {"pod": {"imagePullSecrets": [{"name": "a"}, {"name": "a"}]}},
        "Duplicate value",
    ),
}


@pytest.mark.cluster
def test_wrong_values_are_refused_with_what_to_change(shared_kubectl):
    said = refusals(shared_kubectl, {name: spec for name, (spec, _) in REFUSED.items()})
    wrong = {name: said[name] for name, (_, message) in REFUSED.items() if message not in said[name]}
    assert wrong == {}


@pytest.mark.cluster
def test_no_variable_of_the_data_plane_can_be_set_past_its_field(shared_kubectl):
    own = {spec.env for spec, _ in settings.specs().values()} | {"POD_IP", "KUBERNETES_SERVICE_HOST"}
    own |= {f"{env}_FILE" for env in own if not env.endswith("_FILE")}
    # By dozens: a list of variables has 32 at most, and each that is refused is told.
    names = sorted(own)
    batches = {
        f"batch-{start}": {
            "pod": {"extraEnv": [{"name": name, "value": "x"} for name in names[start : start + 30]]}
        }
        for start in range(0, len(names), 30)
    }
    said = "".join(refusals(shared_kubectl, batches).values())
    free = {"HEARTBEAT_INTERVAL_FILE", "CLEANUP_INTERVAL_FILE", "INACTIVE_THRESHOLD_FILE"}
    free |= {"INSTANCE_ID_FILE", "POD_IP_FILE"}
    assert said.count("use the field of spec that stands for it") == len(own - free)
    taken = [*free, "TABLE", "WSX", "MY_REDIS_HOST", "https_proxy"]
    spec = {"pod": {"extraEnv": [{"name": name, "value": "x"} for name in taken]}}
    assert refusals(shared_kubectl, {"free": spec}) == {"free": ""}


@pytest.mark.cluster
def test_everything_at_once_is_taken(shared_kubectl):
    assert refusals(shared_kubectl, {"everything": {"pod": EVERYTHING}}) == {"everything": ""}
