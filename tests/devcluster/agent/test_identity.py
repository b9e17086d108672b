"""A pod and the API server: tokens, the address in the environment, the certificate."""

import json

import pytest

from tests.devcluster.agent.workloads import eventually, pod, shell
from tests.support.kubectl import Kubectl

pytestmark = pytest.mark.cluster

ASK = """
import json, os, ssl, sys, time, urllib.request, urllib.error
folder = "/var/run/secrets/kubernetes.io/serviceaccount/"
read = lambda name: open(folder + name).read()
context = ssl.create_default_context(cafile=folder + "ca.crt")
hosts = [os.environ["KUBERNETES_SERVICE_HOST"], "kubernetes.default.svc", "kubernetes.default"]
def ask(host, path):
    url = "https://" + host + ":" + os.environ["KUBERNETES_SERVICE_PORT"] + path
    request = urllib.request.Request(url, headers={"Authorization": "Bearer " + read("token")})
    try:
        return json.load(urllib.request.urlopen(request, context=context, timeout=10))
    except urllib.error.HTTPError as error:
        return json.load(error)
for host in hosts:
    answer = ask(host, "/api/v1/namespaces/" + read("namespace") + "/configmaps")
    print(answer["kind"], answer.get("message", ""))
"""


def test_a_pod_speaks_to_the_api_server_as_its_service_account(kubectl: Kubectl) -> None:
    container = {"name": "main", "image": "python:3", "args": ["-c", ASK]}
    kubectl("create", "serviceaccount", "asker")
    spec = {"serviceAccountName": "asker", "restartPolicy": "Never"}
    kubectl.apply(pod("refused", container, **spec))
    kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/refused", "--timeout=120s")
    user = f"system:serviceaccount:{kubectl.namespace}:asker"
    refused = kubectl("logs", "refused").splitlines()
    assert len(refused) == 3
    assert all(f'User "{user}" cannot list resource "configmaps"' in line for line in refused)

    kubectl(
        "create", "rolebinding", "asker", "--clusterrole=view", f"--serviceaccount={kubectl.namespace}:asker"
    )
    kubectl.apply(pod("granted", container, **spec))
    kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/granted", "--timeout=120s")
    assert [line.strip() for line in kubectl("logs", "granted").splitlines()] == ["ConfigMapList"] * 3


def test_a_token_is_bound_to_its_pod(kubectl: Kubectl) -> None:
    script = "cat /var/run/secrets/kubernetes.io/serviceaccount/token; echo; exec sleep 1000"
    kubectl.apply(pod("holder", shell(script)))
    token = eventually(lambda: kubectl("logs", "holder").strip())

    def review() -> bool:
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token},
        }
        answer = json.loads(kubectl("create", "--filename=-", "--output=json", stdin=json.dumps(body)))
        return bool(answer["status"].get("authenticated"))

    assert review()
    kubectl("delete", "pod", "holder", "--timeout=120s")
    eventually(lambda: not review())
