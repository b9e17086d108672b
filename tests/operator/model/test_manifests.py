"""The manifests: installed by one command, least privilege, samples that are taken, versions in step."""

import itertools
import re
import time
from importlib.metadata import version
from typing import Any

import pytest
import yaml

from devcluster import Devcluster
from tableforge_operator import api
from tableforge_operator.decide.resources import OPTIONAL_KINDS, OWNED_KINDS, WITHDRAWN_KINDS
from tableforge_operator.decide.resources.kinds import SECRET, VOLUME_CLAIM, Kind
from tests.operator.model.conftest import ROOT, Kubectl

BASE = ROOT / "manifests" / "base"
SAMPLES = sorted((ROOT / "manifests" / "samples").glob("*.yaml"))
OPERATOR = "system:serviceaccount:tableforge-system:tableforge-operator"
MADE = (*OWNED_KINDS, SECRET, VOLUME_CLAIM)
"""The kinds of what comes of a WebSocketCluster."""


def load(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((BASE / name).read_text()))


def allowed(rules: list[dict[str, Any]]) -> set[tuple[str, str, str]]:
    return {
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_the_operator_may_do_this_and_nothing_else_everywhere():
    (role,) = load("cluster-role.yaml")
    owned = {
        (kind.group, kind.plural, verb)
        for kind in OWNED_KINDS
        for verb in ("create", "get", "list", "patch", "watch")
    }
    withdrawn = {(kind.group, kind.plural, "delete") for kind in OWNED_KINDS if kind.kind in WITHDRAWN_KINDS}
    assert {kind.kind for kind in OWNED_KINDS} >= WITHDRAWN_KINDS
    assert allowed(role["rules"]) == owned | withdrawn | {
        ("apps", "deployments", "delete"),
        ("apps", "replicasets", "list"),
        ("apps", "replicasets", "watch"),
        ("", "configmaps", "delete"),
        ("", "events", "create"),
        ("", "events", "list"),
        ("", "persistentvolumeclaims", "get"),
        ("", "persistentvolumeclaims", "list"),
        ("", "persistentvolumeclaims", "patch"),
        ("", "persistentvolumeclaims", "watch"),
        ("", "pods", "list"),
        ("", "pods", "patch"),
        ("", "pods", "watch"),
        ("", "secrets", "create"),
        ("tableforge.io", "websocketclusters", "get"),
        ("tableforge.io", "websocketclusters", "list"),
        ("tableforge.io", "websocketclusters", "watch"),
        ("tableforge.io", "websocketclusters/status", "patch"),
    }


def test_rules_are_in_alphabetical_order():
    for name in ("cluster-role.yaml", "role.yaml"):
        (role,) = load(name)
        rules = [(rule["apiGroups"], rule["resources"], rule["verbs"]) for rule in role["rules"]]
        assert [rule[:2] for rule in rules] == sorted(rule[:2] for rule in rules)
        for groups, resources, verbs in rules:
            assert (groups, resources, verbs) == (sorted(groups), sorted(resources), sorted(verbs))


def test_no_rule_has_a_wildcard():
    text = "".join(path.read_text() for path in BASE.glob("*role*.yaml"))
    assert "*" not in re.sub(r"#.*", "", text)


def test_the_page_names_all_that_creating_a_cluster_amounts_to():
    _, _, below = (
        (ROOT / "docs" / "operator.md").read_text().partition("\n| objects | what is up to the spec |\n")
    )
    rows = below.partition("\n\n")[0].splitlines()[1:]
    told = {word for row in rows for word in re.findall(r"\w+", row.split("|")[1])}
    kinds = {kind.kind for kind in MADE}
    assert {kind for kind in kinds if not told & {kind, f"{kind}s", f"{kind}es", f"{kind[:-1]}ies"}} == set()


def test_the_operators_image_is_of_this_version():
    (deployment,) = load("deployment.yaml")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["image"] == f"tableforge/operator:{version('tableforge')}"


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_samples_are_clusters(sample):
    for obj in yaml.safe_load_all(sample.read_text()):
        cluster = api.load({**obj, "metadata": {**obj["metadata"], "namespace": "default", "uid": "u"}})
        assert cluster.name == sample.stem


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_a_sample_tells_how_to_apply_it_and_what_it_needs_first(sample):
    text = sample.read_text()
    head = "\n".join(itertools.takewhile(lambda line: line.startswith("#"), text.splitlines()))
    assert f"kubectl apply -f manifests/samples/{sample.name}" in head
    obj = yaml.safe_load(text)
    cluster = api.load({**obj, "metadata": {**obj["metadata"], "namespace": "default", "uid": "u"}})
    for ref in cluster.references:
        assert re.search(rf"kubectl create {ref.kind.lower()} \w+ {ref.name} .*{ref.key}", head), ref


@pytest.mark.cluster
@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_samples_are_taken_by_the_api_server(kubectl, sample):
    kubectl.ok("apply", "--validate=strict", "-f", str(sample))
    assert "unchanged" in kubectl.ok("apply", "-f", str(sample))


@pytest.fixture
def installed(crd_installed: Devcluster) -> Kubectl:
    """What `kubectl apply -k manifests/` makes of a cluster; it stays for the session."""
    kubectl = Kubectl(crd_installed.kubeconfig, "tableforge-system")
    kubectl.ok("apply", "-k", "manifests/", namespaced=False)
    return kubectl


@pytest.mark.cluster
def test_one_command_installs_everything_and_again_changes_nothing(installed):
    again = installed.ok("apply", "-k", "manifests/", namespaced=False).splitlines()
    assert [line for line in again if not line.endswith("unchanged")] == []
    assert len(again) == 12
    installed.ok("get", "deployment/tableforge-operator", "serviceaccount/tableforge-operator")


@pytest.mark.cluster
def test_the_operators_pod_is_restricted_and_may_be_created(installed):
    (deployment,) = installed.objects("get", "deployment/tableforge-operator")
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "tried", "labels": deployment["spec"]["template"]["metadata"]["labels"]},
        "spec": deployment["spec"]["template"]["spec"],
    }
    (namespace,) = installed.objects("get", "namespace/tableforge-system")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    installed.ok("create", "--dry-run=server", "-f", "-", stdin=pod)


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("question", "answer"),
    [
        (("create", "secrets", "-n", "default"), "yes"),
        (("get", "secrets", "-n", "default"), "no"),
        (("list", "secrets", "-A"), "no"),
        (("get", "secrets/tableforge-operator-master-key", "-n", "tableforge-system"), "yes"),
        (("get", "secrets/other", "-n", "tableforge-system"), "no"),
        (("patch", "deployments.apps", "-n", "default"), "yes"),
        (("delete", "statefulsets.apps", "-n", "default"), "no"),
        (("patch", "websocketclusters.tableforge.io", "-n", "default"), "no"),
        (("patch", "websocketclusters.tableforge.io", "--subresource=status", "-n", "default"), "yes"),
        (("create", "pods", "-n", "default"), "no"),
        (("get", "pods", "--subresource=exec", "-n", "default"), "no"),
        (("update", "leases.coordination.k8s.io/tableforge-operator", "-n", "tableforge-system"), "yes"),
        (("update", "leases.coordination.k8s.io/other", "-n", "tableforge-system"), "no"),
        (("create", "leases.coordination.k8s.io", "-n", "default"), "no"),
        (("create", "clusterrolebindings.rbac.authorization.k8s.io"), "no"),
        (("get", "ingressclasses.networking.k8s.io"), "yes"),
        (("list", "ingressclasses.networking.k8s.io"), "no"),
        (("get", "storageclasses.storage.k8s.io"), "yes"),
        (("list", "storageclasses.storage.k8s.io"), "no"),
        (("delete", "networkpolicies.networking.k8s.io", "-n", "default"), "yes"),
    ],
)
def test_what_the_operator_may_do(installed, question, answer):
    said = installed("auth", "can-i", *question, f"--as={OPERATOR}", namespaced=False)
    assert said.out.strip() == answer


