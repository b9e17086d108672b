"""The API behaves as a real one, because it is one: what an operator relies on."""

import ipaddress
import json
from pathlib import Path

import pytest

from devcluster import Devcluster
from tests.devcluster.agent.workloads import eventually
from tests.support.kubectl import Kubectl, KubectlError

pytestmark = pytest.mark.cluster

WIDGETS = """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.test.devcluster}
spec:
  group: test.devcluster
  scope: Namespaced
  names: {plural: widgets, singular: widget, kind: Widget}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            properties:
              least: {type: integer, default: 1}
              most: {type: integer}
            x-kubernetes-validations:
            - rule: "!has(self.most) || self.least <= self.most"
              message: "least must not exceed most: lower least or raise most"
"""


def widget(**spec: int) -> dict[str, object]:
    return {
        "apiVersion": "test.devcluster/v1",
        "kind": "Widget",
        "metadata": {"name": "one"},
        "spec": spec,
    }


def config_map(name: str, **metadata: object) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, **metadata},
        "data": {"key": "value"},
    }


@pytest.fixture
def widgets(kubectl: Kubectl) -> Kubectl:
    kubectl.apply(WIDGETS)
    # kubectl calls it an error to wait for a condition where there are none at all yet
    for awaited in ("jsonpath={.status.acceptedNames.plural}=widgets", "condition=Established"):
        kubectl("wait", f"--for={awaited}", "crd/widgets.test.devcluster", "--timeout=120s")
    return kubectl


def test_the_api_server_tells_its_version(control_plane: Devcluster) -> None:
    answer = json.loads(Kubectl(control_plane.kubeconfig)("version", "--output=json"))
    assert answer["serverVersion"]["gitVersion"] == "v1.37.2"
    assert answer["serverVersion"]["minor"] == "37"


def test_the_kubeconfig_has_one_context_and_is_private(control_plane: Devcluster) -> None:
    contexts = Kubectl(control_plane.kubeconfig)("config", "get-contexts", "--output=name").split()
    assert contexts == ["devcluster"]
    assert control_plane.kubeconfig.stat().st_mode & 0o077 == 0


def test_a_rule_of_a_crd_refuses_with_its_message(widgets: Kubectl) -> None:
    with pytest.raises(KubectlError, match="lower least or raise most"):
        widgets.apply(widget(least=3, most=2))


def test_server_side_apply_shares_an_object_between_managers(widgets: Kubectl) -> None:
    widgets.apply(widget(most=5), "--server-side", "--field-manager=first")
    widgets.apply(widget(least=2), "--server-side", "--field-manager=second")
    assert widgets.get("widget/one")["spec"] == {"least": 2, "most": 5}

    with pytest.raises(KubectlError, match='conflict with "first"'):
        widgets.apply(widget(most=7), "--server-side", "--field-manager=second")

    # Who no longer applies a field takes it away.
    widgets.apply(widget(), "--server-side", "--field-manager=first")
    assert widgets.get("widget/one")["spec"] == {"least": 2}


def test_children_go_with_their_owner(kubectl: Kubectl) -> None:
    kubectl.apply(config_map("owner"))
    uid = kubectl.get("configmap/owner")["metadata"]["uid"]
    owner = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": uid, "controller": True}
    kubectl.apply(config_map("child", ownerReferences=[owner]))

    kubectl("delete", "configmap/owner")
    kubectl("wait", "--for=delete", "configmap/child", "--timeout=120s")


def test_a_deployment_makes_pods_with_a_service_account(kubectl: Kubectl) -> None:
    kubectl("create", "deployment", "web", "--image=web", "--replicas=2")
    kubectl("wait", "--for=create", "pod", "--selector=app=web", "--timeout=120s")
    kubectl("wait", "--for=jsonpath={.status.replicas}=2", "deployment/web", "--timeout=120s")
    pods = kubectl.get("pods", "--selector=app=web")["items"]
    assert [pod["spec"]["serviceAccountName"] for pod in pods] == ["default", "default"]


def test_a_deleted_namespace_takes_everything_with_it(control_plane: Devcluster, kubectl: Kubectl) -> None:
    kubectl("create", "deployment", "web", "--image=web")
    kubectl.apply(config_map("settings"))
    assert kubectl.namespace
    admin = Kubectl(control_plane.kubeconfig)
    admin("delete", "namespace", kubectl.namespace, "--timeout=120s")
    assert admin("get", "namespace", kubectl.namespace, "--ignore-not-found") == ""
    everywhere = admin.get("configmaps,deployments,replicasets,pods", "--all-namespaces")["items"]
    assert kubectl.namespace not in {item["metadata"]["namespace"] for item in everywhere}


def test_services_get_addresses_of_this_cluster(control_plane: Devcluster, kubectl: Kubectl) -> None:
    kubectl("create", "service", "clusterip", "web", "--tcp=80:8080")
    address = ipaddress.ip_address(kubectl.get("service/web")["spec"]["clusterIP"])
    assert address in ipaddress.ip_network(control_plane.network.service_cidr)
    assert control_plane.api_url.startswith(f"https://{control_plane.network.api_address}:")


def test_a_claim_gets_a_folder_and_the_folder_goes_with_it(kubectl: Kubectl) -> None:
    kubectl.apply("""
        apiVersion: v1
        kind: PersistentVolumeClaim
        metadata: {name: data}
        spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
        """)
    kubectl("wait", "--for=jsonpath={.status.phase}=Bound", "pvc/data", "--timeout=120s")
    volume = kubectl.get("pv", kubectl.get("pvc/data")["spec"]["volumeName"])
    folder = Path(volume["spec"]["hostPath"]["path"])
    (folder / "file").write_text("content")

    kubectl("delete", "pvc/data")
    kubectl("wait", "--for=delete", f"pv/{volume['metadata']['name']}", "--timeout=120s")
    assert not folder.exists()


def test_a_service_account_may_do_what_its_role_says_and_nothing_more(
    control_plane: Devcluster, kubectl: Kubectl
) -> None:
    kubectl("create", "serviceaccount", "reader")
    kubectl("create", "role", "reader", "--verb=get,list", "--resource=configmaps")
    kubectl(
        "create", "rolebinding", "reader", "--role=reader", f"--serviceaccount={kubectl.namespace}:reader"
    )
    token = kubectl("create", "token", "reader").strip()

    def as_reader(*arguments: str) -> str:
        # Without the admin's client certificate, which would win.
        return kubectl(
            "--kubeconfig=/dev/null",
            f"--server={control_plane.api_url}",
            "--insecure-skip-tls-verify",
            f"--token={token}",
            *arguments,
        )

    # Its controller makes the ConfigMap, and the API server goes by the binding, when they come to it.
    eventually(lambda: "kube-root-ca.crt" in as_reader("get", "configmaps"))
    with pytest.raises(KubectlError, match="secrets is forbidden"):
        as_reader("get", "secrets")


def test_the_audit_log_tells_who_wrote_what(control_plane: Devcluster, kubectl: Kubectl) -> None:
    kubectl.apply(config_map("audited"))

    def writes() -> list[tuple[str, str]]:
        whole, _, _ = control_plane.audit_log.read_text().rpartition("\n")  # it is being written
        return [
            (entry["user"]["username"], entry["verb"])
            for entry in map(json.loads, whole.splitlines())
            if entry.get("objectRef", {}).get("name") == "audited"
            and entry["objectRef"].get("namespace") == kubectl.namespace
            and entry["verb"] not in {"get", "list", "watch"}
        ]

    # An answer may be there before the record of it.
    assert eventually(writes) == [("devcluster-admin", "create")]
