"""`serve` without a Redis: the Valkey it brings, the folder it keeps, and how both end."""

import asyncio
import json
import os
import signal
import socket
import stat
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from websockets.asyncio.client import connect

from tableforge_dataplane.launch import embedded
from tableforge_dataplane.launch.embedded import EmbeddedError, EmbeddedValkey, is_wanted
from tests.support.children import Child, free_port, free_ports, logged

NO_RETRY = Retry(NoBackoff(), 0)
COMMAND = str(Path(sys.executable).parent / "tableforge-dataplane")


def usual_port_is_taken() -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", embedded.USUAL_PORT)) == 0


def test_it_is_wanted_where_no_redis_is_configured_and_none_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "USUAL_PORT", free_port())
    assert is_wanted({"PATH": "/bin", "REDIS_HOST": ""})
    for name in embedded.CONFIGURES_REDIS:
        assert not is_wanted({name: "x"})
    with socket.create_server(("127.0.0.1", 0)) as listening:
        monkeypatch.setattr(embedded, "USUAL_PORT", listening.getsockname()[1])
        assert not is_wanted({})


class Serving:
    """`serve` with a data folder and nothing said of Redis."""

    def __init__(
        self, folder: Path, *arguments: str, log: str = "log", port: int | None = None, **environ: str
    ) -> None:
        self.port = free_port() if port is None else port
        self.child = Child(
            [
                COMMAND,
                "serve",
                "--host",
                "127.0.0.1",
                "--port",
                str(self.port),
                "--data-dir",
                str(folder),
                *arguments,
            ],
            log=folder.parent / log,
            environ={
                "PATH": os.environ["PATH"],
                "TABLEFORGE_SCALING_DRAIN_TIMEOUT": "200",
                "TABLEFORGE_HTTP_PORT": str(free_port()),
                **environ,
            },
        )

    def redis_states(self, **fields: Any) -> list[str]:
        """The reasons of all it told (with these fields), in their order."""
        states = [event for event in logged(self.child.log) if event["event"] == "redis_state"]
        return [event["reason"] for event in states if fields.items() <= event.items()]

    async def event(self, name: str, **fields: Any) -> dict[str, Any]:
        """The first of that name (and fields), waited for."""
        async with asyncio.timeout(60):
            while True:
                ended = self.child.returncode is not None
                for event in logged(self.child.log):
                    if event["event"] == name and fields.items() <= event.items():
                        return event
                assert not ended, self.child.output()
                await asyncio.sleep(0.05)


@asynccontextmanager
async def serving(folder: Path, *arguments: str, **more: Any) -> AsyncIterator[Serving]:
    if usual_port_is_taken():
        pytest.fail(f"something answers on port {embedded.USUAL_PORT}: these tests need it free")
    found = Serving(folder, *arguments, **more)
    try:
        yield found
    finally:
        if found.child.returncode is None:
            await found.child.stop(timeout_seconds=60)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 (another process)
            await asyncio.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def say(port: int, *frames: dict[str, Any]) -> list[dict[str, Any]]:
    async with connect(f"ws://127.0.0.1:{port}/ws", compression=None) as client:
        answers = [json.loads(await client.recv())]
        for frame in frames:
            await client.send(json.dumps(frame))
            answers.append(json.loads(await client.recv()))
        return answers


