"""The devcluster with the operator on it: what the demo, `make up` and the end-to-end tests stand on."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from demo.images import ROOT, image_table
from demo.kubectl import Kubectl
from demo.screen import DemoError
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


def kill_server(pod: str) -> int:
    """`kill -9` the pod's data-plane process, as a crash or the kernel's out-of-memory killer would.

    Returns its pid. It is found by the `INSTANCE_ID` it was given.
    """
    return _kill_the_one(
        f"the server of pod {pod}",
        lambda words, environ: (
            any(word.endswith(b"tableforge-dataplane") for word in words[:2])
            and f"INSTANCE_ID={pod}".encode() in environ
        ),
    )


def kill_redis(address: str) -> int:
    """`kill -9` the Redis that is bound to a pod's address. Returns its pid."""
    return _kill_the_one(
        f"the Redis at {address}",
        # Redis writes its title over its arguments: "…/valkey-server 127.0.0.1:6379"
        lambda words, _: f"-server {address}:".encode() in b" ".join(words),
    )


def _kill_the_one(what: str, is_it: Callable[[list[bytes], list[bytes]], bool]) -> int:
    found: list[int] = []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # it ended, or belongs to somebody else
            words = (process / "cmdline").read_bytes().split(b"\0")
            if is_it(words, (process / "environ").read_bytes().split(b"\0")):
                found.append(int(process.name))
    if len(found) != 1:
        raise DemoError(f"{what}: expected one process, found {found}")
    os.kill(found[0], signal.SIGKILL)
    return found[0]


async def eventually_empty(kubectl: Kubectl, *words: str, timeout_seconds: float = 60.0) -> str:
    """Ask until `kubectl get -o name …` names nothing, or the time is over; returns what was named last."""
    async with asyncio.timeout(timeout_seconds):
        while named := (await kubectl("get", *words, "-o", "name")).strip():  # noqa: ASYNC110
            await asyncio.sleep(0.25)
    return named
