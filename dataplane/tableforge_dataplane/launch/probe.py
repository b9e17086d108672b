"""What a Redis is, seen from outside: asked with a few commands, of which two write a key and remove it.

Where a command isn't allowed (clouds forbid CONFIG), the fact is unknown and nothing is concluded from it.
"""

import dataclasses
import re
import socket
import ssl
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import redis
from redis.backoff import NoBackoff
from redis.connection import Connection, ConnectionPool, SSLConnection
from redis.retry import Retry
from redis.sentinel import Sentinel

from tableforge_dataplane.broker.durability import syncs_can_be_waited_for
from tableforge_dataplane.contract.settings import RedisSettings
from tableforge_dataplane.registry.keys import REGISTRY_SLOT, RegistryKeys
from tableforge_dataplane.topology.nodes import (
    REDIS_PORT,
    SENTINEL_PORT,
    CredentialsMissingError,
    Node,
    credentials,
    parse_nodes,
    tls_context,
)
from tableforge_dataplane.topology.slots import SlotMap, tag_of

SAMPLES: Final = 15
"""Writes whose duration is measured; the median counts."""

SYNC_SAMPLES: Final = 3
"""Fewer of these: with `everysec` each takes a second."""

SYNC_WAIT_MS: Final = 5000
CONFIG_NAMES: Final = (
    "maxmemory",
    "maxmemory-policy",
    "appendonly",
    "appendfsync",
    "client-output-buffer-limit",
    "min-replicas-to-write",
)

