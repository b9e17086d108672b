"""Starts processes in namespaces of their own, and programs inside those.

The work inside the new process is `sandbox_init`'s; this is the agent's side of it.
"""

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).with_name("sandbox_init.py")
HOSTNAME_LIMIT = 63


class SandboxError(Exception):
    """A process could not be started in its sandbox; the message says what was refused."""


@dataclasses.dataclass(frozen=True)
class Mount:
    """A host path shown at a path of the container. `target` is resolved: it has no symbolic links."""

    source: str
    target: str
    read_only: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class SandboxSpec:
    """Everything a container's process is made from."""

    argv: Sequence[str]
    env: Mapping[str, str] = dataclasses.field(repr=False)
    working_dir: str
    hostname: str
    root: Path
    """An empty host directory on which the root is mounted, in the container's namespace only."""
    mounts: Sequence[Mount] = ()
    keep: Sequence[str] = ()
    """Host paths to show even where they lie in a private directory."""
    hidden: Sequence[str] = ()
    read_only_root: bool = False


class SandboxProcess:
    """A running process: the first one of its container, or one started inside a container."""

    def __init__(self, guardian: asyncio.subprocess.Process, pid: int) -> None:
        self._guardian = guardian
        self.pid = pid
        """The process's id as the host sees it."""

    @property
    def stdout(self) -> asyncio.StreamReader:
        """What it writes to standard output."""
        assert self._guardian.stdout is not None  # noqa: S101 -- always a pipe
        return self._guardian.stdout

    @property
    def stderr(self) -> asyncio.StreamReader:
        """What it writes to standard error."""
        assert self._guardian.stderr is not None  # noqa: S101 -- always a pipe
        return self._guardian.stderr

    async def wait(self) -> int:
        """Its exit code, 128 and the signal's number after a signal."""
        code = await self._guardian.wait()
        # A guardian killed by a signal took the process along.
        return 128 - code if code < 0 else code

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._guardian.returncode is None

    def send(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens where the process is gone."""
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """End it and everything it started."""
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                self._guardian.kill()


async def start(spec: SandboxSpec) -> SandboxProcess:
    """Start a container's process. Raises SandboxError; nothing is left running then."""
    try:
        spec.root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SandboxError(f"cannot make its root: {error}") from error
    return await _launch(
        "run",
        {
            "argv": list(spec.argv),
            "env": dict(spec.env),
            "working_dir": spec.working_dir,
            "hostname": spec.hostname[:HOSTNAME_LIMIT].rstrip("-."),
            "root": str(spec.root),
            "mounts": [dataclasses.asdict(mount) for mount in spec.mounts],
            "keep": list(spec.keep),
            "hidden": list(spec.hidden),
            "read_only_root": spec.read_only_root,
        },
    )


async def start_inside(
    container: SandboxProcess, argv: Sequence[str], env: Mapping[str, str], working_dir: str
) -> SandboxProcess:
    """Start a program in the namespaces of a running container. Raises SandboxError."""
    request = {"pid": container.pid, "argv": list(argv), "env": dict(env), "working_dir": working_dir}
    return await _launch("enter", request)


async def _launch(mode: str, request: dict[str, Any]) -> SandboxProcess:
    # A socket, because a transport of uvloop closes a pipe's descriptor twice: the second time, it may have
    # become another thread's.
    try:
        near, far = socket.socketpair()
        with near:
            with far:
                guardian = await _spawn(mode, request, far.fileno())
            try:
                return await _started(guardian, near)
            except BaseException:
                if guardian.returncode is None:
                    guardian.kill()
                raise
    except OSError as error:
        # This machine has no descriptor, process or memory left: a reason to wait, not to end the node.
        raise SandboxError(f"cannot start a process: {error.strerror or error}") from error


async def _spawn(mode: str, request: dict[str, Any], status_fd: int) -> asyncio.subprocess.Process:
    """The guardian, which reports on a descriptor. Raises OSError."""
    request_fd = os.memfd_create("sandbox-request")
    try:
        with os.fdopen(os.dup(request_fd), "w", encoding="utf-8") as stream:
            json.dump({**request, "agent_pid": os.getpid(), "status_fd": status_fd}, stream)
        os.lseek(request_fd, 0, os.SEEK_SET)
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-S",
            str(SCRIPT),
            mode,
            str(request_fd),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=(request_fd, status_fd),
            start_new_session=True,
        )
    finally:
        os.close(request_fd)


async def _started(guardian: asyncio.subprocess.Process, status: socket.socket) -> SandboxProcess:
    """Wait until the program runs (its end of the socket closes) or something says that it does not."""
    status.setblocking(False)
    text = b""
    while data := await asyncio.get_running_loop().sock_recv(status, 65536):
        text += data
    reports = [json.loads(line) for line in text.splitlines()]
    for report in reports:
        if "error" in report:
            await guardian.wait()
            raise SandboxError(report["error"])
    pids = [report["pid"] for report in reports if "pid" in report]
    if not pids:
        output = b"" if guardian.stderr is None else await guardian.stderr.read(2000)
        raise SandboxError(f"the sandbox ended at its start: {output.decode(errors='replace').strip()}")
    return SandboxProcess(guardian, pids[0])


async def check_machine(folder: Path) -> None:
    """Make one sandbox, on a path below `folder`. Raises SandboxError where the machine refuses it."""
    spec = SandboxSpec(
        argv=["true"],
        env={"PATH": os.defpath},
        working_dir="/",
        hostname="check",
        root=folder / "check",
        read_only_root=True,
    )
    process = await start(spec)
    output = await process.stderr.read(2000)
    if (code := await process.wait()) != 0:
        raise SandboxError(f"a test process ended with {code}: {output.decode(errors='replace').strip()}")
