"""A devcluster with the operator on it, installed from the manifests, and a namespace for each test."""

import asyncio
import uuid
from collections.abc import AsyncIterator

import pytest

from demo import stage
from demo.kubectl import Kubectl
from devcluster import Devcluster


@pytest.fixture(scope="session")
def kubectl(devcluster: Devcluster) -> Kubectl:
    """kubectl as the cluster's admin; the operator runs from here on."""
    kubectl = Kubectl(devcluster.kubeconfig)
    asyncio.run(stage.install_operator(kubectl))
    return kubectl


@pytest.fixture
async def namespace(kubectl: Kubectl) -> AsyncIterator[str]:
    """An empty namespace, gone afterwards."""
    name = f"e2e-{uuid.uuid4().hex[:8]}"
    await kubectl("create", "namespace", name)
    yield name
    await kubectl("delete", "namespace", name, "--ignore-not-found", "--timeout=90s")
