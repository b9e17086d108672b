"""The servers that are measured, ours among them: how each is started, and what must be known of it."""

import asyncio
import contextlib
import dataclasses
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

from benchmarks import installation
from benchmarks.dialects import CENTRIFUGE, GUIDE, NATIVE, NCHAN, SOCKETIO, Dialect
from benchmarks.installation import Installed, MissingError, Say
from benchmarks.load import Address, cpu_seconds
from tests.support.children import Child, free_port
from tests.support.processes import DataplaneFailedError, DataplaneFleet
from tests.support.redis import RedisServer

STARTING_SECONDS: Final = 15.0

OURS: Final = "tableforge"

UNLIMITED: Final = {
    "WS_MAX_CONNECTIONS": "100000",
    "TABLEFORGE_LOAD_BALANCING_MAX_CONNECTIONS_PER_INSTANCE": "100000",
    "TABLEFORGE_SECURITY_MAX_HANDSHAKES_PER_SECOND": "1000000",
    "TABLEFORGE_SECURITY_MAX_MESSAGES_PER_SECOND": "1000000",
    "TABLEFORGE_SECURITY_MAX_MESSAGES_PER_MINUTE": "60000000",
    "TABLEFORGE_SECURITY_MAX_BYTES_PER_SECOND": "1073741824",
    "TABLEFORGE_REDIS_DURABILITY": "Memory",
}
"""Every check is on and counts; none of them bites."""


class DidNotStartError(RuntimeError):
    """A server ended or did not listen; the text has its output."""


