"""The operator as a process of its own, under the ServiceAccount and the rights that it ships with."""

import contextlib
import dataclasses
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import yaml

from devcluster.cluster import Devcluster
from tableforge_operator.kube import Kube, Object
from tests.support.children import Child

REPOSITORY = Path(__file__).parents[3]
SYSTEM_NAMESPACE = "tableforge-system"
USER = f"system:serviceaccount:{SYSTEM_NAMESPACE}:tableforge-operator"

_NUMBERS = itertools.count(1)

Found = TypeVar("Found")


async def until(look: Callable[[], Awaitable[Found | None]], *, what: str, seconds: float = 120.0) -> Found:
    """What `look` finds, once it finds something."""
    import asyncio

    last: BaseException | None = None
    try:
        async with asyncio.timeout(seconds):
            while True:
                found = await look()
                if found:
                    return found
                await asyncio.sleep(0.05)
    except TimeoutError as error:
        last = error
    raise AssertionError(f"after {seconds:g} s still not: {what}") from last


class PatientKube(Kube):
    """A test's own client: it may wait for a busy API server for longer than the operator does."""

    async def _call(self, *arguments: Any, timeout_seconds: float = 0.0, **options: Any) -> Object:
        return await super()._call(*arguments, timeout_seconds=max(timeout_seconds, 60.0), **options)


def kubectl(kubeconfig: Path, *arguments: str, stdin: str | None = None, most_seconds: float = 120) -> str:
    """The real kubectl. Raises AssertionError with what it printed, TimeoutExpired."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("kubectl")), "--kubeconfig", str(kubeconfig), *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=most_seconds,
        check=False,
    )
    assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
    return done.stdout


def install(kubeconfig: Path) -> None:
    """Everything in manifests/, and wait until the API server serves the kind."""
    kubectl(kubeconfig, "apply", "-k", str(REPOSITORY / "manifests"))
    # First for the names: kubectl takes conditions that are not there yet for an error.
    for awaited in ("jsonpath={.status.acceptedNames.plural}=websocketclusters", "condition=Established"):
        kubectl(
            kubeconfig, "wait", f"--for={awaited}", "crd/websocketclusters.tableforge.io", "--timeout=60s"
        )


def service_account_kubeconfig(cluster: Devcluster, path: Path, *, namespace: str = SYSTEM_NAMESPACE) -> Path:
    """A kubeconfig that is the operator's ServiceAccount and nothing more, by a token from TokenRequest."""
    token = kubectl(
        cluster.kubeconfig, "create", "token", "tableforge-operator", "-n", namespace, "--duration=2h"
    ).strip()
    config = yaml.safe_load(cluster.kubeconfig.read_text())
    config["users"] = [{"name": user["name"], "user": {"token": token}} for user in config["users"]]
    path.write_text(yaml.safe_dump(config))
    return path


@dataclasses.dataclass
class Operator:
    """One running operator."""

    child: Child
    port: int = 0
    """Its health port, which it chose itself."""

    async def started(self) -> None:
        """Wait until it listens."""

        async def look() -> int | None:
            assert self.child.returncode is None, self.child.output()
            whole, _, _ = self.child.log.read_text().rpartition("\n")
            told = (json.loads(line) for line in whole.splitlines())
            return next((line["health_port"] for line in told if line["event"] == "started"), None)

        self.port = await until(look, what=f"the operator listens:\n{self.child.output()}")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def get(self, path: str) -> tuple[int, str]:
        """Status and text of an answer of its health port; status 0 where there is none."""
        try:
            async with aiohttp.ClientSession() as session, session.get(self.url + path) as answer:
                return answer.status, await answer.text()
        except aiohttp.ClientConnectionError:
            return 0, ""

    async def leading(self, *, seconds: float = 120) -> None:
        """Wait until it leads."""

        async def look() -> bool:
            assert self.child.returncode is None, self.child.output()
            return (await self.get("/readyz"))[1] == "leading\n"

        await until(look, what=f"the operator leads:\n{self.child.output()}", seconds=seconds)

    async def turns(self) -> int:
        """How many reconciles it has done."""
        text = (await self.get("/metrics"))[1]
        return sum(
            int(float(value))
            for value in re.findall(r"^tableforge_operator_reconciles_total\{.*\} (.*)$", text, re.MULTILINE)
        )

    async def clusters(self) -> dict[str, int]:
        """How many clusters it knows in each state that any is in."""
        text = (await self.get("/metrics"))[1]
        found = re.findall(r'^tableforge_operator_clusters\{state="(.*)"\} (.*)$', text, re.MULTILINE)
        assert found, "no such metric"
        return {state: int(float(value)) for state, value in found if float(value)}

    @contextlib.asynccontextmanager
    async def turning(self, number: int = 1) -> AsyncIterator[None]:
        """After the block, wait until it has done `number` reconciles since before."""
        wanted = await self.turns() + number
        yield

        async def look() -> bool:
            return await self.turns() >= wanted

        await until(look, what=f"{number} more reconciles", seconds=120)


