"""Several instances on one machine, on consecutive ports: started, watched, restarted, ended in order."""

import asyncio
import dataclasses
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Final

import aiohttp
import msgspec

from tableforge_dataplane.contract.endpoints import HEALTH_PATH, WS_PATH
from tableforge_dataplane.contract.settings import RoutingSettings, Settings
from tableforge_dataplane.launch.children import die_with
from tableforge_dataplane.launch.embedded import EmbeddedValkey
from tableforge_dataplane.observability.logging import EventLog

FIRST_LOOK_EVERY_SECONDS: Final = 0.1
"""Until an instance answers for the first time."""

ANSWER_SECONDS: Final = 10.0
START_SECONDS: Final = 60.0

MISSED_ANSWERS: Final = 3
"""In a row, after which an instance counts as hung and is killed."""

FIRST_DELAY_SECONDS: Final = 0.5
LONGEST_DELAY_SECONDS: Final = 30.0

STEADY_SECONDS: Final = 60.0
"""Who ran this long begins again with the shortest delay."""

GRACE_SECONDS: Final = 15.0
"""Beyond the drain, for an instance to end."""

KEEP_EVERY_SECONDS: Final = 1.0

_log = EventLog("supervisor")


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """One instance's name and ports."""

    name: str
    port: int
    http_port: int


def ports_problem(port: int, http_port: int, count: int) -> str | None:
    """Why `count` instances cannot follow one another from these ports on; None where they can."""
    if port == 0 or http_port == 0:
        return "--instances: needs ports that follow one another, and WS_PORT or TABLEFORGE_HTTP_PORT is 0."
    if max(port, http_port) + count - 1 > 65535:
        return f"--instances {count}: the ports from {max(port, http_port)} on end at 65535."
    if abs(port - http_port) < count:
        return (
            f"--instances {count}: the clients' ports from WS_PORT={port} on and the internal ones from "
            f"TABLEFORGE_HTTP_PORT={http_port} on overlap: put {count} between them."
        )
    return None


def address_problem(routing: RoutingSettings, count: int) -> str | None:
    """Why `count` instances cannot all have this address; None where they can."""
    if routing.mode != "Gateway" or not routing.address:
        return None
    return (
        f"--instances {count}: all would have TABLEFORGE_ROUTING_ADDRESS={routing.address}: leave it out, "
        "and each has one of its own."
    )


class StartFailedError(RuntimeError):
    """An instance ended before it ever answered: a restart would not help."""


class _Health(msgspec.Struct):
    status: str


