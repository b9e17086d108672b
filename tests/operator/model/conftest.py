"""Clusters to build from, and the real kubectl on a real API server."""

import dataclasses
import json
import os
import subprocess
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from devcluster import Devcluster
from tableforge_operator import api
from tableforge_operator.decide.resources import DerivedSecrets
from tests.support.patience import be_patient

ROOT = Path(__file__).parents[3]
KUBECTL = ROOT / ".venv" / "bin" / "kubectl"
UID = "0d1e2f30-4152-6374-8596-a7b8c9dae0f1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    be_patient(items, Path(__file__).parent)


@pytest.fixture
def cluster() -> Callable[..., api.WebSocketCluster]:
    """Makes a WebSocketCluster `tables` in `games` out of a spec as it stands in YAML."""

    def make(spec: Mapping[str, Any] | None = None, **metadata: Any) -> api.WebSocketCluster:
        given = {"name": "tables", "namespace": "games", "uid": UID, "generation": 1, **metadata}
        return api.load({"metadata": given, "spec": {"auth": {"required": False}, **(spec or {})}})

    return make


@pytest.fixture
def secrets() -> DerivedSecrets:
    return DerivedSecrets(fleet_key="f1" * 32, redis_password=lambda generation: f"9{generation:x}" * 32)


@dataclasses.dataclass(frozen=True)
class Answer:
    """What kubectl said."""

    code: int
    out: str
    err: str


class Kubectl:
    """The real kubectl, as admin, in a namespace of the test's own."""

    def __init__(self, kubeconfig: Path, namespace: str) -> None:
        # Its discovery cache goes where the cluster's own files go, and with them.
        cache = str(kubeconfig.parent / "kubectl-cache")
        self._environ = {**os.environ, "KUBECONFIG": str(kubeconfig), "KUBECACHEDIR": cache}
        self.namespace = namespace

    def __call__(self, *words: str, stdin: Any = None, namespaced: bool = True) -> Answer:
        """`stdin` is text, an object or a list of objects."""
        if stdin is not None and not isinstance(stdin, str):
            objects = stdin if isinstance(stdin, list) else [stdin]
            stdin = "---\n".join(json.dumps(obj) + "\n" for obj in objects)
        place = ["--namespace", self.namespace] if namespaced else []
        done = subprocess.run(
            [KUBECTL, *place, *words],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=300,
            env=self._environ,
            cwd=ROOT,
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    def ok(self, *words: str, stdin: Any = None, namespaced: bool = True) -> str:
        """What it printed. Fails the test where it failed."""
        answer = self(*words, stdin=stdin, namespaced=namespaced)
        assert answer.code == 0, f"kubectl {' '.join(words)}: {answer.err}"
        return answer.out

    def objects(self, *words: str, stdin: Any = None) -> list[dict[str, Any]]:
        """The objects it printed, with `-o yaml`."""
        found = list(yaml.safe_load_all(self.ok(*words, "-o", "yaml", stdin=stdin)))
        return [item for one in found for item in (one["items"] if one["kind"].endswith("List") else [one])]


@pytest.fixture(scope="session")
def crd_installed(control_plane: Devcluster) -> Devcluster:
    """The control plane, with our CRD established."""
    kubectl = Kubectl(control_plane.kubeconfig, "default")
    kubectl.ok("apply", "-f", "crds/websocketclusters.tableforge.io.yaml")
    # First for the names: kubectl takes conditions that are not there yet for an error.
    for until in ("jsonpath={.status.acceptedNames.plural}=websocketclusters", "condition=Established"):
        kubectl.ok("wait", f"--for={until}", "crd/websocketclusters.tableforge.io", "--timeout=60s")
    return control_plane


@pytest.fixture(scope="session")
def shared_kubectl(crd_installed: Devcluster) -> Kubectl:
    """kubectl in the namespace `default`, for what leaves nothing behind."""
    return Kubectl(crd_installed.kubeconfig, "default")


@pytest.fixture
def kubectl(crd_installed: Devcluster) -> Iterator[Kubectl]:
    """kubectl in a new namespace, on a control plane that knows the CRD."""
    found = Kubectl(crd_installed.kubeconfig, f"model-{uuid.uuid4().hex[:8]}")
    found.ok("create", "namespace", found.namespace, namespaced=False)
    yield found
    found.ok("delete", "namespace", found.namespace, "--wait=false", namespaced=False)
