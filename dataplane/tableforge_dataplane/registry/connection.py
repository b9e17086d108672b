"""The registry's own connection to Redis, and what its failures mean."""

import asyncio
from collections.abc import Callable
from typing import Any, Literal

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider
from redis.exceptions import (
    AuthenticationError,
    AuthenticationWrongNumberOfArgsError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from tableforge_dataplane.contract.fleet import RedisState
from tableforge_dataplane.contract.settings import RedisSettings, Secret

Reason = Literal[
    "Connected", "Unreachable", "AuthenticationFailed", "OutOfMemory", "ReadOnly", "PasswordMissing"
]

REDIS_FAILURES = (RedisError, OSError, asyncio.TimeoutError)
"""What a call may raise where Redis is away, refuses, or answers with an error."""


class PasswordMissingError(RedisError):
    """The file that holds the password is not there, empty or cannot be read."""


class _PasswordFile(CredentialProvider):
    """Reads the password at every connect, so that a rotated one counts without a restart."""

    def __init__(self, secret: Secret) -> None:
        self._secret = secret

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        try:
            password = self._secret.read()
        except (OSError, UnicodeDecodeError) as error:
            raise PasswordMissingError(
                f"REDIS_PASSWORD_FILE={self._secret.file} cannot be read: {error}"
            ) from None
        if password is None:
            raise PasswordMissingError(f"REDIS_PASSWORD_FILE={self._secret.file} does not exist or is empty")
        return (password,)

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        return self.get_credentials()


def connect(settings: RedisSettings, *, timeout_seconds: float, on_connect: Callable[[], None]) -> Redis:
    """A client with a single connection that is made at the first call and again whenever it was lost.

    `on_connect` is called at each of those. A call that finds no connection, or gets no answer within
    `timeout_seconds`, fails; nothing is retried here.
    """

    async def connected(connection: AbstractConnection) -> None:
        await connection.on_connect()
        on_connect()

    more: dict[str, Any] = {}
    if settings.password.configured:
        more["credential_provider"] = _PasswordFile(settings.password)
    pool = BlockingConnectionPool(
        max_connections=1,
        timeout=timeout_seconds,
        host=settings.host,
        port=settings.port,
        db=settings.database,
        socket_timeout=timeout_seconds,
        socket_connect_timeout=min(settings.connect_timeout_seconds, timeout_seconds),
        socket_keepalive=True,
        protocol=2,
        retry=Retry(NoBackoff(), 0),
        redis_connect_func=connected,
        client_name="tableforge-registry",
        **more,
    )
    return Redis(connection_pool=pool)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Redis refused a write for want of memory (6.2 wraps the error of a script in another)."""
    return isinstance(error, OutOfMemoryError) or (isinstance(error, ResponseError) and "-OOM " in str(error))


def state_of(error: BaseException, settings: RedisSettings) -> RedisState:
    """What a failed call says about Redis, in one sentence with what would be right."""
    where = f"Redis at {settings.host}:{settings.port}"
    reason: Reason = "Unreachable"
    if isinstance(error, PasswordMissingError):
        reason = "PasswordMissing"
        message = f"{error}: create the Secret that holds the password of {where}."
    elif isinstance(error, (AuthenticationError, AuthenticationWrongNumberOfArgsError, NoPermissionError)):
        reason = "AuthenticationFailed"
        if settings.password.configured:
            message = f"{where} refused the password: put the right one into REDIS_PASSWORD(_FILE)."
        else:
            message = f"{where} wants a password: set REDIS_PASSWORD or REDIS_PASSWORD_FILE."
    elif is_out_of_memory(error):
        reason = "OutOfMemory"
        message = f"{where} has reached its maxmemory: give it more memory."
    elif isinstance(error, ReadOnlyError):
        reason = "ReadOnly"
        message = f"{where} is a read-only replica: name the primary in REDIS_HOST."
    else:
        # a failed pipeline repeats its commands, with all their arguments
        what = str(error)[:200] or type(error).__name__
        message = f"{where} does not answer as it should ({what}): see that it runs and REDIS_HOST names it."
    return RedisState(connected=False, reason=reason, message=message, durability=settings.durability)
