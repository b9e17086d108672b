"""A cluster for the agent's tests: ordinary images, a short back-off, a namespace for each test."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from devcluster import Devcluster
from devcluster.pytest_plugin import running
from tests.support.kubectl import Kubectl

IMAGES: dict[str, Any] = {
    "busybox": {"command": ["sh"]},
    "python": {"path": [str(Path(sys.executable).parent)], "command": ["python", "-u"]},
}
BACKOFF_SECONDS = 2


@pytest.fixture(scope="package")
def cluster() -> Iterator[Devcluster]:
    """A cluster with a node that the tests of this folder share; it goes with the last of them."""
    yield from running(Devcluster(images=IMAGES, agent_arguments=[f"--backoff-initial={BACKOFF_SECONDS}"]))


@pytest.fixture
def kubectl(cluster: Devcluster) -> Iterator[Kubectl]:
    """kubectl in a namespace of the test's own."""
    namespace = f"node-{uuid4().hex[:8]}"
    admin = Kubectl(cluster.kubeconfig)
    admin("create", "namespace", namespace)
    yield Kubectl(cluster.kubeconfig, namespace=namespace)
    admin("delete", "namespace", namespace, "--wait=false", "--ignore-not-found")