REDIS_FAILURES: Final = (redis.RedisError, OSError, ValueError, CredentialsMissingError)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """One server that takes writes."""

    where: str
    product: str
    version: str
    compatible: tuple[int, ...]
    """The Redis version whose commands it has."""
    config: Mapping[str, str | None]
    """None where it cannot be asked for."""
    aof_enabled: bool
    aof_failing: bool
    role: str
    replicas_online: int
    used_memory_bytes: int
    maxmemory_bytes: int
    write_seconds: float | None
    """Median of a small write; None where it took none."""
    write_problem: str | None
    sync_seconds: float | None
    """Median of a write and the wait until it is on disk; None where that cannot be waited for."""
    clock_offset_seconds: float
    """Redis's clock less ours."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RedisFacts:
    """The whole Redis."""

    nodes: tuple[NodeFacts, ...]
    problems: tuple[str, ...] = ()
    """Sentences about what cannot be reached or is broken as a whole."""
    warnings: tuple[str, ...] = ()
    instances: int | None = None
    """Instances registered under the key prefix."""
    claimed_by: str | None = None
    """The cluster that holds the claim on it; None where nobody does, or it cannot be asked for."""


class _Tls(SSLConnection):
    """TLS as instances speak it, with the same trust: no password is sent to who is not who it should be."""

    def __init__(self, *, redis_settings: RedisSettings, **options: Any) -> None:
        super().__init__(**options)
        self._redis_settings = redis_settings

    def _wrap_socket_with_ssl(self, sock: socket.socket) -> ssl.SSLSocket:
        context = tls_context(self._redis_settings)
        if context is None:
            raise ValueError("this connection is for TLS only")
        return context.wrap_socket(sock, server_hostname=self._redis_settings.tls_server_name or self.host)


def probe(settings: RedisSettings) -> RedisFacts:
    """Asks everything, one thing after another; takes a second or so, longer where nothing answers."""
    try:
        if settings.mode == "Cluster":
            return _probe_cluster(settings)
        if settings.mode == "Sentinel":
            return _probe_sentinel(settings)
        return _probe_one(settings, Node(settings.host, settings.port))
    except REDIS_FAILURES as error:
        return RedisFacts(nodes=(), problems=(_sentence(settings, error),))


def _probe_one(settings: RedisSettings, node: Node) -> RedisFacts:
    with _client(settings, node) as client:
        facts = _facts(client, str(node), key=f"tf:{settings.key_prefix}:{{check}}")
        instances, claimed_by = _registered(client, settings)
    return RedisFacts(nodes=(facts,), instances=instances, claimed_by=claimed_by)


def _probe_sentinel(settings: RedisSettings) -> RedisFacts:
    addresses = parse_nodes(settings.addresses, default_port=SENTINEL_PORT)
    sentinel = Sentinel([])
    sentinel.sentinels = [_client(settings, node, sentinel=True) for node in addresses]
    name = settings.sentinel_master_name
    problems: list[str] = []
    away = []
    try:
        for node, one in zip(addresses, list(sentinel.sentinels), strict=True):
            try:
                one.sentinel_ckquorum(name)
            except redis.ConnectionError:
                away.append(str(node))
            except redis.ResponseError as error:
                problems.append(f"The sentinel at {node} says of {name}: {error}.")
        host, port = sentinel.discover_master(name)
    finally:
        for one in sentinel.sentinels:
            one.close()
    found = _probe_one(settings, Node(host, port))
    warnings = (f"No answer from these sentinels: {', '.join(away)}.",) if away else ()
    return dataclasses.replace(found, problems=tuple(problems[:1]), warnings=warnings)


def _probe_cluster(settings: RedisSettings) -> RedisFacts:
    info, slots = _slots(settings)
    problems: list[str] = []
    warnings: list[str] = []
    facts: list[NodeFacts] = []
    instances, claimed_by = None, None
    if info.get("cluster_state") != "ok":
        problems.append(f"The cluster's state is {info.get('cluster_state')}: see `CLUSTER INFO`.")
    if int(info.get("cluster_slots_fail", 0)):
        problems.append(f"{info['cluster_slots_fail']} slots have no working node.")
    for node in sorted(slots.primaries):
        key = f"tf:{settings.key_prefix}:check:{{{tag_of(slots.first_of(node) or 0).decode()}}}"
        try:
            with _client(settings, node) as client:
                facts.append(_facts(client, str(node), key=key))
                if slots.owners[REGISTRY_SLOT] == node:
                    instances, claimed_by = _registered(client, settings)
        except REDIS_FAILURES as error:
            problems.append(_sentence(settings, error, where=str(node)))
    lonely = [fact.where for fact in facts if fact.replicas_online == 0]
    if lonely:
        warnings.append(f"Primaries without a replica, whose rooms stop with them: {', '.join(lonely)}.")
    return RedisFacts(
        nodes=tuple(facts),
        problems=tuple(problems),
        warnings=tuple(warnings),
        instances=instances,
        claimed_by=claimed_by,
    )


def _slots(settings: RedisSettings) -> tuple[dict[str, str], SlotMap]:
    """What the first node that answers knows of the cluster. Raises what the last one failed with."""
    failure: Exception = ValueError("no node of it is named")
    for node in parse_nodes(settings.addresses, default_port=REDIS_PORT):
        try:
            with _client(settings, node) as client:
                text = str(client.execute_command("CLUSTER", "INFO"))
                answer = client.execute_command("CLUSTER", "SLOTS")
        except REDIS_FAILURES as error:
            failure = error
            continue
        pairs = (line.partition(":") for line in text.splitlines())
        return {name: value for name, colon, value in pairs if colon}, SlotMap.of(answer, asked=node)
    raise failure


def _registered(client: "redis.Redis", settings: RedisSettings) -> tuple[int | None, str | None]:
    """How many instances there are under the key prefix, and which cluster claims it."""
    keys = RegistryKeys(settings.key_prefix)
    return _unless_refused(lambda: client.hlen(keys.records)), _unless_refused(lambda: client.get(keys.claim))


def _facts(client: "redis.Redis", where: str, *, key: str | None) -> NodeFacts:
    before = time.time()
    seconds, micros = client.time()
    offset = seconds + micros / 1e6 - (before + time.time()) / 2
    info: dict[str, Any] = dict(client.info())
    config: dict[str, str | None] = {}
    for name in CONFIG_NAMES:
        answer = _unless_refused(lambda name=name: client.config_get(name))  # type: ignore[misc]
        value = answer.get(name) if isinstance(answer, dict) else None
        config[name] = None if value is None else str(value)
    redis_version = str(info.get("redis_version", "0"))
    valkey = info.get("valkey_version")
    product = "Valkey" if valkey else "Redis"
    compatible = tuple(int(number) for number in re.findall(r"\d+", redis_version)[:2])
    write_seconds, write_problem, sync_seconds = None, None, None
    if key is not None:
        try:
            write_seconds = _median(lambda: client.set(key, "x", ex=60), samples=SAMPLES)
            policy = config["appendfsync"] or "unknown"
            if (
                bool(info.get("aof_enabled"))
                and policy != "always"
                and syncs_can_be_waited_for(product=product, compatible=compatible, policy=policy)
            ):
                sync_seconds = _unless_refused(
                    lambda: _median(lambda: _synced_write(client, key), samples=SYNC_SAMPLES)
                )
            client.delete(key)
        except redis.ResponseError as error:
            write_problem = str(error)[:200]
    return NodeFacts(
        where=where,
        product=product,
        version=str(valkey or redis_version),
        compatible=compatible,
        config=config,
        aof_enabled=bool(info.get("aof_enabled")),
        aof_failing=info.get("aof_last_write_status", "ok") != "ok",
        role=str(info.get("role", "master")),
        replicas_online=sum(
            isinstance(value, dict) and value.get("state") == "online"
            for name, value in info.items()
            if re.fullmatch(r"slave\d+", name)
        ),
        used_memory_bytes=int(info.get("used_memory", 0)),
        maxmemory_bytes=int(info.get("maxmemory", 0)),
        write_seconds=write_seconds,
        write_problem=write_problem,
        sync_seconds=sync_seconds,
        clock_offset_seconds=offset,
    )


def _synced_write(client: "redis.Redis", key: str) -> None:
    client.set(key, "x", ex=60)
    client.execute_command("WAITAOF", 1, 0, SYNC_WAIT_MS)


def _median(action: Callable[[], Any], *, samples: int) -> float:
    durations = []
    for _ in range(samples):
        began = time.perf_counter()
        action()
        durations.append(time.perf_counter() - began)
    return statistics.median(durations)


def _unless_refused(action: Callable[[], Any]) -> Any:
    try:
        return action()
    except redis.ResponseError:
        return None


def _client(settings: RedisSettings, node: Node, *, sentinel: bool = False) -> "redis.Redis":
    """For one server. Raises CredentialsMissingError."""
    timeout = settings.connect_timeout_seconds
    username, password, variable = settings.username, settings.password, "REDIS_PASSWORD"
    if sentinel:
        username, password = settings.sentinel_username, settings.sentinel_password
        variable = "TABLEFORGE_REDIS_SENTINEL_PASSWORD"
    *user, secret = credentials(username, password, variable=variable) or (None,)
    more: dict[str, Any] = {"redis_settings": settings} if settings.tls else {}
    pool = ConnectionPool(
        connection_class=_Tls if settings.tls else Connection,
        host=node.host,
        port=node.port,
        db=0 if sentinel else settings.database,
        username=user[0] if user else None,
        password=secret,
        socket_timeout=max(timeout, SYNC_WAIT_MS / 1000 + 1),
        socket_connect_timeout=timeout,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
        decode_responses=True,
        **more,
    )
    return redis.Redis.from_pool(pool)


def _sentence(settings: RedisSettings, error: BaseException, *, where: str | None = None) -> str:
    if where is None:
        where = f"{settings.host}:{settings.port}" if settings.mode == "Standalone" else settings.addresses
    what = str(error)[:300] or type(error).__name__
    if isinstance(error, CredentialsMissingError):
        return what
    if isinstance(error, (redis.AuthenticationError, redis.exceptions.NoPermissionError)):
        return f"Redis at {where} refuses us ({what}): set REDIS_PASSWORD_FILE and REDIS_USERNAME to its own."
    return f"Redis at {where} cannot be used ({what}): see that it runs, and that the settings name it."
