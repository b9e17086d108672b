"""Child processes of a test: they end with it, whatever ends it, and their output can be shown."""

import asyncio
import ctypes
import json
import os
import random
import signal
import socket
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

_PR_SET_PDEATHSIG: Final = 1
# Looked up before any fork: between fork and exec only async-signal-safe work is allowed.
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def _die_with(parent: int) -> Callable[[], None]:
    """What runs in the child before exec. The signal comes when the forking *thread* ends: fork in main."""

    def before_exec() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # the parent died in between: nobody would send the signal
            os._exit(1)

    return before_exec


_PORTS: Final = (12_000, 29_999)
"""Below the range from which the kernel takes outgoing connections' ports."""
_BLOCK: Final = 100
"""So many ports in a row are one pytest worker's, the next ones another's."""
_GIVEN: Final[deque[int]] = deque(maxlen=500)
"""Ports given away lately, whose servers may not listen yet."""


def _is_ours(port: int) -> bool:
    """Whether no other worker of this test run takes it between here and the server that listens on it."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    return port // _BLOCK % workers == number % workers


def free_port(host: str = "127.0.0.1", *, highest: int = _PORTS[1]) -> int:
    """A port nobody listens on now, `highest` at most.

    It stays free while a server that owns it is being restarted, and no other worker of this test run takes
    it. Another process may still take it first: callers retry.
    """
    for _ in range(10_000):
        port = random.randint(_PORTS[0], highest)
        if port in _GIVEN or not _is_ours(port):
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                continue
        _GIVEN.append(port)
        return port
    raise RuntimeError(f"no free port found on {host}")


def free_ports(count: int, host: str = "127.0.0.1") -> int:
    """The first of so many free ports in a row."""
    for _ in range(50):
        first = free_port()
        if first % _BLOCK + count > _BLOCK or any(first + n in _GIVEN for n in range(1, count)):
            continue
        probes = [socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) for _ in range(count)]
        try:
            for place, probe in enumerate(probes):
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, first + place))
        except OSError:
            continue
        finally:
            for probe in probes:
                probe.close()
        _GIVEN.extend(range(first + 1, first + count))
        return first
    raise RuntimeError(f"no {count} free ports in a row found on {host} in 50 tries")


def logged(log: Path) -> list[dict[str, Any]]:
    """The events in a log, one JSON object a line. One that is being written right now is not there yet."""
    *whole, _ = log.read_text(errors="replace").split("\n")
    return [json.loads(line) for line in whole if line.startswith("{")]


class Child:
    """One running process, with everything it prints in `log`."""

    def __init__(self, command: list[str], *, log: Path, environ: Mapping[str, str] | None = None) -> None:
        self.command = command
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=None if environ is None else dict(environ),
                start_new_session=True,
                preexec_fn=_die_with(os.getpid()),
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs; negative where a signal ended it."""
        return self._process.poll()

    def send(self, number: signal.Signals) -> None:
        """Send a signal; nothing where the process has ended."""
        if self._process.poll() is None:
            self._process.send_signal(number)

    async def ended(self, timeout_seconds: float) -> int:
        """Wait for its end and give its exit code. Raises TimeoutError."""
        deadline = time.monotonic() + timeout_seconds
        pidfd = os.pidfd_open(self.pid) if self._process.poll() is None else None
        if pidfd is None:
            return self._process.wait()
        try:
            over = asyncio.Event()
            loop = asyncio.get_running_loop()
            loop.add_reader(pidfd, over.set)
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    await over.wait()
            finally:
                loop.remove_reader(pidfd)
        finally:
            os.close(pidfd)
        return self._process.wait()

    async def stop(self, *, timeout_seconds: float = 10) -> int:
        """SIGTERM, and SIGKILL to whom that doesn't end in time. Gives the exit code."""
        self.send(signal.SIGCONT)
        self.send(signal.SIGTERM)
        try:
            return await self.ended(timeout_seconds)
        except TimeoutError:
            return await self.kill9()

    async def kill9(self) -> int:
        """SIGKILL, and wait for the end."""
        self.send(signal.SIGKILL)
        return await self.ended(60)

    def output(self, *, last_lines: int = 60) -> str:
        """What it printed last."""
        try:
            text = self.log.read_text(errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join(text.splitlines()[-last_lines:])
