"""Asks the instances: one for the whole fleet, or, where none is ready, single ones what they wait for.

What answers is not trusted: an answer is bounded in time and size, redirects are not followed, and it counts
only when it is what the contract says.
"""

import asyncio
import dataclasses
import random
from collections.abc import Iterable, Sequence
from typing import Final, TypeVar

import aiohttp
import msgspec

from tableforge_dataplane.contract import endpoints
from tableforge_dataplane.contract.fleet import Fleet, FleetAnswer, FleetCommand, Health, RedisState
from tableforge_operator import metrics
from tableforge_operator.api import names
from tableforge_operator.api.spec.common import INTERNAL_PORT
from tableforge_operator.decide import ownership
from tableforge_operator.decide.findings import legible
from tableforge_operator.decide.snapshot import FleetView, Object

FLEET_TIMEOUT_SECONDS: Final = 3.0
HEALTH_TIMEOUT_SECONDS: Final = 2.0
COMMAND_TIMEOUT_SECONDS: Final = 5.0
COMMAND_LIMIT_BYTES: Final = 1024 * 1024
"""What became of a thousand moves stays below it."""
WHY_LIMIT: Final = 300
"""Characters of what an instance says when it refuses a command."""
FLEET_BASE_LIMIT_BYTES: Final = 1024 * 1024
FLEET_LIMIT_BYTES_PER_INSTANCE: Final = 64 * 1024
"""200 named rooms stay below it. Who wants to fill the operator's memory must run the pods for it."""
HEALTH_LIMIT_BYTES: Final = 64 * 1024
FLEET_ATTEMPTS: Final = 3
"""How many ready instances are tried before the fleet counts as silent."""
HEALTH_ASKED: Final = 5
"""How many instances that are not ready are asked: more would only say the same."""
CONCURRENT_READS: Final = 32
"""Fleets that are asked at the same time: those that are slow must not keep the others waiting."""
_REFUSALS: Final = {
    401: ": it knows another key, and will be replaced by one that knows this one",
    404: ": it has no key, the Secret is missing and is created anew",
}
_COMMAND_REFUSALS: Final = {
    401: _REFUSALS[401],
    404: ": its image is of a version that takes no commands, or it has no key yet",
    405: ": its image is of a version that takes no commands",
}
TEXT_LIMIT: Final = 2000
"""Characters of each text that is kept: every turn goes through them several times, and the event loop is
everybody's.
"""
COUNT_LIMIT: Final = 2**53
INSTANCES_LIMIT: Final = 2**31 - 1

Answer = TypeVar("Answer", Fleet, Health)


class _NoAnswerError(Exception):
    """An instance did not answer, or not what it should have."""

    def __init__(self, why: str, *, key_missing: bool = False) -> None:
        super().__init__(why)
        self.key_missing = key_missing


class CommandNotTakenError(Exception):
    """No instance has taken a command; the message says why."""


