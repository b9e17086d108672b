"""The registry's way to Redis: one connection, its scripts, and what calls tell of Redis."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from importlib import resources
from typing import Any, Final

from redis.commands.core import AsyncScript
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from tableforge_dataplane.contract.fleet import RedisState
from tableforge_dataplane.contract.settings import Settings
from tableforge_dataplane.observability.breaker import CircuitBreaker
from tableforge_dataplane.observability.logging import EventLog
from tableforge_dataplane.observability.metrics import Metrics
from tableforge_dataplane.registry.connection import (
    CircuitOpenError,
    connect,
    is_elsewhere,
    refusal_in,
    state_of,
)
from tableforge_dataplane.registry.keys import RegistryKeys
from tableforge_dataplane.registry.liveness import Liveness
from tableforge_dataplane.topology.client import Locate
from tableforge_dataplane.topology.topology import topology_of

BREAKER_FAILURES: Final = 3
"""So many calls in a row that Redis did not answer open the circuit breaker."""

BREAKER_OPEN_SECONDS: Final = 0.5

BREAKER_LONGEST_SECONDS: Final = 2.0
"""Short, because leases have to be renewed soon after Redis is back."""

MENDED_REMEMBERED: Final = 1000
"""Keys whose nonsense was told of; it is told once each."""

_log = EventLog("registry")


class Link:
    """What is beside the message path asks Redis over this, one call after the other."""

    def __init__(
        self, settings: Settings, *, metrics: Metrics, liveness: Liveness, locate: Locate | None = None
    ) -> None:
        """`liveness` is told when Redis answered, and when it did not."""
        self._settings = settings
        self._metrics = metrics
        self._liveness = liveness
        self.keys = RegistryKeys(settings.redis.key_prefix)
        self._breaker = CircuitBreaker(
            threshold=BREAKER_FAILURES,
            open_seconds=BREAKER_OPEN_SECONDS,
            longest_seconds=BREAKER_LONGEST_SECONDS,
        )
        self.redis = connect(
            settings.redis,
            # an answer that takes longer than a third of the timeout comes too late for the lease
            timeout_seconds=max(0.1, min(5.0, settings.scaling.failover_timeout_seconds / 3)),
            on_connect=liveness.redis_failed,
            locate=locate,
        )
        self._scripts: dict[str, AsyncScript] = {}
        self._mended: dict[str, None] = {}
        self.state = RedisState(
            connected=False,
            reason="Connecting",
            message=f"Connecting to Redis at {topology_of(settings.redis).where}.",
            durability=settings.redis.durability,
        )
        """How this connection sees Redis."""
        self.on_refusal: Callable[[str], None] = _no_matter
        """Called with the code by which Redis refuses writes for now."""

    async def run(self, script: str, *, keys: list[str], args: list[Any]) -> Any:
        """The answer of one of the registry's scripts. Raises what `call` does."""
        return await self.call(self._script(script, lambda: _text(script))(keys=keys, args=args))

    async def run_directory(self, script: str, *args: Any, package: str = __package__) -> Any:
        """The answer of a script that works on the directory of homes. Raises what `call` does.

        `script`: the name of its file in the folder `scripts` of `package`.
        """

        def text() -> str:
            return f"{_text('directory')}\n{_text(script, package)}"

        mended, *answer = await self.call(
            self._script(f"{package}/{script}", text)(keys=[self.keys.homes], args=list(args))
        )
        for key in mended:
            self.mended(key.decode("utf-8", "replace"))
        return answer[0]

    def mended(self, what: str) -> None:
        """There was nonsense in the directory, and was removed: it is counted, and told once."""
        self._metrics.directory_mended += 1
        if what not in self._mended and len(self._mended) < MENDED_REMEMBERED:
            self._mended[what] = None
            _log.warning(
                "directory_mended",
                what=what,
                advice="Something else writes to Redis below this cluster's key prefix: it should not.",
            )

    async def call(self, call: Awaitable[Any]) -> Any:
        """The answer to a call. Raises one of REDIS_FAILURES."""
        if not self._breaker.may_try():
            if asyncio.iscoroutine(call):
                call.close()
            raise CircuitOpenError(f"left alone after failures: {self.state.message}")
        try:
            answer = await call
        except (TimeoutError, RedisConnectionError, RedisTimeoutError, OSError):
            self._breaker.failed()
            raise
        except RedisError as error:
            self._breaker.succeeded()  # an error is an answer
            if is_elsewhere(error):
                # the next call asks again where the registry is
                await self.redis.connection_pool.disconnect()
            raise
        except asyncio.CancelledError:
            if self._breaker.state == "half-open":
                self._breaker.failed()  # nobody knows: somebody else has to try
            raise
        finally:
            self._metrics.breakers["registry"] = self._breaker.state
            # Before Python 3.12 `asyncio.wait_for`, with which redis-py writes, can swallow a cancellation:
            # without this the instance now and then would not end.
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise asyncio.CancelledError
        self._breaker.succeeded()
        self._metrics.breakers["registry"] = self._breaker.state
        self._liveness.redis_answered(monotonic=time.monotonic())
        # The pool is not fair: who asks again at once would have its only connection before those who wait,
        # and placing many rooms would cost the lease.
        await asyncio.sleep(0)
        return answer

    def succeeded(self) -> None:
        """Redis did what it was asked for."""
        if not self.state.connected:
            redis = self._settings.redis
            self.state = RedisState(
                connected=True,
                reason="Connected",
                message=f"Redis at {topology_of(redis).where} answers.",
                durability=redis.durability,
            )
            _log.info("redis_connected")

    def failed(self, error: BaseException) -> None:
        """A call raised it."""
        if isinstance(error, CircuitOpenError):
            return  # what it was left alone for has been told
        self._liveness.redis_failed()
        self._metrics.heartbeats_failed += 1
        if (code := refusal_in(error)) is not None:
            self.on_refusal(code)
        state = state_of(error, self._settings.redis)
        if self.state.reason != state.reason:
            _log.warning("redis_lost", reason=state.reason, message=state.message)
        self.state = state

    async def close(self) -> None:
        """End the connection."""
        await self.redis.aclose()
        await self.redis.connection_pool.disconnect()

    def _script(self, name: str, text: Callable[[], str]) -> AsyncScript:
        script = self._scripts.get(name)
        if script is None:
            script = self._scripts[name] = self.redis.register_script(text())
        return script


def _no_matter(_code: str) -> None:
    return None


def _text(script: str, package: str = __package__) -> str:
    return (resources.files(package) / "scripts" / f"{script}.lua").read_text(encoding="utf-8")
