"""A cluster for the agent's tests: ordinary images, a short back-off, a namespace for each test."""

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from devcluster import Devcluster
from tests.support.kubectl import Kubectl

IMAGES: dict[str, Any] = {
    "busybox": {"command": ["sh"]},
    "python": {"path": [str(Path(sys.executable).parent)], "command": ["python", "-u"]},
}
BACKOFF_SECONDS = 2


def running(**options: Any) -> Iterator[Devcluster]:
    """A cluster for as long as the generator lives."""
    with asyncio.Runner() as runner:
        cluster = Devcluster(
            images=IMAGES, agent_arguments=[f"--backoff-initial={BACKOFF_SECONDS}"], **options
        )
        runner.run(cluster.start())
        try:
            yield cluster
        finally:
            runner.run(cluster.stop())


@pytest.fixture(scope="session")
def cluster() -> Iterator[Devcluster]:
    """A cluster with a node that the tests of this folder share."""
    yield from running()


@pytest.fixture
def kubectl(cluster: Devcluster) -> Iterator[Kubectl]:
    """kubectl in a namespace of the test's own."""
    namespace = f"node-{uuid4().hex[:8]}"
    admin = Kubectl(cluster.kubeconfig)
    admin("create", "namespace", namespace)
    yield Kubectl(cluster.kubeconfig, namespace=namespace)
    admin("delete", "namespace", namespace, "--wait=false", "--ignore-not-found")