class FleetReader:
    """Reads fleets over HTTP, and gives them commands. `close` it."""

    def __init__(self, *, rng: random.Random | None = None) -> None:
        self._rng = rng or random.Random()  # noqa: S311 - which instance is asked first
        self._turn = asyncio.Semaphore(CONCURRENT_READS)
        self._session = aiohttp.ClientSession(
            cookie_jar=aiohttp.DummyCookieJar(),
            # Compressed answers would have to be bounded twice.
            auto_decompress=False,
            headers={"Accept": "application/json", "Accept-Encoding": "identity"},
            connector=aiohttp.TCPConnector(limit=4 * CONCURRENT_READS),
        )

    async def close(self) -> None:
        """Close every connection."""
        await self._session.close()

    async def read(
        self,
        *,
        addressees: "Addressees",
        fleet_key: str,
        managed_redis: bool,
        previous: FleetView,
    ) -> FleetView:
        """Ask the instances. The last word of a fleet that is silent now stays in the answer."""
        ready, waiting = list(addressees.ready), addressees.waiting
        self._rng.shuffle(ready)
        async with self._turn:
            (fleet, failures, key_missing), healths = await asyncio.gather(
                self._fleet(
                    ready[:FLEET_ATTEMPTS],
                    fleet_key,
                    limit_bytes=FLEET_BASE_LIMIT_BYTES
                    + FLEET_LIMIT_BYTES_PER_INSTANCE * (len(ready) + len(waiting)),
                ),
                self._healths(waiting[:HEALTH_ASKED]),
            )
        if fleet is not None:
            metrics.FLEET_READS.labels("ok").inc()
        elif ready or waiting:
            metrics.FLEET_READS.labels("health" if healths else "failed").inc()
        now = asyncio.get_running_loop().time()
        return FleetView(
            fleet=fleet or previous.fleet,
            fleet_at=now if fleet is not None else previous.fleet_at,
            healths=tuple(healths),
            failures=tuple(failures),
            secrets_doubted=key_missing or (managed_redis and _password_doubted(fleet, healths)),
        )

    async def command(
        self, *, addressees: "Addressees", fleet_key: str, command: FleetCommand
    ) -> FleetAnswer:
        """Give a command to one of the instances that are ready, for the whole fleet.

        The answer may be that a later operator has spoken (`stale`). Raises CommandNotTakenError.
        """
        ready = list(addressees.ready)
        self._rng.shuffle(ready)
        failures = []
        async with self._turn:
            for name, address in ready[:FLEET_ATTEMPTS]:
                try:
                    return await self._post(
                        f"http://{address}:{INTERNAL_PORT}{endpoints.FLEET_COMMANDS_PATH}", command, fleet_key
                    )
                except _NoAnswerError as error:
                    failures.append(f"pod {name}: {error}")
        raise CommandNotTakenError("; ".join(failures) or "no instance is ready")

    async def _post(self, url: str, command: FleetCommand, fleet_key: str) -> FleetAnswer:
        headers = {"Authorization": f"Bearer {fleet_key}", "Content-Type": "application/json"}
        timeout = aiohttp.ClientTimeout(total=COMMAND_TIMEOUT_SECONDS)
        try:
            async with self._session.post(
                url,
                data=msgspec.json.encode(command),
                headers=headers,
                timeout=timeout,
                allow_redirects=False,
            ) as response:
                body = await _bounded(response, COMMAND_LIMIT_BYTES)
                status, path = response.status, response.url.path
        except TimeoutError as error:
            raise _NoAnswerError(f"no answer in {COMMAND_TIMEOUT_SECONDS:g} s") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _NoAnswerError(legible(f"{type(error).__name__}: {error}")) from error
        if status not in (200, 409):
            why = (
                _COMMAND_REFUSALS.get(status) or f": {legible(body[:TEXT_LIMIT].decode('utf-8', 'replace'))}"
            )
            raise _NoAnswerError(f"{path} answered {status}{why[:WHY_LIMIT]}")
        try:
            answer = msgspec.json.decode(body, type=FleetAnswer)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _NoAnswerError(legible(f"its answer is not what it should be: {error}")) from error
        if answer.stale != (status == 409) or answer.fence < 0:
            raise _NoAnswerError(f"its answer ({status}) contradicts itself")
        return answer

    async def _fleet(
        self, ready: Sequence[tuple[str, str]], fleet_key: str, *, limit_bytes: int
    ) -> tuple[Fleet | None, list[str], bool]:
        failures: list[str] = []
        key_missing = False
        for name, address in ready:
            try:
                fleet = await self._get(
                    f"http://{address}:{INTERNAL_PORT}{endpoints.FLEET_PATH}",
                    Fleet,
                    limit_bytes=limit_bytes,
                    timeout_seconds=FLEET_TIMEOUT_SECONDS,
                    headers={"Authorization": f"Bearer {fleet_key}"},
                )
            except _NoAnswerError as error:
                failures.append(f"pod {name}: {error}")
                key_missing = key_missing or error.key_missing
                continue
            totals = fleet.totals
            if not (
                0 <= totals.instances <= INSTANCES_LIMIT
                and 0 <= totals.connections <= COUNT_LIMIT
                and 0 <= totals.rooms <= COUNT_LIMIT
                and all(
                    0 <= record.connections <= COUNT_LIMIT and 0 <= record.rooms <= COUNT_LIMIT
                    for record in fleet.instances
                )
            ):
                failures.append(f"pod {name}: its numbers are out of bounds")
                continue
            return msgspec.structs.replace(fleet, redis=_cut(fleet.redis)), failures, False
        return None, failures, key_missing

    async def _healths(self, waiting: Sequence[tuple[str, str]]) -> list[Health]:
        answers = await asyncio.gather(
            *(
                self._get(
                    f"http://{address}:{INTERNAL_PORT}{endpoints.HEALTH_PATH}",
                    Health,
                    limit_bytes=HEALTH_LIMIT_BYTES,
                    timeout_seconds=HEALTH_TIMEOUT_SECONDS,
                    headers={},
                )
                for _, address in waiting
            ),
            return_exceptions=True,
        )
        healths: list[Health] = []
        for answer in answers:
            if isinstance(answer, Health):
                waits = [sentence[:TEXT_LIMIT] for sentence in answer.waiting_for]
                healths.append(msgspec.structs.replace(answer, waiting_for=waits, redis=_cut(answer.redis)))
            elif not isinstance(answer, _NoAnswerError):
                # An instance that isn't ready may well not answer yet; anything else is a fault of ours.
                raise answer
        return sorted(healths, key=lambda health: health.instance)

    async def _get(
        self,
        url: str,
        kind: type[Answer],
        *,
        limit_bytes: int,
        timeout_seconds: float,
        headers: dict[str, str],
    ) -> Answer:
        timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        try:
            async with self._session.get(
                url, headers=headers, timeout=timeout, allow_redirects=False
            ) as response:
                if response.status != 200 and not (kind is Health and response.status == 503):
                    why = _REFUSALS.get(response.status, "") if kind is Fleet else ""
                    raise _NoAnswerError(
                        f"{response.url.path} answered {response.status}{why}",
                        key_missing=kind is Fleet and response.status == 404,
                    )
                body = await _bounded(response, limit_bytes)
        except TimeoutError as error:
            raise _NoAnswerError(f"no answer in {timeout_seconds:g} s") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _NoAnswerError(legible(f"{type(error).__name__}: {error}")) from error
        try:
            answer: Answer = msgspec.json.decode(body, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _NoAnswerError(legible(f"its answer is not what it should be: {error}")) from error
        return answer


def _password_doubted(fleet: Fleet | None, healths: Sequence[Health]) -> bool:
    # Where the newest is gone, an instance takes an older one, which Redis refuses.
    without = ("PasswordMissing", "AuthenticationFailed")
    if any(health.redis.reason in without for health in healths):
        return True
    # And a pod of Redis that is replaced does not start, while the instances stay ready.
    return fleet is not None and fleet.redis.reason in (*without, "Unreachable")


async def _bounded(response: aiohttp.ClientResponse, limit_bytes: int) -> bytearray:
    body = bytearray()
    async for chunk in response.content.iter_chunked(65536):
        body += chunk
        if len(body) > limit_bytes:
            raise _NoAnswerError(f"its answer is longer than {limit_bytes} bytes")
    return body


def _cut(redis: RedisState) -> RedisState:
    return msgspec.structs.replace(
        redis, message=redis.message[:TEXT_LIMIT], version=redis.version[:TEXT_LIMIT]
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Addressees:
    """Whom to ask: name and address of the instances that are ready, and of those that run and are not."""

    ready: tuple[tuple[str, str], ...]
    waiting: tuple[tuple[str, str], ...]


def addressees(pods: Iterable[Object], deployments: Iterable[Object]) -> Addressees:
    """The instances among pods.

    Only pods of the cluster's own Deployments: a ReplicaSet controls the pod, and its name is made of the
    Deployment's and of the pod's template hash.
    """
    fleets = {deployment["metadata"]["name"] for deployment in deployments}
    ready: list[tuple[str, str]] = []
    waiting: list[tuple[str, str]] = []
    for pod in sorted(pods, key=lambda pod: str(pod["metadata"]["name"])):
        metadata, state = pod["metadata"], pod.get("status") or {}
        labels, owner = metadata.get("labels") or {}, ownership.controller(pod)
        template = labels.get("pod-template-hash")
        if (
            labels.get(names.COMPONENT_LABEL) != names.DATAPLANE
            or owner is None
            or owner.get("kind") != "ReplicaSet"
            or owner.get("name") not in {f"{fleet}-{template}" for fleet in fleets}
            or metadata.get("deletionTimestamp")
            or state.get("phase") != "Running"
            or not state.get("podIP")
        ):
            continue
        address = f"[{state['podIP']}]" if ":" in state["podIP"] else state["podIP"]
        is_ready = any(
            condition.get("type") == "Ready" and condition.get("status") == "True"
            for condition in state.get("conditions") or ()
        )
        (ready if is_ready else waiting).append((metadata["name"], address))
    return Addressees(ready=tuple(ready), waiting=tuple(waiting))
