"""redis-py, connected the way our settings say: for everything off the message path."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from redis.asyncio import BlockingConnectionPool, Connection, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff
from redis.credentials import CredentialProvider
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from tableforge_dataplane.contract.settings import RedisSettings, Secret
from tableforge_dataplane.topology.nodes import CredentialsMissingError, Node, credentials, tls_arguments

Locate = Callable[[], Awaitable[Node]]
"""Says which server to connect to now. Raises NodeUnknownError."""


class PasswordMissingError(RedisError):
    """The file that holds the password is not there, empty or cannot be read."""


class _Credentials(CredentialProvider):
    """Reads the password at every connect, so that a rotated one counts without a restart."""

    def __init__(self, username: str, password: Secret, variable: str) -> None:
        self._username = username
        self._password = password
        self._variable = variable

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        try:
            found = credentials(self._username, self._password, variable=self._variable)
        except CredentialsMissingError as error:
            raise PasswordMissingError(str(error)) from None
        return (found[0], found[1]) if len(found) == 2 else (found[0],)

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        return self.get_credentials()


class _LocatedConnection(Connection):
    """Asks where to connect at each connect, and reads TLS's files then."""

    def __init__(self, *, locate: Locate, redis_settings: RedisSettings, **options: Any) -> None:
        super().__init__(**options)
        self._locate = locate
        self._redis_settings = redis_settings

    async def _connect(self) -> None:
        self.host, self.port = await self._locate()
        await super()._connect()  # type: ignore[no-untyped-call]

    def _connection_arguments(self) -> Mapping[str, Any]:
        return {
            "host": self.host,
            "port": self.port,
            **tls_arguments(self._redis_settings, self.host),
        }


def make_client(
    settings: RedisSettings,
    *,
    name: str,
    locate: Locate,
    timeout_seconds: float,
    retries: int = 0,
    database: int = 0,
    on_connect: Callable[[Connection], Awaitable[None]] | None = None,
    sentinel: bool = False,
) -> Redis:
    """A client with a single connection, made at the first call and again whenever it was lost.

    A call whose connection is lost is sent again `retries` times; one that gets no answer within
    `timeout_seconds` fails. `on_connect` replaces redis-py's own set-up and has to call it. `sentinel`:
    whether it talks to a sentinel, which has a user and a password of its own.
    """
    username, password, variable = settings.username, settings.password, "REDIS_PASSWORD"
    if sentinel:
        username, password = settings.sentinel_username, settings.sentinel_password
        variable = "TABLEFORGE_REDIS_SENTINEL_PASSWORD"
    more: dict[str, Any] = {}
    if password.configured:
        more["credential_provider"] = _Credentials(username, password, variable)
    if on_connect is not None:
        more["redis_connect_func"] = on_connect
    pool = BlockingConnectionPool(
        connection_class=_LocatedConnection,
        max_connections=1,
        timeout=timeout_seconds,
        locate=locate,
        redis_settings=settings,
        db=database,
        socket_timeout=timeout_seconds,
        socket_connect_timeout=min(settings.connect_timeout_seconds, timeout_seconds),
        socket_keepalive=True,
        protocol=2,
        retry=Retry(
            ConstantBackoff(settings.retry_delay_on_failover_seconds),
            retries,
            # a call without an answer took its whole time already
            supported_errors=(RedisConnectionError,),
        ),
        client_name=name,
        **more,
    )
    return Redis(connection_pool=pool)


async def ask_node(
    settings: RedisSettings,
    node: Node,
    *commands: tuple[str | bytes | int, ...],
    timeout_seconds: float,
    sentinel: bool = False,
) -> list[Any]:
    """The answers of `node` to a few commands, on a connection made for them.

    An error reply is raised, as what else redis-py raises.
    """

    async def here() -> Node:
        return node

    client = make_client(
        settings,
        name="tableforge-topology",
        locate=here,
        timeout_seconds=timeout_seconds,
        sentinel=sentinel,
    )
    try:
        async with asyncio.timeout(timeout_seconds):
            return [await client.execute_command(*command) for command in commands]
    finally:
        await client.connection_pool.disconnect()
