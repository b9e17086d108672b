"""A real Redis Cluster of one's own, and a primary with a replica and the sentinels that watch it."""

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Self

import redis.asyncio
from redis.exceptions import RedisError

from tableforge_dataplane.contract.settings import Settings
from tableforge_dataplane.protocol.names import personal_log
from tests.support.children import Child, free_port
from tests.support.proxy import FaultProxy
from tests.support.redis import Binary, RedisServer, server_binary, server_environ

SLOTS: Final = 16_384
NODE_TIMEOUT_MS: Final = 1500
"""Where a replica is to take over soon."""
PATIENT_NODE_TIMEOUT_MS: Final = 5000
"""Where nobody can: a node that a busy machine lets wait is none that has failed."""
FAILOVER_WITHIN_SECONDS: Final = 120.0
"""For sentinels to replace a primary: one that stood still for two seconds does nothing for thirty."""

FAILURES: Final = (RedisError, OSError, TimeoutError, LookupError)


async def ask(server: RedisServer, *command: str | bytes | int) -> Any:
    """One command and its answer, on a connection made for it. Raises what redis-py raises."""
    client = redis.asyncio.Redis(host=server.host, port=server.port, socket_timeout=5, protocol=2)
    try:
        return await client.execute_command(*command)
    finally:
        await client.aclose()


async def calls(server: RedisServer, command: str) -> int:
    """How often it has carried out a command, also from a script."""
    stats: dict[str, Any] = await ask(server, "INFO", "commandstats")
    return int(stats.get(f"cmdstat_{command}", {}).get("calls", 0))


async def until_called(server: RedisServer, command: str, *, more: int) -> None:
    """Wait until it has carried it out so many times more. Raises TimeoutError."""
    before = await calls(server, command)

    async def called() -> bool:
        return await calls(server, command) >= before + more

    await eventually(called, within=60)


async def until_received(server: RedisServer, user: str, pos: str) -> None:
    """Wait until it is noted that the user has handled its direct messages up to this place: that has no
    answer. Raises TimeoutError."""
    meta = f"tf:{Settings().redis.key_prefix}:{{{personal_log(user)}}}:meta"

    async def noted() -> bool:
        return bool(await ask(server, "HGET", meta, "r") == pos.encode())

    await eventually(noted)


async def eventually(condition: Callable[[], Any], *, within: float = 60.0) -> None:
    """Wait until `condition`, a coroutine function, gives true. A server that is away counts as false."""
    async with asyncio.timeout(within):
        while True:
            with contextlib.suppress(*FAILURES):
                if await condition():
                    return
            await asyncio.sleep(0.05)


class Announced:
    """The addresses under which servers let themselves be found: their own, or a proxy's before each.

    Through the proxies go clients and replicas; what a test asks or a cluster's bus carries goes directly.
    """

    def __init__(self, *, proxied: bool) -> None:
        self._proxied = proxied
        self.proxies: dict[RedisServer, FaultProxy] = {}
        """By the server behind it; empty where there are none."""

    async def start(self, server: RedisServer, *, option: str) -> None:
        """Start it; with a proxy, whose port it announces by `option`."""
        if not self._proxied:
            await server.start()
            return
        proxy = self.proxies[server] = FaultProxy(0)
        await proxy.start()
        server.args += (option, str(proxy.port))
        await server.start()
        proxy.target = server.port

    def port(self, server: RedisServer) -> int:
        """Where clients are sent to reach it."""
        return self.proxies[server].port if self._proxied else server.port

    async def stop(self) -> None:
        """Stop the proxies."""
        await asyncio.gather(*(proxy.stop() for proxy in self.proxies.values()))