@pytest.mark.cluster
def test_whoever_edits_a_namespace_edits_its_clusters(installed):
    installed.ok("create", "rolebinding", "eve", "--clusterrole=edit", "--user=eve")
    try:
        for verb in ("create", "delete", "get"):
            question = ("auth", "can-i", verb, "websocketclusters.tableforge.io", "--as=eve")
            # The controller manager adds our rules to `edit`, shortly after they appear.
            deadline = time.monotonic() + 120
            while installed(*question).out.strip() != "yes":
                assert time.monotonic() < deadline, f"eve may not {verb}"
        assert installed("auth", "can-i", "get", "secrets", "--as=mallory").out.strip() == "no"
    finally:
        installed.ok("delete", "rolebinding", "eve")


@pytest.mark.cluster
def test_whoever_edits_a_namespace_may_make_all_that_comes_of_a_cluster_but_for_others_kinds(installed):
    installed.ok("create", "rolebinding", "eve-too", "--clusterrole=edit", "--user=eve-too")
    try:
        deadline, missing = time.monotonic() + 120, {kind.kind for kind in MADE}
        while missing != OPTIONAL_KINDS:
            assert time.monotonic() < deadline, missing
            missing = {kind.kind for kind in MADE if not may_create(installed, kind, "eve-too")}
    finally:
        installed.ok("delete", "rolebinding", "eve-too")


def may_create(kubectl: Kubectl, kind: Kind, user: str) -> bool:
    """Whether the user may create objects of a kind, which need not be installed."""
    resource = f"{kind.plural}.{kind.group}".rstrip(".")
    return kubectl("auth", "can-i", "create", resource, f"--as={user}").out.strip() == "yes"
