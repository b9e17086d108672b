"""What Argo CD is told, in a Lua as closed as its own, and what Flux is: conditions by kstatus's rules."""

import pytest
import yaml
from lupa.lua51 import LuaError

from tests.operator.model.conftest import ROOT
from tests.support.argo_cd import Health, health
from tests.support.kstatus import Computed, compute

ARGO_CD = ROOT / "manifests" / "gitops" / "argocd"
CHECK = (ARGO_CD / "health.lua").read_text()
KEY = "resource.customizations.health.tableforge.io_WebSocketCluster"
CLUSTER = """
apiVersion: tableforge.io/v1alpha1
kind: WebSocketCluster
metadata: {name: tables}
spec: {auth: {required: false}}
"""


def cluster(*conditions, observed=2, paused=None, generation=2):
    """One whose conditions are given as (type, status, message)."""
    annotations = {} if paused is None else {"tableforge.io/paused": paused}
    return {
        "kind": "WebSocketCluster",
        "metadata": {"name": "tables", "generation": generation, "annotations": annotations},
        "status": {
            "observedGeneration": observed,
            "conditions": [
                {"type": kind, "status": status, "message": message} for kind, status, message in conditions
            ],
        },
    }


REDIS = ("RedisReady", "True", "Redis is connected.")
READY = ("Ready", "True", "3 of 3 instances are ready.")
NOT_READY = ("Ready", "False", "1 of 3 instances are ready.")
RECONCILING = ("Reconciling", "True", "1 of 3 instances are ready.")
STALLED = ("Stalled", "True", "Create the Secret.")
UNSEEN = Health("Progressing", "The operator has yet to look at this change.")
HELD = "The annotation tableforge.io/paused holds the operator off."


@pytest.mark.parametrize(
    ("obj", "argo_cd", "flux"),
    [
        (cluster(REDIS, READY), Health("Healthy", READY[2]), "Current"),
        (cluster(READY, REDIS, paused="false"), Health("Healthy", READY[2]), "Current"),
        (cluster(NOT_READY, REDIS, RECONCILING), Health("Progressing", RECONCILING[2]), "InProgress"),
        (cluster(NOT_READY, REDIS), Health("Progressing", NOT_READY[2]), "InProgress"),
        (cluster(NOT_READY, STALLED), Health("Degraded", STALLED[2]), "Failed"),
        # of an older spec: neither good nor bad news counts
        (cluster(READY, REDIS, observed=1), UNSEEN, "InProgress"),
        (cluster(STALLED, observed=1), UNSEEN, "InProgress"),
        # kstatus knows no pause
        (
            cluster(READY, paused="true"),
            Health("Suspended", f"{HELD} When it last looked: {READY[2]}"),
            "Current",
        ),
        (cluster(STALLED, paused="true", observed=1), Health("Suspended", HELD), "InProgress"),
    ],
)
def test_each_state_has_its_health(obj, argo_cd, flux):
    assert health(CHECK, obj) == argo_cd
    assert compute(obj).status == flux


@pytest.mark.parametrize("obj", [cluster(REDIS), {"metadata": {"name": "tables", "generation": 1}}])
def test_what_says_nothing_of_being_ready_is_progressing(obj):
    assert health(CHECK, obj).status == "Progressing"


@pytest.mark.parametrize(
    "script", ['return {status = ("x"):upper()}', "return {status = string.upper('x')}", "return os.time()"]
)
def test_the_tests_lua_has_no_library_that_argo_cd_closes(script):
    with pytest.raises(LuaError, match=r"nil value|index a string"):
        health(script, {})


@pytest.mark.cluster
def test_a_cluster_that_no_operator_has_seen_is_progressing(kubectl):
    kubectl.ok("apply", "-f", "-", stdin=CLUSTER)
    (obj,) = kubectl.objects("get", "wsc/tables")
    assert health(CHECK, obj) == UNSEEN
    unseen = "WebSocketCluster generation is 1, but latest observed generation is -1"
    assert compute(obj) == Computed("InProgress", unseen)


@pytest.mark.cluster
def test_it_is_added_to_the_argo_cd_that_is_there(kubectl):
    built = yaml.safe_load(kubectl.ok("kustomize", str(ARGO_CD)))
    assert (built["metadata"]["name"], built["metadata"]["namespace"]) == ("argocd-cm", "argocd")
    kubectl.ok("create", "configmap", "argocd-cm", "--from-literal=url=https://argo.example.com")
    built["metadata"]["namespace"] = kubectl.namespace  # the test's own instead of argocd
    apply = ("apply", "--server-side", "--field-manager=tableforge", "--validate=strict", "-f", "-")
    kubectl.ok(*apply, stdin=built)
    (config,) = kubectl.objects("get", "configmap/argocd-cm")
    assert config["data"] == {KEY: CHECK, "url": "https://argo.example.com"}
