"""A devcluster with the operator on it, installed from the manifests, and a namespace for each test."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import pytest

from demo import stage
from demo.kubectl import Kubectl
from devcluster import Devcluster
from devcluster.pytest_plugin import running


@pytest.fixture(scope="package")
def devcluster(devcluster_images: Mapping[str, Any]) -> Iterator[Devcluster]:
    """A cluster for this folder only: idle it would slow the others down."""
    yield from running(Devcluster(images=devcluster_images))


@pytest.fixture(scope="package")
def kubectl(devcluster: Devcluster) -> Kubectl:
    """kubectl as the cluster's admin; the operator runs from here on."""
    kubectl = Kubectl(devcluster.kubeconfig)
    asyncio.run(stage.install_operator(kubectl))
    return kubectl


@pytest.fixture
async def namespace(kubectl: Kubectl) -> AsyncIterator[str]:
    """An empty namespace. Nobody waits for its end: instances take their time to leave."""
    name = f"e2e-{uuid.uuid4().hex[:8]}"
    await kubectl("create", "namespace", name)
    yield name
    await kubectl("delete", "namespace", name, "--ignore-not-found", "--wait=false")
