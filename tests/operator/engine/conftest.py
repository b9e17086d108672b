"""A real API server with CRD and RBAC as they are shipped, and operators that run under them."""

import itertools
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path

import pytest

from devcluster.cluster import Devcluster
from tableforge_operator.kube import Kube
from tests.operator.engine.operators import (
    AuditLog,
    Operators,
    PatientKube,
    install,
    kubectl,
    service_account_kubeconfig,
)
from tests.support.patience import be_patient

_NAMES = itertools.count(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    be_patient(items, Path(__file__).parent)


@pytest.fixture(scope="session")
def installed(control_plane: Devcluster) -> Devcluster:
    """The control plane with everything in manifests/ applied."""
    install(control_plane.kubeconfig)
    return control_plane


@pytest.fixture(scope="session")
def operator_kubeconfig(installed: Devcluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The credentials of the operator's ServiceAccount."""
    return service_account_kubeconfig(installed, tmp_path_factory.mktemp("operator") / "kubeconfig")


@pytest.fixture
async def kube(installed: Devcluster) -> AsyncIterator[Kube]:
    """The API server as its administrator sees it."""
    async with await PatientKube.connect(installed.kubeconfig) as kube:
        yield kube


@pytest.fixture
def namespace(installed: Devcluster) -> Iterator[str]:
    """A namespace of the test's own."""
    name = f"engine-{next(_NAMES)}"
    kubectl(installed.kubeconfig, "create", "namespace", name)
    yield name
    kubectl(installed.kubeconfig, "delete", "namespace", name, "--wait=false")


@pytest.fixture
async def operators(operator_kubeconfig: Path, tmp_path: Path, namespace: str) -> AsyncIterator[Operators]:
    """Starts operators: `operator = await operators()`."""
    operators = Operators(operator_kubeconfig, tmp_path, namespace)
    yield operators
    await operators.stop()


@pytest.fixture
def audit(installed: Devcluster, namespace: str) -> AuditLog:
    """What the operator asked to write."""
    return AuditLog(installed.audit_log, namespace)


@pytest.fixture
def address(installed: Devcluster) -> str:
    """A loopback address where pods of the test can be pretended to listen."""
    return f"127.{installed.network.number}.64.{next(_NAMES) % 250 + 1}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test shows what its operators logged."""
    report = yield
    if report.when == "call" and report.failed:
        for value in getattr(item, "funcargs", {}).values():
            if isinstance(value, Operators):
                report.sections.append(("operators", value.output()))
    return report