class Supervisor:
    """`run()` returns the exit code once all have ended."""

    def __init__(
        self,
        settings: Settings,
        places: Sequence[Place],
        *,
        environ: Mapping[str, str],
        embedded: EmbeddedValkey | None,
    ) -> None:
        self._settings = settings
        self._places = list(places)
        self._environ = dict(environ)
        self._embedded = embedded
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._codes: dict[str, int] = {}
        """How each ended last."""
        self._answered: set[str] = set()
        """Who has ever answered."""
        self._ending = asyncio.Event()
        self._scheme = "https" if settings.websocket.tls_cert_file else "http"

    async def run(self) -> int:
        """Keep them until SIGTERM or SIGINT; 0 where all ended as they should."""
        loop = asyncio.get_running_loop()
        signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, signals.put_nowait, number)
        patience = min(ANSWER_SECONDS, max(0.5, self._settings.monitoring.health_check_interval_seconds))
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=patience)) as http:
            keepers = [asyncio.create_task(self._keep(place, http)) for place in self._places]
            ender = asyncio.create_task(self._end_on(signals))
            keeper_of_redis = asyncio.create_task(self._keep_redis())
            try:
                await asyncio.gather(*keepers)
                failed = False
            except StartFailedError:
                failed = True
                self._ending.set()
                self._send(signal.SIGTERM)
                await asyncio.gather(*keepers, return_exceptions=True)
            finally:
                for task in (ender, keeper_of_redis):
                    task.cancel()
                await asyncio.gather(ender, keeper_of_redis, return_exceptions=True)
        clean = not failed and all(code == 0 for code in self._codes.values())
        _log.info("supervisor_ends", codes=[f"{name}={code}" for name, code in self._codes.items()])
        return 0 if clean else 1

    async def _end_on(self, signals: "asyncio.Queue[signal.Signals]") -> None:
        number = await signals.get()
        _log.info("signal_received", signal=number.name)
        self._ending.set()
        self._send(signal.SIGTERM)
        try:
            # each drains by itself; a second signal means to them, too: no more waiting
            async with asyncio.timeout(self._settings.scaling.drain_seconds + GRACE_SECONDS):
                while True:
                    await signals.get()
                    self._send(signal.SIGTERM)
        except TimeoutError:
            _log.error("instances_killed", instances=sorted(self._processes))
            self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        for process in self._processes.values():
            if process.returncode is None:
                process.send_signal(number)

    async def _keep_redis(self) -> None:
        while self._embedded is not None:
            self._embedded.keep()
            await asyncio.sleep(KEEP_EVERY_SECONDS)

    async def _keep(self, place: Place, http: aiohttp.ClientSession) -> None:
        """One instance, over all its restarts, until the end."""
        delay = FIRST_DELAY_SECONDS
        while not self._ending.is_set():
            began = time.monotonic()
            process = await self._spawn(place)
            watching = asyncio.create_task(self._watch(place, process, http))
            code = await process.wait()
            watching.cancel()
            [seen] = await asyncio.gather(watching, return_exceptions=True)
            if isinstance(seen, Exception):
                raise seen
            self._processes.pop(place.name, None)
            self._codes[place.name] = code
            if self._ending.is_set():
                return
            if place.name not in self._answered:
                _log.error("instance_does_not_start", name=place.name, port=place.port, code=code)
                raise StartFailedError(place.name)
            if time.monotonic() - began >= STEADY_SECONDS:
                delay = FIRST_DELAY_SECONDS
            _log.error("instance_ended", name=place.name, code=code, again_in_seconds=delay)
            try:
                async with asyncio.timeout(delay):
                    await self._ending.wait()
            except TimeoutError:
                delay = min(delay * 2, LONGEST_DELAY_SECONDS)

    async def _spawn(self, place: Place) -> asyncio.subprocess.Process:
        environ = {
            **self._environ,
            "INSTANCE_ID": place.name,
            "WS_HOST": self._settings.websocket.host,
            "WS_PORT": str(place.port),
            "TABLEFORGE_HTTP_PORT": str(place.http_port),
        }
        if self._settings.routing.mode == "Gateway" and not self._settings.routing.address:
            environ["TABLEFORGE_ROUTING_ADDRESS"] = self._address(place)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tableforge_dataplane",
            "serve",
            env=environ,
            stdin=asyncio.subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C comes to us, and we end them in order
            preexec_fn=die_with(os.getpid()),
        )
        self._processes[place.name] = process
        if self._ending.is_set():
            process.terminate()
        _log.info("instance_started", name=place.name, port=place.port, pid=process.pid)
        return process

    def _address(self, place: Place) -> str:
        """Where clients reach this one. Who listens everywhere is reached as localhost from this machine."""
        host = self._settings.websocket.host
        host = {"0.0.0.0": "localhost", "::": "localhost", "": "localhost"}.get(host, host)  # noqa: S104
        scheme = "wss" if self._scheme == "https" else "ws"
        return f"{scheme}://{_bracketed(host)}:{place.port}{WS_PATH}"

    def _health_url(self, place: Place) -> str:
        host = self._settings.websocket.host
        host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104
        return f"{self._scheme}://{_bracketed(host)}:{place.port}{HEALTH_PATH}"

    async def _watch(
        self, place: Place, process: asyncio.subprocess.Process, http: aiohttp.ClientSession
    ) -> None:
        """Log what changes in its health, and kill it where it hangs."""
        told: str | None = None
        missed = 0
        interval = self._settings.monitoring.health_check_interval_seconds
        ends = time.monotonic() + START_SECONDS
        while process.returncode is None:
            status = await self._health(place, http)
            if status is None:
                missed += 1
                if (missed >= MISSED_ANSWERS) if told is not None else (time.monotonic() > ends):
                    _log.error("instance_hangs", name=place.name, pid=process.pid)
                    process.kill()
                    return
            else:
                missed = 0
                self._answered.add(place.name)
                if status != told:
                    _log.info("instance_health", name=place.name, status=status)
                    told = status
            settled = told not in (None, "starting")
            await asyncio.sleep(
                interval if settled and missed == 0 else FIRST_LOOK_EVERY_SECONDS * (1 + missed)
            )

    async def _health(self, place: Place, http: aiohttp.ClientSession) -> str | None:
        try:
            # over TLS it is ours all the same: we only ask whether it lives
            async with http.get(self._health_url(place), ssl=False) as response:
                return msgspec.json.decode(await response.read(), type=_Health).status
        except (aiohttp.ClientError, OSError, TimeoutError, msgspec.DecodeError):
            return None


def _bracketed(host: str) -> str:
    """As it stands in a URL."""
    return f"[{host}]" if ":" in host else host
