"""What the tests of devcluster share: a namespace for each test, a register of clusters of its own."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from devcluster import Devcluster
from tests.support.kubectl import Kubectl
from tests.support.patience import be_patient


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    be_patient(items, Path(__file__).parent)


@pytest.fixture
def kubectl(control_plane: Devcluster) -> Iterator[Kubectl]:
    """kubectl in a namespace of its own, which goes with the test; nobody waits for its end."""
    namespace = f"test-{uuid4().hex[:8]}"
    admin = Kubectl(control_plane.kubeconfig)
    admin("create", "namespace", namespace)
    yield Kubectl(control_plane.kubeconfig, namespace=namespace)
    admin("delete", "namespace", namespace, "--wait=false", "--ignore-not-found")


@pytest.fixture
def own_register(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder for this test's clusters alone: nobody else clears what it leaves behind."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder
