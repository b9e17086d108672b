"""The devcluster with the operator on it: what the demo, `make up` and the end-to-end tests stand on."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

from demo.images import ROOT, image_table
from demo.kubectl import Kubectl
from devcluster import Devcluster

MANIFESTS = ROOT / "manifests"
SAMPLE = MANIFESTS / "samples" / "tables.yaml"
OPERATOR_NAMESPACE = "tableforge-system"
OPERATOR_DEPLOYMENT = "deployment/tableforge-operator"


@contextlib.asynccontextmanager
async def devcluster() -> AsyncIterator[Devcluster]:
    """A devcluster that knows our images. It ends, with everything on it, when the context does."""
    async with Devcluster(images=image_table()) as cluster:
        yield cluster


async def install_operator(kubectl: Kubectl) -> str:
    """Install CRD and operator from the manifests and wait until the operator runs; returns what was said."""
    said = await kubectl("apply", "-k", str(MANIFESTS))
    await kubectl(
        "rollout",
        "status",
        "-n",
        OPERATOR_NAMESPACE,
        OPERATOR_DEPLOYMENT,
        "--timeout=120s",
        timeout_seconds=130,
    )
    return said


def processes_of_pod(pod: str) -> list[int]:
    """The pids of the data-plane process that runs as this pod, found by the `INSTANCE_ID` it was given."""
    found: list[int] = []
    wanted = f"INSTANCE_ID={pod}".encode()
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if any(word.endswith(b"tableforge-dataplane") for word in words[:2]) and (
                wanted in (process / "environ").read_bytes().split(b"\0")
            ):
                found.append(int(process.name))
    return found


def kill_pod_process(pod: str) -> int:
    """`kill -9` the pod's server, as a crash or the kernel's out-of-memory killer would. Returns the pid."""
    pids = processes_of_pod(pod)
    if len(pids) != 1:
        raise RuntimeError(f"pod {pod}: expected one server process, found {pids}")
    os.kill(pids[0], signal.SIGKILL)
    return pids[0]


async def pod_addresses(kubectl: Kubectl, cluster: str, *, component: str = "dataplane") -> dict[str, str]:
    """The cluster's running pods and their addresses, by name."""
    pods = await kubectl.json(
        "get", "pods", "-l", f"tableforge.io/cluster={cluster},app.kubernetes.io/component={component}"
    )
    return {
        pod["metadata"]["name"]: pod["status"]["podIP"]
        for pod in sorted(pods["items"], key=lambda pod: str(pod["metadata"]["name"]))
        if pod["status"].get("podIP") and "deletionTimestamp" not in pod["metadata"]
    }


async def eventually_empty(kubectl: Kubectl, *words: str, timeout_seconds: float = 60.0) -> str:
    """Ask until `kubectl get -o name …` names nothing, or the time is over; returns what was named last."""
    async with asyncio.timeout(timeout_seconds):
        while named := (await kubectl("get", *words, "-o", "name")).strip():  # noqa: ASYNC110
            await asyncio.sleep(0.25)
    return named
