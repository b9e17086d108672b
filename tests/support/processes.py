"""Data-plane processes as users run them: `tableforge-dataplane serve`, configured by the environment."""

import asyncio
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tests.support.children import Child, free_port
from tests.support.redis import RedisServer


class DataplaneFailedError(RuntimeError):
    """An instance ended or did not become ready; the text has its output."""


class DataplaneProcess:
    """One instance on 127.0.0.1, with ports of its own that it keeps over restarts."""

    def __init__(self, directory: Path, *, instance: str, environ: Mapping[str, str]) -> None:
        self.directory = directory
        self.instance = instance
        self.host = "127.0.0.1"
        self._environ = dict(environ)
        self._ports: tuple[int, int] | None = None
        self._child: Child | None = None

    @property
    def port(self) -> int:
        """The port for clients; known from the first start on."""
        assert self._ports is not None, "not started yet"
        return self._ports[0]

    @property
    def http_port(self) -> int:
        """The internal port (`/metrics`, `/fleet`)."""
        assert self._ports is not None, "not started yet"
        return self._ports[1]

    @property
    def url(self) -> str:
        return f"ws://{self.host}:{self.port}/ws"

    @property
    def pid(self) -> int:
        assert self._child is not None, "not running"
        return self._child.pid

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.returncode is None

    async def start(self, *, wait_until_ready: bool = True, timeout_seconds: float = 90) -> None:
        """Start it where it doesn't run, and wait for 200 from `/ready`.

        Raises DataplaneFailedError with its output.
        """
        chosen_before = self._ports is not None
        deadline = time.monotonic() + timeout_seconds
        while True:
            was_there = self._child is not None and self._child.returncode is None
            if self._child is None or not was_there:
                self._ports = self._ports or (free_port(), free_port())
                self._child = self._spawn(self._ports)
            if not wait_until_ready or await self._becomes_ready(self._child, deadline):
                return
            output = self._child.output()
            await self.kill9()
            if was_there:
                continue  # it was on its way out
            if time.monotonic() >= deadline:
                raise DataplaneFailedError(f"{self.instance} not ready in {timeout_seconds} s:\n{output}")
            if "address already in use" not in output.lower():
                raise DataplaneFailedError(f"{self.instance} ended at its start:\n{output}")
            if not chosen_before:
                self._ports = None
            await asyncio.sleep(0.05)

    async def kill9(self) -> None:
        """SIGKILL."""
        if self._child is not None:
            await self._child.kill9()
            self._child = None

    async def sigterm(self, *, timeout_seconds: float = 60) -> int:
        """SIGTERM as Kubernetes sends it; waits for the end and gives the exit code. Raises TimeoutError."""
        assert self._child is not None, "not running"
        self._child.send(signal.SIGTERM)
        code = await self._child.ended(timeout_seconds)
        self._child = None
        return code

    async def stop(self) -> None:
        """SIGKILL: for the end of a test, which has no use for a drain."""
        await self.kill9()

    def pause(self) -> None:
        """SIGSTOP."""
        assert self._child is not None, "not running"
        self._child.send(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        assert self._child is not None, "not running"
        self._child.send(signal.SIGCONT)

    @property
    def log(self) -> Path:
        """Everything it printed, over all its restarts."""
        return self.directory / f"{self.instance}.log"

    def output(self, *, last_lines: int = 60) -> str:
        """What it printed last, whether it runs or not."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-last_lines:])

    async def get(self, path: str, *, port: int | None = None) -> tuple[int, bytes]:
        """`GET path` on the client port (or another of its ports): status and body. Raises OSError."""
        reader, writer = await asyncio.open_connection(self.host, self.port if port is None else port)
        try:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: {self.host}\r\nConnection: close\r\n\r\n".encode())
            async with asyncio.timeout(30):
                answer = await reader.read()
        finally:
            writer.close()
        head, _, body = answer.partition(b"\r\n\r\n")
        status = head.split(b" ", 2)
        if len(status) < 2 or not status[1].isdigit():
            raise ConnectionResetError(f"no HTTP answer to {path}")
        return int(status[1]), body

    def _spawn(self, ports: tuple[int, int]) -> Child:
        environ = {
            # what the test process happens to have must not configure an instance
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("TABLEFORGE_", "REDIS_", "WS_", "JWT_", "AUTH_", "LOG_"))
        }
        environ |= {
            "WS_HOST": self.host,
            "WS_PORT": str(ports[0]),
            "TABLEFORGE_HTTP_PORT": str(ports[1]),
            "INSTANCE_ID": self.instance,
        }
        environ |= {name: value.replace("{port}", str(ports[0])) for name, value in self._environ.items()}
        command = [str(Path(sys.executable).parent / "tableforge-dataplane"), "serve"]
        return Child(command, log=self.log, environ=environ)

    async def _becomes_ready(self, child: Child, deadline: float) -> bool:
        while child.returncode is None and time.monotonic() < deadline:
            try:
                status, _ = await self.get("/ready")
            except (OSError, TimeoutError):
                status = 0
            if status == 200 and child.returncode is None:
                return True
            await asyncio.sleep(0.02)
        return False


STEADY: Final = {
    "LOG_LEVEL": "info",
    # on a machine that others use too an instance's loop may stand still for seconds
    "TABLEFORGE_MONITORING_LOOP_LAG_THRESHOLD": "60000",
}
"""What instances have where a test doesn't say otherwise."""


class DataplaneFleet:
    """Starts instances on one Redis and stops them all at the end.

    `await fleet(redis, 3)` starts three that are ready. Environment variables come by keyword:
    `await fleet(redis, 1, TABLEFORGE_REDIS_DURABILITY="Disk")`; `{port}` in a value is the port for clients.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._owns_directory = directory is None
        self.directory = (
            Path(tempfile.mkdtemp(prefix="tableforge-fleet-")) if directory is None else directory
        )
        self.processes: list[DataplaneProcess] = []

    async def __call__(
        self, redis: RedisServer, count: int = 1, *, wait_until_ready: bool = True, **environ: str
    ) -> list[DataplaneProcess]:
        """Start `count` more instances, one after another would be slow: all at once."""
        started: list[DataplaneProcess] = []
        for _ in range(count):
            process = DataplaneProcess(
                self.directory,
                instance=f"instance-{len(self.processes) + 1}",
                environ={**redis.environ, **STEADY, **environ},
            )
            self.processes.append(process)
            started.append(process)
        async with asyncio.TaskGroup() as group:
            for process in started:
                group.create_task(process.start(wait_until_ready=wait_until_ready))
        return started

    async def stop(self) -> None:
        """Stop every instance; removes the directory where it made it."""
        for process in self.processes:
            await process.stop()
        if self._owns_directory:
            await asyncio.to_thread(shutil.rmtree, self.directory, ignore_errors=True)

    def output(self) -> str:
        """The last lines of every instance, for a failed test's report."""
        return "\n".join(f"--- {process.instance}\n{process.output()}" for process in self.processes)
