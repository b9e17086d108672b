"""What is wrong with what was seen, and what would be right: facts and settings in, findings out."""

import dataclasses
import re
from typing import Final, Literal

from tableforge_dataplane.broker.durability import WHAT_SYNCS, syncs_can_be_waited_for
from tableforge_dataplane.contract.settings import Settings
from tableforge_dataplane.launch.probe import NodeFacts, RedisFacts

Level = Literal["ok", "warn", "fail"]

OLDEST: Final = (6, 2)
SHARDED_SINCE: Final = (7, 0)

SLOW_SYNC_SECONDS: Final = 0.010
"""A message's acknowledgement waits for one, two at most; good disks take 1 to 2 ms."""

SLOW_WRITE_SECONDS: Final = 0.005
CLOCK_OFFSET_SECONDS: Final = 5.0

PUBSUB_HARD_BYTES: Final = 32 << 20
"""The guide's limit. An instance that stalls for seconds is cut off below it and has to recover its rooms."""

SPARE_FILES: Final = 128
"""Descriptors an instance needs beside its clients': Redis, listeners, logs, the internal port's."""


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    topic: str
    message: str


def about_redis(facts: RedisFacts, settings: Settings) -> list[Finding]:
    """Everything about Redis."""
    found = [Finding("fail", "redis", problem) for problem in facts.problems]
    found += [Finding("warn", "redis", warning) for warning in facts.warnings]
    for node in facts.nodes:
        found += _about_node(node, settings)
    found += _about_prefix(facts, settings)
    return found


def _about_prefix(facts: RedisFacts, settings: Settings) -> list[Finding]:
    prefix, claim, holder = settings.redis.key_prefix, settings.redis.claim, facts.claimed_by
    if holder and holder != claim:
        text = f"the cluster {holder} claims {prefix} on this Redis"
        if claim:
            text += (
                f", and {claim} would wait for it to end: give it a TABLEFORGE_REDIS_KEY_PREFIX of its own."
            )
            return [Finding("fail", "key prefix", text)]
        text += (
            ", and without a TABLEFORGE_REDIS_CLAIM both would mix: set that to the same name where this is "
            "the same cluster, or TABLEFORGE_REDIS_KEY_PREFIX to another one."
        )
        return [Finding("warn", "key prefix", text)]
    if facts.instances is None:
        return []
    there = f"{facts.instances} instances are registered under {prefix}"
    if holder:
        return [Finding("ok", "key prefix", f"{there}, which this cluster, {holder}, claims.")]
    if facts.instances:
        text = f"{there}: if they aren't of this cluster, give it a TABLEFORGE_REDIS_KEY_PREFIX of its own."
        return [Finding("ok", "key prefix", text)]
    return [Finding("ok", "key prefix", f"nobody is registered under {prefix}, and nobody claims it.")]


def _about_node(node: NodeFacts, settings: Settings) -> list[Finding]:
    return [
        *_version(node, settings),
        *_writes(node),
        *_durability(node, settings),
        *_memory(node),
        *_buffers(node),
        *_clock(node),
    ]


def _version(node: NodeFacts, settings: Settings) -> list[Finding]:
    name = f"{node.product} {node.version} at {node.where}"
    if node.compatible < OLDEST:
        return [Finding("fail", "version", f"{name} is too old: use Redis 6.2 or newer, or Valkey.")]
    found = [Finding("ok", "version", f"{name}.")]
    if settings.redis.mode == "Cluster" and node.compatible < SHARDED_SINCE:
        found.append(
            Finding(
                "warn",
                "version",
                f"{name} has no sharded Pub/Sub: every node hears every message. Use 7.0 or newer.",
            )
        )
    return found


def _writes(node: NodeFacts) -> list[Finding]:
    if node.role != "master":
        return [Finding("fail", "writes", f"{node.where} is a replica: name the primary in REDIS_HOST.")]
    if node.write_problem is not None:
        return [Finding("fail", "writes", f"{node.where} refuses writes: {node.write_problem}.")]
    if node.write_seconds is None:
        return []
    took = f"a write at {node.where} takes {node.write_seconds * 1000:.2f} ms (median)"
    if node.config.get("appendfsync") == "always" and node.aof_enabled:
        if node.write_seconds >= SLOW_SYNC_SECONDS:
            return [Finding("warn", "fsync", f"{took}, its sync to disk included: a faster disk would help.")]
        return [Finding("ok", "fsync", f"{took}, its sync to disk included.")]
    if node.write_seconds >= SLOW_WRITE_SECONDS:
        return [Finding("warn", "latency", f"{took}: bring Redis nearer, or see what it is busy with.")]
    return [Finding("ok", "latency", f"{took}.")]