class RedisCluster:
    """`primaries` nodes that share the slots, and `replicas` for each. Nodes are `RedisServer`s."""

    def __init__(
        self,
        *,
        binary: Binary = "valkey",
        primaries: int = 3,
        replicas: int = 0,
        args: tuple[str, ...] = (),
        proxied: bool = False,
        tls: tuple[Path, Path] | None = None,
    ) -> None:
        """`proxied`: clients and replicas reach each node over a proxy that can misbehave. `tls`: a
        certificate and its key; then each node has a second port, for TLS."""
        self.directory = Path(tempfile.mkdtemp(prefix="tableforge-cluster-"))
        self._announced = Announced(proxied=proxied)
        self._binary: Binary = binary
        self._args = args
        self._tls = tls
        self.tls_ports: dict[RedisServer, int] = {}
        self._made = 0
        self._node_timeout_ms = NODE_TIMEOUT_MS if replicas else PATIENT_NODE_TIMEOUT_MS
        self.primaries = [self._make() for _ in range(primaries)]
        self.replicas = [[self._make() for _ in range(replicas)] for _ in range(primaries)]
        self.others: list[RedisServer] = []
        """Nodes added later."""

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.stop()

    @property
    def nodes(self) -> list[RedisServer]:
        return [*self.primaries, *(node for group in self.replicas for node in group), *self.others]

    @property
    def addresses(self) -> str:
        """What a data plane is told."""
        return ",".join(f"{node.host}:{self._announced.port(node)}" for node in self.primaries)

    @property
    def proxies(self) -> dict[RedisServer, FaultProxy]:
        """By the node behind it."""
        return self._announced.proxies

    async def stop(self) -> None:
        """Stop all nodes and remove their data."""
        await self._announced.stop()
        await asyncio.gather(*(node.stop() for node in self.nodes))
        await asyncio.to_thread(shutil.rmtree, self.directory, ignore_errors=True)

    async def add(self) -> RedisServer:
        """One more node, without slots."""
        node = self._make()
        self.others.append(node)
        await self._start_node(node)
        await ask(self.primaries[0], "CLUSTER", "MEET", node.host, node.port)
        await eventually(lambda: self._sees(node, len(self.nodes)))
        for other in self.nodes:
            if other.running:
                await eventually(lambda other=other: self._sees(other, len(self.nodes)))
        await eventually(lambda: _is_whole(node))
        return node

    async def owner(self, slot: int) -> RedisServer:
        """The running node that serves the slot, as the first one that answers sees it."""
        for node in self.nodes:
            if not node.running:
                continue
            for first, last, primary, *_ in await ask(node, "CLUSTER", "SLOTS"):
                if first <= slot <= last:
                    return self._at(primary[1])
        raise LookupError(slot)

    async def begin_move(self, slot: int, *, source: RedisServer, target: RedisServer) -> None:
        """From now on keys that `source` does not have (any more) are asked for at `target`."""
        ids = [await self._id(source), await self._id(target)]
        await ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
        await ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])

    async def move_keys(
        self, slot: int, *, source: RedisServer, target: RedisServer, keys: tuple[bytes, ...] = ()
    ) -> None:
        """Move these keys, or all that the slot has, one after the other."""
        while found := keys or await ask(source, "CLUSTER", "GETKEYSINSLOT", slot, 10):
            for key in found:
                await ask(source, "MIGRATE", target.host, target.port, key, 0, 5000)
            if keys:
                return

    async def end_move(self, slot: int, *, source: RedisServer, target: RedisServer) -> None:
        """The slot is `target`'s; everybody is told."""
        identifier = await self._id(target)
        for node in (target, source, *(one for one in self.nodes if one not in (source, target))):
            # a node that lost its last slot may have made itself a replica by now
            if node.running and (await ask(node, "ROLE"))[0] == b"master":
                await ask(node, "CLUSTER", "SETSLOT", slot, "NODE", identifier)

    async def agree(self) -> bool:
        """Whether every node runs, sees a working cluster and says of each slot what the others say."""
        maps = set()
        for node in self.nodes:
            if not node.running or not await _is_whole(node):
                return False
            ranges = await ask(node, "CLUSTER", "SLOTS")
            maps.add(tuple(sorted((first, last, primary[1]) for first, last, primary, *_ in ranges)))
        return len(maps) == 1

    async def _start_node(self, node: RedisServer) -> None:
        await self._announced.start(node, option="--cluster-announce-port")

    def _at(self, port: int) -> RedisServer:
        return next(node for node in self.nodes if self._announced.port(node) == port)

    def _make(self) -> RedisServer:
        self._made += 1
        args = self._args
        tls_port = free_port()
        if self._tls is not None:
            certificate, key = map(str, self._tls)
            args += ("--tls-port", str(tls_port), "--tls-auth-clients", "no", "--tls-cert-file", certificate)
            args += ("--tls-key-file", key, "--tls-ca-cert-file", certificate)
        node = RedisServer(
            self.directory / f"node-{self._made}",
            binary=self._binary,
            appendfsync="everysec",
            args=(
                "--cluster-enabled",
                "yes",
                "--cluster-node-timeout",
                str(self._node_timeout_ms),
                "--repl-diskless-sync",
                "yes",
                "--repl-diskless-sync-delay",
                "0",
                *args,
            ),
        )
        if self._tls is not None:
            self.tls_ports[node] = tls_port
        return node

    async def _start(self) -> None:
        await asyncio.gather(*(self._start_node(node) for node in self.nodes))
        share = -(-SLOTS // len(self.primaries))
        for number, node in enumerate(self.nodes):
            await ask(node, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for number, node in enumerate(self.primaries):
            slots = range(number * share, min(SLOTS, (number + 1) * share))
            await ask(node, "CLUSTER", "ADDSLOTS", *slots)
        for node in self.nodes[1:]:
            await ask(self.nodes[0], "CLUSTER", "MEET", node.host, node.port)
        for node in self.nodes:
            await eventually(lambda node=node: self._sees(node, len(self.nodes)))
        for primary, replicas in zip(self.primaries, self.replicas, strict=True):
            identifier = await self._id(primary)
            for replica in replicas:
                await ask(replica, "CLUSTER", "REPLICATE", identifier)
                await eventually(lambda replica=replica: is_synced(replica))
        for node in self.nodes:
            await eventually(lambda node=node: _is_whole(node))

    async def _sees(self, node: RedisServer, count: int) -> bool:
        lines = (await ask(node, "CLUSTER", "NODES")).decode().splitlines()
        return len(lines) == count and not any("handshake" in line or "noaddr" in line for line in lines)

    async def _id(self, node: RedisServer) -> str:
        found: bytes = await ask(node, "CLUSTER", "MYID")
        return found.decode()


async def _is_whole(node: RedisServer) -> bool:
    return b"cluster_state:ok" in await ask(node, "CLUSTER", "INFO")


async def is_primary(node: RedisServer) -> bool:
    """Whether it takes writes."""
    role = await ask(node, "ROLE")
    return bool(role[0] == b"master")


async def is_synced(node: RedisServer) -> bool:
    """Whether it is a replica that has what its primary had."""
    replication: dict[str, Any] = await ask(node, "INFO", "replication")
    return replication.get("master_link_status") == "up"


async def is_settled(node: RedisServer) -> bool:
    """Whether what it has in memory is in its file, too: after a full synchronisation that takes a moment."""
    persistence: dict[str, Any] = await ask(node, "INFO", "persistence")
    return not any(
        int(persistence.get(name, 0))
        for name in ("loading", "aof_rewrite_in_progress", "aof_rewrite_scheduled", "rdb_bgsave_in_progress")
    )


class RedisSentinels:
    """A primary, a replica of it, and three sentinels that make the replica the primary within seconds."""

    def __init__(
        self,
        *,
        binary: Binary = "valkey",
        name: str = "tables",
        proxied: bool = False,
        user: tuple[str, str] | None = None,
        down_after_ms: int = 800,
    ) -> None:
        """`proxied`: everybody reaches the two servers over proxies that can misbehave. `user`: a name and a
        password without which the sentinels answer nobody. `down_after_ms`: for how long a primary is silent
        until it is replaced."""
        self.directory = Path(tempfile.mkdtemp(prefix="tableforge-sentinels-"))
        self.name = name
        self._announced = Announced(proxied=proxied)
        self._user = user
        self._down_after_ms = down_after_ms
        self._binary: Binary = binary
        args = ("--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0")
        self.servers = [
            RedisServer(self.directory / f"server-{number}", binary=binary, args=args) for number in (1, 2)
        ]
        self.sentinels: list[Child] = []
        self._ports: list[int] = []

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.stop()

    @property
    def addresses(self) -> str:
        """What a data plane is told."""
        return ",".join(f"127.0.0.1:{port}" for port in self._ports)

    async def stop(self) -> None:
        """Stop everything and remove the data."""
        await asyncio.gather(*(child.stop() for child in self.sentinels))
        await self._announced.stop()
        await asyncio.gather(*(server.stop() for server in self.servers))
        await asyncio.to_thread(shutil.rmtree, self.directory, ignore_errors=True)

    @property
    def proxies(self) -> dict[RedisServer, FaultProxy]:
        """By the server behind it."""
        return self._announced.proxies

    def other(self, server: RedisServer) -> RedisServer:
        """The one that is not this one."""
        return next(one for one in self.servers if one is not server)

    async def primary(self) -> RedisServer:
        """The one that every sentinel names. Raises what redis-py raises; LookupError where they differ."""
        named = set()
        for number in range(len(self._ports)):
            _, port = await self.ask_sentinel(number, "GET-MASTER-ADDR-BY-NAME", self.name)
            named.add(int(port))
        if len(named) != 1:
            raise LookupError(f"the sentinels name {named}")
        return next(server for server in self.servers if self._announced.port(server) in named)

    async def ask_sentinel(self, number: int, *command: str) -> Any:
        """`SENTINEL …` and its answer. Raises what redis-py raises."""
        name, password = self._user or (None, None)
        client = redis.asyncio.Redis(
            port=self._ports[number], username=name, password=password, socket_timeout=5, protocol=2
        )
        try:
            # as one string: redis-py would parse what it knows
            return await client.execute_command(f"SENTINEL {command[0]}", *command[1:])
        finally:
            await client.aclose()

    async def follow(self, replica: RedisServer, primary: RedisServer) -> None:
        """Make it a replica, as the sentinels would do some seconds later."""
        await ask(replica, "REPLICAOF", primary.host, self._announced.port(primary))

    def start_sentinel(self, number: int) -> None:
        """Start one again that was stopped; it has kept what it knew."""
        self.sentinels[number] = self._sentinel(number)

    async def settled(self) -> bool:
        """Whether the sentinels agree on a primary, nothing is wrong with it, and the other has all of it."""
        primary = await self.primary()
        return await self.undisturbed() and await is_primary(primary) and await is_synced(self.other(primary))

    async def undisturbed(self) -> bool:
        """Whether no sentinel misses the primary, or is about to replace it."""
        return all([(await self._facts(n))[b"flags"] == b"master" for n in range(len(self._ports))])

    async def _start(self) -> None:
        first, second = self.servers
        for server in self.servers:
            await self._announced.start(server, option="--replica-announce-port")
        await self.follow(second, first)
        await eventually(lambda: is_synced(second))
        for number in range(3):
            port = free_port()
            folder = self._folder(number)
            folder.mkdir()
            lines = [
                f"port {port}",
                "bind 127.0.0.1",
                f"dir {folder}",
                f"sentinel monitor {self.name} {first.host} {self._announced.port(first)} 2",
                f"sentinel down-after-milliseconds {self.name} {self._down_after_ms}",
                f"sentinel failover-timeout {self.name} 3000",
            ]
            if self._user is not None:
                name, password = self._user
                lines += [
                    f"user {name} on >{password} allchannels +@all",
                    "user default off",
                    f"sentinel sentinel-user {name}",
                    f"sentinel sentinel-pass {password}",
                ]
            (folder / "sentinel.conf").write_text("\n".join(lines) + "\n")
            self.sentinels.append(self._sentinel(number))
            self._ports.append(port)
        await eventually(self._agree)

    def _folder(self, number: int) -> Path:
        return self.directory / f"sentinel-{number + 1}"

    def _sentinel(self, number: int) -> Child:
        folder = self._folder(number)
        command = [str(server_binary(self._binary)), str(folder / "sentinel.conf"), "--sentinel"]
        return Child(command, log=folder / "log", environ=server_environ(self._binary))

    async def _agree(self) -> bool:
        """Whether each sentinel knows the replica and the two others."""
        for number in range(len(self._ports)):
            facts = await self._facts(number)
            if facts[b"num-slaves"] != b"1" or facts[b"num-other-sentinels"] != b"2":
                return False
        return True

    async def _facts(self, number: int) -> dict[bytes, bytes]:
        answer = await self.ask_sentinel(number, "MASTER", self.name)
        if isinstance(answer, dict):
            return {str(name).encode(): str(value).encode() for name, value in answer.items()}
        return dict(zip(answer[::2], answer[1::2], strict=True))