class Operators:
    """Starts operators, and stops them all."""

    def __init__(
        self, kubeconfig: Path, folder: Path, namespace: str, *, own_namespace: str = SYSTEM_NAMESPACE
    ) -> None:
        self._kubeconfig = kubeconfig
        self._namespace = namespace
        self._own_namespace = own_namespace
        self._folder = folder
        self.running: list[Operator] = []
        """All that were started, the last one last; some may have ended."""

    async def __call__(
        self, *, everywhere: bool = False, leads: bool = True, also: Sequence[str] = ()
    ) -> Operator:
        """Start one that looks after the test's namespace (and those in `also`), or after all of them."""
        name = f"operator-{next(_NUMBERS)}"
        child = Child(
            [
                sys.executable,
                "-m",
                "tableforge_operator",
                "run",
                f"--kubeconfig={self._kubeconfig}",
                "--health-host=127.0.0.1",
                "--health-port=0",
                "--log-level=debug",
                *(f"--namespace={name}" for name in ([] if everywhere else [self._namespace, *also])),
            ],
            log=self._folder / f"{name}.log",
            environ={**os.environ, "POD_NAME": name, "POD_NAMESPACE": self._own_namespace},
        )
        operator = Operator(child)
        self.running.append(operator)
        await operator.started()
        if leads:
            await operator.leading()
        return operator

    async def stop(self) -> None:
        for operator in self.running:
            await operator.child.stop()

    def output(self) -> str:
        return "\n\n".join(operator.child.output() for operator in self.running)


def audited(path: Path, since: int) -> list[dict[str, Any]]:
    """What is in the API server's record after `since`, in whole lines: it may be writing one."""
    with path.open("rb") as file:
        file.seek(max(0, since - 1))
        found = file.read()
    begin = found.find(b"\n") + 1 if since else 0
    return [json.loads(line) for line in found[begin : found.rfind(b"\n") + 1].splitlines()]


class AuditLog:
    """What the operators asked of the API server, by its own record."""

    def __init__(self, path: Path, namespace: str) -> None:
        self._path = path
        self._namespace = namespace

    def position(self) -> int:
        """Where the record ends now."""
        return self._path.stat().st_size

    def requests(self, since: int) -> list[dict[str, Any]]:
        """The operator's requests about the test's namespace after `since`."""
        return [
            entry
            for entry in audited(self._path, since)
            if entry.get("user", {}).get("username") == USER
            and entry.get("objectRef", {}).get("namespace") == self._namespace
        ]

    def writes(self, since: int) -> list[str]:
        """Verb and object of each of its writes after `since`."""
        found = []
        for entry in self.requests(since):
            ref = entry["objectRef"]
            what = "/".join(ref[part] for part in ("resource", "name", "subresource") if part in ref)
            if entry["verb"] in ("create", "update", "patch", "delete", "deletecollection"):
                found.append(f"{entry['verb']} {what}")
        return found