def _durability(node: NodeFacts, settings: Settings) -> list[Finding]:
    asked = settings.redis.durability
    found: list[Finding] = []
    if node.aof_failing:
        found.append(
            Finding("fail", "persistence", f"{node.where} cannot write its append-only file: see its disk.")
        )
    if "Replica" in asked:
        found += _replicas(node, asked)
    if "Disk" not in asked:
        if not node.aof_enabled:
            found.append(
                Finding(
                    "warn",
                    "persistence",
                    f"{node.where} keeps no append-only file: when it ends, acknowledged messages are lost. "
                    "Set `appendonly yes`.",
                )
            )
        return found
    policy = node.config.get("appendfsync")
    if not node.aof_enabled:
        found.append(
            Finding("fail", "persistence", f"durability {asked} needs `appendonly yes` at {node.where}.")
        )
    elif policy == "always":
        found.append(Finding("ok", "persistence", f"{node.where} syncs every message before it answers."))
    elif not syncs_can_be_waited_for(
        product=node.product, compatible=node.compatible, policy=policy or "unknown"
    ):
        found.append(
            Finding(
                "fail",
                "persistence",
                f"{node.product} {node.version} at {node.where} runs with appendfsync {policy or 'unknown'}: "
                f"durability {asked} needs {WHAT_SYNCS}.",
            )
        )
    elif node.sync_seconds is not None:
        took = f"a message at {node.where} is on disk after {node.sync_seconds * 1000:.1f} ms (median)"
        slow = node.sync_seconds >= SLOW_SYNC_SECONDS
        hint = ": `appendfsync always` acknowledges sooner." if slow else "."
        found.append(Finding("warn" if slow else "ok", "fsync", took + hint))
    return found


def _replicas(node: NodeFacts, asked: str) -> list[Finding]:
    if node.replicas_online == 0:
        return [
            Finding(
                "fail", "replicas", f"durability {asked} needs a replica of {node.where}, and none is online."
            )
        ]
    if node.config.get("min-replicas-to-write") == "0":
        return [
            Finding(
                "warn",
                "replicas",
                f"{node.where} takes writes without a replica, too: set `min-replicas-to-write 1`.",
            )
        ]
    return [Finding("ok", "replicas", f"{node.where} has {node.replicas_online} replicas online.")]


def _memory(node: NodeFacts) -> list[Finding]:
    found: list[Finding] = []
    policy = node.config.get("maxmemory-policy")
    if policy is not None and policy != "noeviction":
        found.append(
            Finding(
                "fail",
                "eviction",
                f"{node.where} evicts ({policy}): live rooms would lose their logs. Set "
                "`maxmemory-policy noeviction`; everything here has a lifetime of its own.",
            )
        )
    elif policy is not None:
        found.append(Finding("ok", "eviction", f"{node.where} evicts nothing."))
    if node.maxmemory_bytes == 0:
        found.append(
            Finding(
                "warn",
                "memory",
                f"{node.where} has no `maxmemory`: the machine's limit would end it, where with one, "
                "publishes are refused in time.",
            )
        )
    else:
        share = node.used_memory_bytes / node.maxmemory_bytes
        text = f"{node.where} uses {share:.0%} of its {node.maxmemory_bytes >> 20} MB."
        found.append(Finding("warn" if share >= 0.8 else "ok", "memory", text))
    return found


def _buffers(node: NodeFacts) -> list[Finding]:
    text = node.config.get("client-output-buffer-limit")
    found = re.search(r"\bpubsub (\d+) (\d+) (\d+)", text or "")
    if found is None:
        return []
    hard = int(found[1])
    if 0 < hard < PUBSUB_HARD_BYTES:
        return [
            Finding(
                "warn",
                "pubsub buffer",
                f"{node.where} cuts off subscribers at {hard >> 20} MB: set "
                "`client-output-buffer-limit pubsub 32mb 8mb 60`, or more.",
            )
        ]
    return [Finding("ok", "pubsub buffer", f"{node.where} lets subscribers lag by {hard >> 20 or 'any'} MB.")]


def _clock(node: NodeFacts) -> list[Finding]:
    if abs(node.clock_offset_seconds) < CLOCK_OFFSET_SECONDS:
        return []
    return [
        Finding(
            "warn",
            "clock",
            f"the clock of {node.where} is {node.clock_offset_seconds:+.0f} s off ours: tokens may seem "
            "expired or not valid yet. Set both by NTP.",
        )
    ]


def about_files(soft_limit: int, settings: Settings) -> Finding:
    """Whether as many connections as configured can be open."""
    needed = settings.capacity + SPARE_FILES
    if soft_limit < needed:
        return Finding(
            "fail",
            "open files",
            f"this user may have {soft_limit} files open, and {settings.capacity} connections need {needed}: "
            "raise it (`ulimit -n`, or LimitNOFILE), or lower WS_MAX_CONNECTIONS.",
        )
    return Finding("ok", "open files", f"{soft_limit} may be open, {needed} are needed.")
