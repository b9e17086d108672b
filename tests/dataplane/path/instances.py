"""Instances in the test's own process and clients that show every frame."""

import asyncio
import dataclasses
import json
import time
from collections.abc import Callable
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tableforge_dataplane.contract.settings import Settings
from tableforge_dataplane.registry.registry import ThisInstance, new_boot_id
from tableforge_dataplane.server import Server
from tests.support.processes import DataplaneProcess
from tests.support.redis import RedisServer

Frame = dict[str, Any]


class Instances:
    """Starts `Server`s on free ports and stops them all."""

    def __init__(self) -> None:
        self.servers: list[Server] = []

    async def __call__(
        self,
        server: RedisServer,
        count: int = 1,
        /,
        *,
        wait_until_ready: bool = True,
        **groups: dict[str, Any],
    ) -> list[Server]:
        """`count` more; keyword arguments are groups of settings to change."""
        started = []
        for _ in range(count):
            one = Server(
                self._settings(server, groups),
                ThisInstance(
                    instance=f"instance-{len(self.servers) + 1}",
                    boot=new_boot_id(),
                    version="test",
                    started_at=time.time(),
                ),
            )
            self.servers.append(one)
            await one.start()
            started.append(one)
        if wait_until_ready:
            await until(lambda: all(one.ready for one in started))
        return started

    def _settings(self, redis: RedisServer, groups: dict[str, dict[str, Any]]) -> Settings:
        settings = Settings()
        changes: dict[str, dict[str, Any]] = {
            # so long it may say nothing: a busy machine's Redis, or one that a test has paused for a moment
            "redis": {"host": redis.host, "port": redis.port, "connect_timeout_seconds": 5.0},
            "websocket": {"host": "127.0.0.1", "port": 0},
            "http": {"port": 0},
            "scaling": {"drain_seconds": 0.5},
            # The test and its clients work in the same event loop: what they take is no instance's lag.
            "monitoring": {"loop_lag_threshold_seconds": 60.0},
        }
        for name, change in groups.items():
            changes.setdefault(name, {}).update(change)
        return dataclasses.replace(
            settings,
            **{
                name: dataclasses.replace(getattr(settings, name), **change)
                for name, change in changes.items()
            },
        )

    async def stop(self) -> None:
        """Stop all of them at once."""
        await asyncio.gather(*(server.stop() for server in self.servers))
        self.servers.clear()


class HeldClock:
    """An instance's clock for the limits of clients that come from now on: it goes on as the test says."""

    def __init__(self, server: Server) -> None:
        self.now = 1000.0
        server.surroundings.clock = lambda: self.now


class Peer:
    """One client connection; frames come as dictionaries, in order, none dropped."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.welcome: Frame = {}
        self._number = 0

    async def say(self, *commands: Frame) -> None:
        """One frame; an array where there is more than one command."""
        await self.socket.send(json.dumps(commands[0] if len(commands) == 1 else commands))

    async def hear(self, *, within: float = 30.0) -> Frame:
        """The next frame."""
        async with asyncio.timeout(within):
            frame = json.loads(await self.socket.recv())
        assert isinstance(frame, dict)
        return frame

    async def hear_type(self, kind: str, *, within: float = 30.0) -> Frame:
        """The next frame, which must be of this type."""
        frame = await self.hear(within=within)
        assert frame["type"] == kind, frame
        return frame

    async def until(self, kind: str, *, within: float = 30.0) -> Frame:
        """The next frame of this type; others are skipped."""
        async with asyncio.timeout(within):
            while True:
                frame = await self.hear(within=within)
                if frame["type"] == kind:
                    return frame

    async def join(self, room: str, pos: str | None = None) -> Frame:
        """Join and hear that it did."""
        command = {"type": "join", "id": "join", "room": room}
        await self.say(command if pos is None else {**command, "pos": pos})
        return await self.until("joined")

    async def publish(self, room: str, data: Any, **more: Any) -> None:
        """Publish, with a number of its own as `id`."""
        self._number += 1
        command = {"type": "publish", "id": self._number, "room": room, "event": "said", "data": data}
        await self.say({**command, **more})

    async def published(self, room: str, data: Any, **more: Any) -> Frame:
        """Publish and hear the acknowledgement; what comes first is skipped."""
        await self.publish(room, data, **more)
        while (ack := await self.until("ack"))["id"] != self._number:
            pass
        return ack

    async def messages(self, count: int, *, within: float = 30.0) -> list[Frame]:
        """The next `count` messages; acknowledgements are skipped, anything else fails."""
        found: list[Frame] = []
        while len(found) < count:
            frame = await self.hear(within=within)
            if frame["type"] == "ack":
                continue
            assert frame["type"] == "message", frame
            found.append(frame)
        return found

    async def own_messages(self, count: int, *, within: float = 30.0) -> list[Frame]:
        """The next `count` messages and as many acknowledgements, mixed in any way."""
        found: list[Frame] = []
        acknowledged = 0
        while len(found) < count or acknowledged < count:
            frame = await self.hear(within=within)
            if frame["type"] == "ack":
                acknowledged += 1
                continue
            assert frame["type"] == "message", frame
            found.append(frame)
        assert (len(found), acknowledged) == (count, count)
        return found

    async def silent(self) -> None:
        """Nothing more was on its way when this was called: what comes next is the answer to a ping."""
        await self.say({"type": "ping", "id": "silent"})
        frame = await self.hear()
        assert frame["type"] == "pong", frame

    async def closed(self, *, within: float = 30.0) -> int | None:
        """The close code, once the connection is closed; frames that come first are skipped."""
        async with asyncio.timeout(within):
            try:
                while True:
                    await self.socket.recv()
            except ConnectionClosed:
                return self.socket.close_code


class Peers:
    """Makes peers and closes them all."""

    def __init__(self) -> None:
        self._sockets: list[ClientConnection] = []

    async def __call__(
        self, server: Server | DataplaneProcess, *, welcome: bool = True, **options: Any
    ) -> Peer:
        """A connection to `server`; options are `connect`'s."""
        socket = await connect(
            f"ws://127.0.0.1:{server.port}/ws",
            compression=options.pop("compression", None),
            max_queue=None,
            open_timeout=60,
            ping_interval=None,
            close_timeout=1,
            **options,
        )
        self._sockets.append(socket)
        peer = Peer(socket)
        if welcome:
            peer.welcome = await peer.hear_type("welcome")
        return peer

    async def close(self) -> None:
        """Close them all."""
        for socket in self._sockets:
            socket.transport.abort()
        for socket in self._sockets:
            await socket.wait_closed()


async def until(condition: Callable[[], bool], *, within: float = 30.0) -> None:
    """Wait until `condition` holds. Raises TimeoutError."""
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110  # what it waits for is not ours to signal
            await asyncio.sleep(0.01)
