"""An operator for several namespaces, installed by the page's commands: one that is lost costs only itself.

The proxy only ends watches, as the API server does every few minutes; all refusals are the API server's own.
"""

import dataclasses
import json
import re
import shutil
import subprocess
import textwrap
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from devcluster.cluster import Devcluster
from tableforge_operator.kube import CLUSTERS, Kube
from tests.operator.engine.clusters import children, external
from tests.operator.engine.faults import ApiProxy
from tests.operator.engine.operators import (
    REPOSITORY,
    Operator,
    Operators,
    kubectl,
    service_account_kubeconfig,
    until,
)
from tests.operator.engine.test_api_faults import made, scaled
from tests.operator.engine.test_rights import moved

pytestmark = pytest.mark.cluster

APPLY = "kubectl apply -k .\n"
NAMED = ("tables", "lobby", "arena")
"""Those of the overlay and of the page's commands."""


def built(folder: Path) -> list[dict[str, Any]]:
    """What the page's commands for several namespaces apply, carried out in a copy of the manifests."""
    for name in ("crds", "manifests"):
        shutil.copytree(REPOSITORY / name, folder / name)
    page = (REPOSITORY / "docs/operator.md").read_text()
    begin = page.index("    cd manifests/overlays/namespaces\n")
    commands = textwrap.dedent(page[begin : page.index("\n\n", begin) + 1])
    assert commands.endswith(APPLY)
    subprocess.run(
        ["sh", "-eu"], input=commands.removesuffix(APPLY), text=True, cwd=folder, timeout=60, check=True
    )
    text = kubectl(Path("/dev/null"), "kustomize", str(folder / "manifests/overlays/namespaces"))
    return list(yaml.safe_load_all(text))


@dataclasses.dataclass(frozen=True)
class Installed:
    """What is in the test's cluster of it."""

    system: str
    first: str
    middle: str
    last: str
    binding: dict[str, Any]
    """By which the operator has its rights in the middle one. It is not there yet."""
    kubeconfig: Path
    """The administrator's."""

    def give(self) -> None:
        """Give the operator its rights in the middle one."""
        kubectl(self.kubeconfig, "apply", "-f", "-", stdin=json.dumps(self.binding))

    def take(self) -> None:
        """Take them away."""
        kubectl(self.kubeconfig, "delete", "rolebinding", self.binding["metadata"]["name"], "-n", self.middle)


@pytest.fixture
def several(installed: Devcluster, namespace: str, tmp_path: Path) -> Iterator[Installed]:
    system, first, middle, last = (f"{namespace}-system", namespace, f"{namespace}-b", f"{namespace}-c")
    for name in (system, middle, last):
        kubectl(installed.kubeconfig, "create", "namespace", name)
    objects = built(tmp_path)
    (deployment,) = (obj for obj in objects if obj["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert {"name": "TABLEFORGE_OPERATOR_NAMESPACES", "value": ",".join(NAMED)} in container["env"]
    places = dict(zip(("tableforge-system", *NAMED), (system, first, middle, last), strict=True))
    objects = moved(objects, places)
    (binding,) = (
        obj for obj in objects if obj["kind"] == "RoleBinding" and obj["metadata"]["namespace"] == middle
    )
    objects.remove(binding)
    everything = {"kind": "List", "apiVersion": "v1", "items": objects}
    kubectl(installed.kubeconfig, "apply", "-f", "-", stdin=json.dumps(everything))
    yield Installed(system, first, middle, last, binding, installed.kubeconfig)
    for name in (system, middle, last):
        kubectl(installed.kubeconfig, "delete", "namespace", name, "--wait=false")


@pytest.fixture
async def proxy(installed: Devcluster, several: Installed, tmp_path: Path) -> AsyncIterator[ApiProxy]:
    scoped = service_account_kubeconfig(installed, tmp_path / "scoped", namespace=several.system)
    async with ApiProxy(scoped) as proxy:
        yield proxy


@pytest.fixture
async def operators(proxy: ApiProxy, several: Installed, tmp_path: Path) -> AsyncIterator[Operators]:
    kubeconfig = proxy.kubeconfig(tmp_path / "proxied")
    operators = Operators(kubeconfig, tmp_path, several.first, own_namespace=several.system)
    yield operators
    await operators.stop()


async def watched(operator: Operator) -> dict[str, int]:
    """In which namespaces clusters are watched, by the operator's own word."""
    text = (await operator.get("/metrics"))[1]
    series = r'^tableforge_operator_watch_up\{namespace="(.*)",resource="websocketclusters"\} (.*)$'
    return {name: int(float(value)) for name, value in re.findall(series, text, re.MULTILINE)}


def told(operator: Operator, event: str, where: str) -> list[str]:
    """The errors with which it logged that of the clusters of a namespace."""
    whole, _, _ = operator.child.log.read_text().rpartition("\n")
    about = [
        line
        for line in map(json.loads, whole.split("\n"))
        if (line["event"], line.get("resource")) == (event, f"websocketclusters in {where}")
    ]
    return [line.get("error", "") for line in about]


async def test_a_namespace_that_may_not_be_listed_costs_the_others_nothing(
    kube: Kube, several: Installed, operators: Operators, proxy: ApiProxy
) -> None:
    first, middle, last = several.first, several.middle, several.last

    async def resize(namespace: str, replicas: int) -> None:
        patch = {"spec": {"replicas": replicas}}
        await kube.merge(CLUSTERS, namespace, "tables", patch, field_manager="user")

    async def watches(**wanted: int) -> None:
        async def look() -> bool:
            return await watched(operator) == {getattr(several, name): up for name, up in wanted.items()}

        await until(look, what=f"watched as {wanted}")

    # It starts without the right.
    operator = await operators(also=[middle, last])
    for namespace in (first, middle, last):
        await kube.apply(external(namespace), field_manager="user", force=True)
    for namespace in (first, last):
        await made(kube, namespace)
    await watches(first=1, middle=0, last=1)
    # Long before all are listed anew.
    await resize(last, 2)
    await scaled(kube, last, 2)
    assert await children(kube, middle) == []
    (error,) = told(operator, "cannot watch", middle)
    assert 'cannot list resource "websocketclusters"' in error
    assert f'in the namespace "{middle}"' in error

    several.give()
    await made(kube, middle)
    await watches(first=1, middle=1, last=1)

    # It loses the right while it runs, and notices when a watch ends.
    several.take()

    async def lost() -> bool:
        proxy.cut_watches(lambda request: f"/namespaces/{middle}/" in request.path)
        return (await watched(operator))[middle] == 0

    await until(lost, what="the right is missed")
    await resize(middle, 4)
    await resize(last, 3)
    await scaled(kube, last, 3)
    assert sum((await operator.clusters()).values()) == 3, "what cannot be seen is not gone"
    assert await watched(operator) == {first: 1, middle: 0, last: 1}
    assert told(operator, "cannot watch", first) == told(operator, "cannot watch", last) == []
    several.give()
    await scaled(kube, middle, 4)
    await watches(first=1, middle=1, last=1)

    async def restored() -> bool:
        return len(told(operator, "watch restored", middle)) == 2

    await until(restored, what="that is told, as it was the first time")
