"""Probes and lifecycle hooks: one look at a container, and the loops that look again and again."""

import asyncio
import dataclasses
import os
import ssl
from collections.abc import Awaitable, Callable
from typing import Literal

import aiohttp
import yarl

from devcluster.agent.api import Object
from devcluster.agent.sandbox import SandboxError, SandboxProcess

OUTPUT_LIMIT = 10 * 1024
EXEC_START_SECONDS = 15.0

Kind = Literal["Startup", "Liveness", "Readiness"]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one look gave."""

    success: bool
    message: str = ""


@dataclasses.dataclass(frozen=True)
class Target:
    """The container that is looked at."""

    address: str
    spec: Object
    """The container's spec: named ports are looked up in it."""
    run: Callable[[list[str]], Awaitable[SandboxProcess]]
    """Starts a program inside it. Raises SandboxError."""
    http: aiohttp.ClientSession

    def port(self, given: int | str) -> int:
        """A port by number or name. Raises ValueError."""
        if isinstance(given, int):
            return given
        for port in self.spec.get("ports") or []:
            if port.get("name") == given:
                number: int = port["containerPort"]
                return number
        if given.isdigit():
            return int(given)
        raise ValueError(f"the container has no port {given!r}")


def http_session() -> aiohttp.ClientSession:
    """A session for probes: nothing is kept, no certificate is checked, as with a kubelet."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=context, force_close=True, limit=0),
        headers={"User-Agent": "kube-probe/devcluster", "Accept": "*/*"},
        cookie_jar=aiohttp.DummyCookieJar(),
    )


async def look(handler: Object, target: Target, timeout_seconds: float) -> Outcome:
    """Do what a probe's or hook's handler says, once."""
    try:
        if (one := handler.get("exec")) is not None:
            return await _exec(one.get("command") or [], target, timeout_seconds)
        async with asyncio.timeout(timeout_seconds):
            if (one := handler.get("httpGet")) is not None:
                return await _http(one, target)
            if (one := handler.get("tcpSocket")) is not None:
                return await _tcp(one, target)
            if (one := handler.get("sleep")) is not None:
                await asyncio.sleep(one.get("seconds", 0))
                return Outcome(success=True)
    except TimeoutError:
        return Outcome(success=False, message=f"timed out after {timeout_seconds:g}s")
    except ValueError as error:
        return Outcome(success=False, message=str(error))
    if "grpc" in handler:
        return Outcome(success=False, message="gRPC probes are not supported by this node")
    return Outcome(success=False, message=f"no supported handler among {sorted(handler)}")


async def _http(action: Object, target: Target) -> Outcome:
    """Any answer from 200 to 399 will do; a redirect is not followed."""
    host, port = action.get("host") or target.address, target.port(action["port"])
    path = action.get("path") or "/"
    scheme = action.get("scheme", "HTTP").lower()
    text = f"{scheme}://{host}:{port}/{path.removeprefix('/')}"
    headers = {one["name"]: one.get("value", "") for one in action.get("httpHeaders") or []}
    try:
        async with target.http.get(
            yarl.URL(text, encoded=True), headers=headers, allow_redirects=False
        ) as response:
            if 200 <= response.status < 400:
                return Outcome(success=True)
            return Outcome(success=False, message=f"HTTP probe failed with statuscode: {response.status}")
    except aiohttp.ClientConnectorError as error:
        return Outcome(
            success=False, message=f'Get "{text}": dial tcp {host}:{port}: {_refusal(error.os_error)}'
        )
    except (aiohttp.ClientError, OSError) as error:
        return Outcome(success=False, message=f'Get "{text}": {error}')


async def _tcp(action: Object, target: Target) -> Outcome:
    host, port = action.get("host") or target.address, target.port(action["port"])
    try:
        _, writer = await asyncio.open_connection(host, port)
    except OSError as error:
        return Outcome(success=False, message=f"dial tcp {host}:{port}: {_refusal(error)}")
    writer.close()
    return Outcome(success=True)


def _refusal(error: OSError) -> str:
    return os.strerror(error.errno).lower() if error.errno else str(error)


async def _exec(command: list[str], target: Target, timeout_seconds: float) -> Outcome:
    try:
        # On a busy machine this alone may take longer than a probe's usual second: no news of the pod.
        async with asyncio.timeout(EXEC_START_SECONDS):
            process = await target.run(command)
    except SandboxError as error:
        return Outcome(success=False, message=str(error))
    except TimeoutError:
        return Outcome(success=False, message=f"could not be started within {EXEC_START_SECONDS:g}s")
    try:
        async with asyncio.timeout(timeout_seconds):
            output, errors = await asyncio.gather(_bounded(process.stdout), _bounded(process.stderr))
            code = await process.wait()
    finally:
        process.kill()
    text = (output + errors).decode(errors="replace").strip()
    return Outcome(success=code == 0, message=text or f"command ended with exit code {code}")


async def _bounded(reader: asyncio.StreamReader) -> bytes:
    """What is written, of which only the first part is kept."""
    kept = b""
    while data := await reader.read(OUTPUT_LIMIT):
        kept += data[: OUTPUT_LIMIT - len(kept)]
    return kept


@dataclasses.dataclass(frozen=True)
class Timing:
    """When a probe looks and how many looks make a verdict."""

    initial_delay_seconds: float
    period_seconds: float
    timeout_seconds: float
    success_threshold: int
    failure_threshold: int

    @classmethod
    def of(cls, probe: Object) -> "Timing":
        """A probe's timing, with the API's defaults."""
        return cls(
            initial_delay_seconds=probe.get("initialDelaySeconds") or 0,
            period_seconds=probe.get("periodSeconds") or 10,
            timeout_seconds=probe.get("timeoutSeconds") or 1,
            success_threshold=probe.get("successThreshold") or 1,
            failure_threshold=probe.get("failureThreshold") or 3,
        )


class Verdict:
    """Counts outcomes in a row until they are enough to change one's mind."""

    def __init__(self, timing: Timing, *, initially: bool) -> None:
        self._timing = timing
        self._last: bool | None = None
        self._in_a_row = 0
        self.success = initially

    def add(self, success: bool) -> bool:
        """Count an outcome; whether the verdict is reached (again) with it."""
        self._in_a_row = self._in_a_row + 1 if success == self._last else 1
        self._last = success
        needed = self._timing.success_threshold if success else self._timing.failure_threshold
        if self._in_a_row < needed:
            return False
        self.success = success
        return True


async def probe_until_cancelled(
    probe: Object,
    check: Callable[[Object, float], Awaitable[Outcome]],
    *,
    initially: bool,
    on_failure: Callable[[str], None],
    on_verdict: Callable[[bool], None],
) -> None:
    """Look every period; tell each failure's message, and each verdict."""
    timing = Timing.of(probe)
    verdict = Verdict(timing, initially=initially)
    loop = asyncio.get_running_loop()
    next_look = loop.time() + timing.initial_delay_seconds
    while True:
        await asyncio.sleep(max(0.0, next_look - loop.time()))
        # Looks that took longer than the period are not made up for.
        next_look = max(next_look + timing.period_seconds, loop.time())
        outcome = await check(probe, timing.timeout_seconds)
        if not outcome.success:
            on_failure(outcome.message)
        if verdict.add(outcome.success):
            on_verdict(verdict.success)


async def stop(*tasks: asyncio.Task[None]) -> None:
    """Cancel loops and wait until they have ended; one that failed has told so already."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