@dataclasses.dataclass(frozen=True)
class Running:
    """Servers that are up, on one Redis or none."""

    addresses: Sequence[Address]
    pids: Sequence[int]
    redis_pids: Sequence[int]

    def cpu(self) -> float:
        """Seconds of all servers so far."""
        return sum(map(cpu_seconds, self.pids))

    def redis_cpu(self) -> float:
        """Seconds of all Redis servers so far."""
        return sum(map(cpu_seconds, self.redis_pids))


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One server."""

    name: str
    title: str
    dialect: Dialect
    log: str
    """Which log it keeps of a room's messages, in the tables' words."""
    install: Callable[[Say], Awaitable[Installed]] | None = None
    starter: Callable[[Installed, Path, int, int], tuple[list[str], dict[str, str]]] | None = None
    needs_redis: bool = True


_OWN_FOLDERS: Final = 'mount -t tmpfs tmpfs /var/lib && mkdir /var/lib/nginx && exec "$@"'


def _node(script: str) -> Callable[[Installed, Path, int, int], tuple[list[str], dict[str, str]]]:
    def starter(
        installed: Installed, _directory: Path, port: int, redis_port: int
    ) -> tuple[list[str], dict[str, str]]:
        return ["node", str(installed.folder / script)], {
            "NODE_ENV": "production",
            "PORT": str(port),
            "REDIS_PORT": str(redis_port),
        }

    return starter


def _centrifuge(history: str) -> Callable[[Installed, Path, int, int], tuple[list[str], dict[str, str]]]:
    def starter(
        installed: Installed, _directory: Path, port: int, redis_port: int
    ) -> tuple[list[str], dict[str, str]]:
        environ = {"PORT": str(port), "REDIS_PORT": str(redis_port), "HISTORY": history}
        return [str(installed.folder / "server")], environ

    return starter


def _nchan(
    installed: Installed, directory: Path, port: int, _redis_port: int
) -> tuple[list[str], dict[str, str]]:
    template = (installation.HERE / "peers" / "nchan" / "nginx.conf").read_text()
    module = next(installed.folder.rglob("ngx_nchan_module.so"))
    config = directory / "nginx.conf"
    config.write_text(template.replace("@PORT@", str(port)).replace("@MODULE@", str(module)))
    program = str(installed.folder / "usr/sbin/nginx")
    return [
        # nchan makes nginx's default folders whatever is configured: it gets an empty /var/lib of its own
        *("unshare", "--map-root-user", "--mount", "sh", "-c", _OWN_FOLDERS, "sh"),
        *(program, "-p", str(directory), "-c", str(config), "-e", "stderr"),
    ], {}


ALL: Final = (
    Contestant(OURS, "TableForge", NATIVE, "log of 1,000 in Redis"),
    Contestant(
        "guide",
        "ws 8 + redis 4",
        GUIDE,
        "no log",
        install=installation.node,
        starter=_node("guide.mjs"),
    ),
    Contestant(
        "socketio",
        "Socket.IO 4 + Redis adapter",
        SOCKETIO,
        "no log",
        install=installation.node,
        starter=_node("socketio.mjs"),
    ),
    Contestant(
        "centrifuge",
        "centrifuge (Go), no history",
        CENTRIFUGE,
        "no log",
        install=installation.centrifuge,
        starter=_centrifuge("0"),
    ),
    Contestant(
        "centrifuge-history",
        "centrifuge (Go), history",
        CENTRIFUGE,
        "history of 100 in Redis",
        install=installation.centrifuge,
        starter=_centrifuge("1"),
    ),
    Contestant(
        "nchan",
        "nchan (C, nginx module)",
        NCHAN,
        "no log, no Redis",
        install=installation.nchan,
        starter=_nchan,
        needs_redis=False,
    ),
)


@contextlib.asynccontextmanager
async def running(
    contestant: Contestant, installed: Installed | None, *, instances: int = 1, **environ: str
) -> AsyncIterator[Running]:
    """Start it on a Redis of its own, and stop both. `environ` is for ours. Raises DidNotStartError."""
    async with contextlib.AsyncExitStack() as stack:
        redis: RedisServer | None = None
        if contestant.needs_redis:
            redis = await stack.enter_async_context(RedisServer(appendfsync=None))
        redis_pids = [redis.pid] if redis is not None else []
        if redis is not None and contestant.starter is None:
            fleet = DataplaneFleet()
            stack.push_async_callback(fleet.stop)
            environ = {"LOG_LEVEL": "warning", **UNLIMITED, **environ}
            try:
                ours = await fleet(redis, instances, wait_until_ready=True, **environ)
            except* DataplaneFailedError as errors:
                raise DidNotStartError(str(errors.exceptions[0])) from None
            yield Running([(one.host, one.port) for one in ours], [one.pid for one in ours], redis_pids)
            return
        if installed is None or contestant.starter is None:
            raise DidNotStartError(f"{contestant.title} is not installed")
        addresses: list[Address] = []
        pids: list[int] = []
        for _ in range(instances):
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tableforge-peer-")))
            port = free_port()
            command, variables = contestant.starter(
                installed, directory, port, redis.port if redis is not None else 0
            )
            child = Child(command, log=directory / "log", environ={**os.environ, **variables})
            stack.push_async_callback(child.stop)
            await _listens(child, port)
            addresses.append(("127.0.0.1", port))
            pids.append(child.pid)
        yield Running(addresses, pids, redis_pids)


async def _listens(child: Child, port: int) -> None:
    """Wait until somebody answers there. Raises DidNotStartError."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + STARTING_SECONDS
    while loop.time() < deadline and child.returncode is None:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.05)
            continue
        writer.close()
        return
    raise DidNotStartError(f"`{' '.join(child.command[:2])}` did not listen:\n{child.output()}")


async def install(wanted: Sequence[Contestant], say: Say) -> tuple[dict[str, Installed], dict[str, str]]:
    """What could be had, and for the others why not, by name."""
    found: dict[str, Installed] = {}
    missing: dict[str, str] = {}
    for contestant in wanted:
        if contestant.install is None:
            continue
        try:
            found[contestant.name] = await contestant.install(say)
        except MissingError as error:
            missing[contestant.name] = str(error)
            say(f"MISSING: {contestant.title}: {error}")
    return found, missing