async def test_it_is_started_said_used_and_ended_and_keeps_its_data(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    async with serving(folder) as first:
        started = await first.event("valkey_started")
        await first.event("started")
        assert (started["folder"], started["durability"]) == (str(folder), "Disk")
        join = {"type": "join", "room": "table:1"}
        answers = await say(
            first.port, join, {"type": "publish", "id": 1, "room": "table:1", "event": "move", "data": 7}
        )
        assert answers[1]["type"] == "joined"
        pid = started["pid"]
        assert alive(pid)
        first.child.send(signal.SIGTERM)
        assert await first.child.ended(60) == 0
        assert not alive(pid)
        assert "valkey_stopped" in [event["event"] for event in logged(first.child.log)]
    async with serving(folder, log="second") as second:
        await second.event("started")
        answers = await say(second.port, join, {"type": "history", "room": "table:1", "last": 5})
        assert [message["data"] for message in answers[2]["messages"]] == [7]


async def test_only_its_user_can_read_it_and_only_this_machine_can_reach_it(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    async with serving(folder) as running:
        port = (await running.event("valkey_started"))["port"]
        await running.event("started")
        for name in ("password", "valkey.conf"):
            assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
        password = (folder / "password").read_text()
        assert password not in running.child.output(last_lines=500)
        with redis.Redis(port=port, retry=NO_RETRY) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
        with redis.Redis(port=port, password=password, retry=NO_RETRY, decode_responses=True) as client:
            config: Any = client.config_get("*")
        assert config["bind"] == "127.0.0.1"
        assert (config["appendonly"], config["appendfsync"]) == ("yes", "always")
        assert config["maxmemory-policy"] == "noeviction"
        assert int(config["maxmemory"]) > 0


async def test_a_second_one_in_the_same_folder_uses_the_first_ones(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    async with serving(folder) as first:
        started = await first.event("valkey_started")
        async with serving(folder, log="second") as second:
            shared = await second.event("valkey_shared")
            assert (shared["port"], shared["level"]) == (started["port"], "warning")
            await second.event("started")
            await first.event("started")
            second.child.send(signal.SIGTERM)
            assert await second.child.ended(60) == 0
        assert alive(started["pid"])


async def test_it_ends_with_a_server_that_is_killed_and_the_folder_can_be_used_again(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    async with serving(folder) as first:
        pid = (await first.event("valkey_started"))["pid"]
        await first.child.kill9()
        await until(lambda: not alive(pid))
    async with serving(folder, log="second") as second:
        assert (await second.event("valkey_started"))["pid"] != pid
        await second.event("started")


async def test_it_is_started_again_where_it_ends(tmp_path: Path) -> None:
    async with serving(tmp_path / "data") as running:
        started = await running.event("valkey_started")
        await running.event("started")
        os.kill(started["pid"], signal.SIGKILL)
        await running.event("valkey_ended", code=-signal.SIGKILL)
        await running.event("redis_state", reason="Unreachable")
        await until(lambda: running.redis_states()[-1] == "Connected")


async def test_several_instances_share_it_and_all_come_back_once_it_has_ended(tmp_path: Path) -> None:
    first = free_ports(4)
    names = ["table-1", "table-2"]
    async with serving(
        tmp_path / "data",
        "--instances",
        "2",
        port=first,
        INSTANCE_ID="table",
        TABLEFORGE_HTTP_PORT=str(first + 2),
    ) as running:
        valkey = (await running.event("valkey_started"))["pid"]
        for name in names:
            await running.event("started", instance=name)
        async with (
            connect(f"ws://127.0.0.1:{first}/ws") as ada,
            connect(f"ws://127.0.0.1:{first + 1}/ws") as bob,
        ):
            for client, name in zip((ada, bob), names, strict=True):
                assert json.loads(await client.recv())["instance"] == name
                await client.send('{"type":"join","room":"table:1"}')
                assert json.loads(await client.recv())["type"] == "joined"

            async def crosses(data: str) -> None:
                publish = {"type": "publish", "room": "table:1", "event": "move", "data": data}
                await bob.send(json.dumps(publish))
                for client in (ada, bob):
                    async with asyncio.timeout(60):
                        assert json.loads(await client.recv())["data"] == data

            await crosses("before")
            os.kill(valkey, signal.SIGKILL)
            await running.event("valkey_ended", code=-signal.SIGKILL)
            for name in names:
                await running.event("redis_state", reason="Unreachable", instance=name)
                await until(lambda name=name: running.redis_states(instance=name)[-1] == "Connected")
            await crosses("after")


async def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(EmbeddedError, match="--data-dir"):
        EmbeddedValkey(blocked / "data").start()


async def test_where_it_is_not_installed_that_is_said_and_redis_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(embedded, "PACKAGE", "no_such_package")
    with pytest.raises(embedded.NotInstalledError, match=r"tableforge\[dataplane,embedded\]"):
        embedded.server_binary()


async def test_listening_for_everybody_without_tokens_is_warned_about(tmp_path: Path) -> None:
    async with serving(tmp_path / "one") as quiet:
        await quiet.event("serving")
        assert "open_to_everybody" not in [event["event"] for event in logged(quiet.child.log)]
    async with serving(tmp_path / "two", "--host", "0.0.0.0", log="two.log") as loud:
        warning = await loud.event("open_to_everybody", level="warning")
        assert "AUTH_REQUIRED" in warning["message"]
