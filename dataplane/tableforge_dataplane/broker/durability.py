"""What a server can promise: whether its replies are enough, a fence is needed, or neither will do."""

from typing import Final

from tableforge_dataplane.broker.connection import RedisConnection, Reply, ReplyError
from tableforge_dataplane.broker.fence import Needs
from tableforge_dataplane.broker.state import RedisRefusedError, ServerFacts, info_fields
from tableforge_dataplane.contract.settings import Durability

WAITAOF_SINCE: Final = (8, 0)
"""From here on Redis's `WAITAOF` is believed. With `everysec` Redis 7.4.1 and Valkey 9.1 answer it before
they have synced (redis/redis#13793; seen by noting every fdatasync: 12,309 of 12,313 came too early)."""

WHAT_SYNCS: Final = (
    "appendfsync always there, or everysec with Redis 8 or newer, whose syncs can be waited for (Redis 7.4 "
    "and Valkey say so before they have synced)"
)
"""What durability `Disk` needs, for people."""


async def needs_of(
    connection: RedisConnection, facts: ServerFacts, *, asked: Durability, where: str
) -> Needs | None:
    """What acknowledgements wait for on this server; None where its replies are enough.

    Raises RedisRefusedError where the server takes no writes or cannot give what was asked.
    """
    replication = info_fields(_text(await connection.ask(b"INFO", b"replication")))
    if replication.get("role") == "slave":
        raise RedisRefusedError(
            "ReadOnly", f"Redis at {where} is a replica: connect to the primary, or make it one."
        )
    disk, replica = "Disk" in asked, "Replica" in asked
    if replica and not online_replicas(replication):
        raise RedisRefusedError(
            "DurabilityNotMet",
            f"Redis at {where} has no replica online: durability {asked} needs one (and "
            "min-replicas-to-write 1 is advised).",
        )
    if disk and await _replies_are_synced(connection, facts, asked=asked, where=where):
        disk = False
    return Needs(disk=disk, replica=replica) if disk or replica else None


def syncs_can_be_waited_for(*, product: str, compatible: tuple[int, ...], policy: str) -> bool:
    """Whether `WAITAOF`'s word is good there. `policy`: its appendfsync, or `unknown`."""
    return product == "Redis" and compatible >= WAITAOF_SINCE and policy != "no"


def online_replicas(replication: dict[str, str]) -> int:
    """How many replicas follow, from the fields of `INFO replication`."""
    return sum(
        "state=online" in value
        for name, value in replication.items()
        if name.startswith("slave") and name[5:].isdigit()
    )


async def _replies_are_synced(
    connection: RedisConnection, facts: ServerFacts, *, asked: Durability, where: str
) -> bool:
    """Whether Redis syncs before it replies; False where a fence can wait for its syncs."""
    try:
        append_only = setting_in(await connection.ask(b"CONFIG", b"GET", b"appendonly"))
        policy = setting_in(await connection.ask(b"CONFIG", b"GET", b"appendfsync"))
    except ReplyError:
        # clouds forbid CONFIG: what it syncs when is unknown, so that only the fence counts
        persistence = info_fields(_text(await connection.ask(b"INFO", b"persistence")))
        append_only = b"yes" if persistence.get("aof_enabled") == "1" else b"no"
        policy = b"unknown"
    if append_only != b"yes":
        raise RedisRefusedError(
            "DurabilityNotMet",
            f"Redis at {where} runs with appendonly no: durability {asked} needs appendonly yes.",
        )
    if policy == b"always":
        return True
    if syncs_can_be_waited_for(product=facts.product, compatible=facts.compatible, policy=policy.decode()):
        return False
    raise RedisRefusedError(
        "DurabilityNotMet",
        f"{facts.product} {facts.version} at {where} runs with appendfsync {policy.decode()}: durability "
        f"{asked} needs {WHAT_SYNCS}.",
    )


def setting_in(answer: Reply) -> bytes:
    """The value in CONFIG GET's answer."""
    value = answer[1] if isinstance(answer, list) and len(answer) > 1 else b"?"
    return value if isinstance(value, bytes) else b"?"


def _text(answer: Reply) -> bytes:
    return answer if isinstance(answer, bytes) else b""
