"""The registry's own connection to Redis, and what its failures mean."""

import asyncio
import re
from collections.abc import Callable
from typing import Final, Literal

from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthenticationWrongNumberOfArgsError,
    ClusterDownError,
    MovedError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)

from tableforge_dataplane.contract.fleet import RedisState
from tableforge_dataplane.contract.settings import RedisSettings
from tableforge_dataplane.topology.client import Locate, PasswordMissingError, make_client
from tableforge_dataplane.topology.topology import topology_of

Reason = Literal[
    "Connected", "Unreachable", "AuthenticationFailed", "OutOfMemory", "ReadOnly", "PasswordMissing"
]


_REFUSAL: Final = re.compile(r"(?:^|-|error: )(OOM|MISCONF|NOREPLICAS) ")
"""As it is, in the error that Redis 6.2 makes of a script's, and in redis-py's of a pipeline's."""


class CircuitOpenError(RedisError):
    """Redis failed several times in a row and is left alone for a moment: it was not asked."""


REDIS_FAILURES = (RedisError, OSError, asyncio.TimeoutError)
"""What a call may raise where Redis is away, refuses, or answers with an error."""


MOVED_FAILURES = (MovedError, AskError, TryAgainError, ClusterDownError)
"""What a node of a Redis Cluster says of keys that it does not (or not for now) have."""


def connect(
    settings: RedisSettings,
    *,
    timeout_seconds: float,
    on_connect: Callable[[], None],
    locate: Locate | None = None,
) -> Redis:
    """A client with a single connection that is made at the first call and again whenever it was lost.

    `on_connect` is called at each of those. `locate` says where to connect to, each time; None: REDIS_HOST.
    All of the registry's keys have one hash tag, so that in a Redis Cluster one server holds them, whose
    clock is the registry's. A call that gets no answer within `timeout_seconds` fails.
    """

    async def connected(connection: AbstractConnection) -> None:
        await connection.on_connect()
        on_connect()

    return make_client(
        settings,
        name="tableforge-registry",
        locate=locate or topology_of(settings).locate,
        timeout_seconds=timeout_seconds,
        retries=settings.max_retries_per_request,
        database=settings.database,
        on_connect=connected,
    )


def refusal_in(error: BaseException) -> str | None:
    """The code by which a server that is the right one refused a write for now; None for anything else."""
    if isinstance(error, OutOfMemoryError):
        return "OOM"
    found = _REFUSAL.search(str(error)) if isinstance(error, ResponseError) else None
    return found[1] if found is not None else None


def is_read_only(error: BaseException) -> bool:
    """Whether it is a replica that was to be written to (6.2 wraps what it refuses a script)."""
    return isinstance(error, ReadOnlyError) or (
        isinstance(error, ResponseError) and "-READONLY " in str(error)
    )


def is_elsewhere(error: BaseException) -> bool:
    """Whether this server is not (or not for now) the one that holds the registry."""
    return isinstance(error, MOVED_FAILURES) or is_read_only(error)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Redis refused a write for want of memory."""
    return refusal_in(error) == "OOM"


def state_of(error: BaseException, settings: RedisSettings) -> RedisState:
    """What a failed call says about Redis, in one sentence with what would be right."""
    where = f"Redis at {topology_of(settings).where}"
    reason: Reason = "Unreachable"
    if isinstance(error, PasswordMissingError):
        reason = "PasswordMissing"
        message = str(error)
    elif isinstance(error, (AuthenticationError, AuthenticationWrongNumberOfArgsError, NoPermissionError)):
        reason = "AuthenticationFailed"
        if settings.password.configured:
            message = f"{where} refused the password: put the right one into REDIS_PASSWORD(_FILE)."
        else:
            message = f"{where} wants a password: set REDIS_PASSWORD or REDIS_PASSWORD_FILE."
    elif (code := refusal_in(error)) == "OOM":
        reason = "OutOfMemory"
        message = f"{where} has reached its maxmemory: give it more memory."
    elif code == "MISCONF":
        reason = "ReadOnly"
        message = f"{where} cannot write to its disk (MISCONF): give it room and rights there."
    elif code == "NOREPLICAS":
        reason = "ReadOnly"
        message = f"{where} has too few replicas to take writes (NOREPLICAS): bring them back."
    elif is_read_only(error):
        reason = "ReadOnly"
        message = f"{where} is a read-only replica: name the primary."
    else:
        # a failed pipeline repeats its commands, with all their arguments
        what = str(error)[:200] or type(error).__name__
        message = f"{where} does not answer as it should ({what}): see that it runs and is named rightly."
    return RedisState(connected=False, reason=reason, message=message, durability=settings.durability)
