"""`tableforge-dataplane` as people and Kubernetes run it: real processes, exit codes, last words."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from websockets.asyncio.client import connect

from tableforge_dataplane.contract.settings import Secret, specs
from tableforge_dataplane.security.tokens import TokenVerifier
from tests.support.children import Child, free_port
from tests.support.processes import DataplaneFleet, DataplaneProcess
from tests.support.redis import RedisServer

COMMAND = str(Path(sys.executable).parent / "tableforge-dataplane")
KEY = "0123456789abcdef0123456789abcdef"


def environment(**more: str) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")}
    return {**own, **more}


def run(*arguments: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [COMMAND, *arguments], env=environment(**environ), capture_output=True, text=True, timeout=30
    )


def test_settings_that_cannot_be_used_end_it_with_2_and_every_problem() -> None:
    done = run("serve", WS_PORT="70000", LOG_LEVEL="loud", TABLEFORGE_HTTP_PROT="1")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "WS_PORT='70000': must be a whole number from 0 to 65535.",
        "LOG_LEVEL='loud': must be one of debug, info, warning, error.",
        "TABLEFORGE_HTTP_PROT: no such setting. Did you mean TABLEFORGE_HTTP_PORT?",
    ]
    assert done.stdout == ""


def test_the_problems_are_the_termination_message(tmp_path: Path) -> None:
    file = tmp_path / "termination-log"
    file.touch()
    done = run("serve", "--termination-log", str(file), WS_PORT="70000", JWT_SECRET="short-secret")
    assert done.returncode == 2
    text = file.read_text()
    assert text == done.stderr.rstrip("\n")
    assert "WS_PORT='70000'" in text
    assert "short-secret" not in text


def test_a_termination_message_is_only_left_where_there_is_a_file_for_it(tmp_path: Path) -> None:
    file = tmp_path / "termination-log"
    assert run("serve", "--termination-log", str(file), WS_PORT="x").returncode == 2
    assert not file.exists()


def test_a_command_is_needed() -> None:
    assert run().returncode == 2
    assert run("sing").returncode == 2


def test_help_lists_every_variable_with_its_default() -> None:
    for arguments in (["--help"], ["serve", "--help"]):
        done = run(*arguments)
        assert done.returncode == 0
        for spec, default in specs().values():
            assert spec.env in done.stdout
            if isinstance(default, Secret):
                assert f"{spec.env}_FILE" in done.stdout
        assert "HEARTBEAT_INTERVAL (default: 30000)" in done.stdout


def test_the_version_is_told() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout.split()[0]) == (0, "tableforge-dataplane")


def test_print_config_shows_what_is_in_force_and_masks_secrets() -> None:
    done = run(
        "serve",
        "--print-config",
        WS_PORT="4000",
        JWT_SECRET=KEY,
        REDIS_PASSWORD_FILE="/somewhere/password",
        REDIS_PUBSUB_DB="1",
    )
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert {"WS_PORT=4000", "JWT_SECRET=***", "REDIS_PASSWORD_FILE=/somewhere/password"} <= set(lines)
    assert "HEARTBEAT_INTERVAL=30000" in lines
    assert any(line.startswith("# REDIS_PUBSUB_DB has no effect") for line in lines)
    assert KEY not in done.stdout


def test_a_development_token_is_one_that_instances_accept(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(KEY + "\n")
    for environ in ({"JWT_SECRET": KEY}, {"JWT_SECRET_FILE": str(file)}):
        done = run("token", "--user", "ada", "--expires", "15m", "--join", "table:*", **environ)
        assert done.returncode == 0, done.stderr
        identity = TokenVerifier(Secret(value=KEY)).verify(done.stdout.strip())
        assert identity.user == "ada"
        assert identity.rights.may_join("table:1")
        assert not identity.rights.may_join("elsewhere")
        assert not identity.rights.may_publish("table:1")


@pytest.mark.parametrize(
    ("arguments", "environ", "said"),
    [
        (["--user", "ada"], {}, "Set JWT_SECRET or JWT_SECRET_FILE"),
        (["--user", "ada"], {"JWT_SECRET_FILE": "/nowhere/key"}, "Set JWT_SECRET or JWT_SECRET_FILE"),
        (["--user", ""], {"JWT_SECRET": KEY}, "`sub`"),
        (["--user", "ada", "--join", "x*"], {"JWT_SECRET": KEY}, "`tableforge.join`"),
        (["--user", "ada", "--expires", "soon"], {"JWT_SECRET": KEY}, "no duration"),
        (["--user", "ada", "--expires", "0s"], {"JWT_SECRET": KEY}, "no duration"),
        ([], {"JWT_SECRET": KEY}, "--user"),
    ],
)
def test_a_token_that_cannot_be_made_says_why(
    arguments: list[str], environ: dict[str, str], said: str
) -> None:
    done = run("token", *arguments, **environ)
    assert done.returncode != 0
    assert said in done.stderr
    assert done.stdout == ""


@asynccontextmanager
async def answering(status: str) -> AsyncIterator[int]:
    """A server on 127.0.0.1 that answers everything with this status line."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.parametrize(
    ("status", "code"), [("200 OK", 0), ("503 Service Unavailable", 1), ("404 Not Found", 1)]
)
async def test_the_health_check_goes_by_the_answer(status: str, code: int) -> None:
    async with answering(status) as port:
        done = await asyncio.to_thread(run, "healthcheck", WS_PORT=str(port), WS_HOST="0.0.0.0")
    assert done.returncode == code, done.stderr


def test_the_health_check_fails_where_nobody_listens() -> None:
    done = run("healthcheck", WS_HOST="127.0.0.1", WS_PORT=str(free_port()))
    assert done.returncode == 1
    assert "does not answer" in done.stderr


async def test_the_health_check_finds_an_instance_that_waits_for_redis(tmp_path: Path) -> None:
    ports = {"WS_PORT": str(free_port()), "TABLEFORGE_HTTP_PORT": str(free_port()), "WS_HOST": "127.0.0.1"}
    child = Child(
        [COMMAND, "serve"],
        log=tmp_path / "log",
        environ=environment(**ports, REDIS_HOST="127.0.0.1", REDIS_PORT=str(free_port())),
    )
    try:
        async with asyncio.timeout(20):
            while (await asyncio.to_thread(run, "healthcheck", **ports)).returncode != 0:
                assert child.returncode is None, child.output()
    finally:
        child.send(signal.SIGTERM)
        assert await child.ended(20) == 0, child.output()


async def until_ready_answers(status: int, instance: DataplaneProcess) -> None:
    async with asyncio.timeout(10):
        while (await instance.get("/ready"))[0] != status:  # noqa: ASYNC110 (another process)
            await asyncio.sleep(0.02)


def events(log: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


async def test_sigterm_ends_an_instance_with_0_and_takes_it_out_of_the_registry(
    redis_server: RedisServer, dataplane: DataplaneFleet
) -> None:
    one, two = await dataplane(redis_server, 2, TABLEFORGE_HTTP_FLEET_KEY="the-key")
    assert await one.sigterm(timeout_seconds=20) == 0
    logged = events(one.log)
    names = [line["event"] for line in logged]
    assert names.index("signal_received") < names.index("drained") < names.index("stopped")
    assert "instance_withdrawn" in names
    assert {line["instance"] for line in logged} == {"instance-1"}
    assert two.running


async def test_a_drain_ends_when_the_last_client_has_gone(
    redis_server: RedisServer, dataplane: DataplaneFleet
) -> None:
    [one] = await dataplane(redis_server, 1, TABLEFORGE_SCALING_DRAIN_TIMEOUT="600000")
    async with connect(one.url) as client:
        ended = asyncio.create_task(one.sigterm(timeout_seconds=20))
        await client.wait_closed()
        assert client.close_code == 1012
        assert await ended == 0
    assert "drain_cut_short" not in one.output()


async def test_a_second_signal_stops_at_once(redis_server: RedisServer, dataplane: DataplaneFleet) -> None:
    [one] = await dataplane(redis_server, 1, TABLEFORGE_SCALING_DRAIN_TIMEOUT="600000")
    async with connect(one.url), connect(one.url):
        assert one._child is not None
        one._child.send(signal.SIGTERM)
        await until_ready_answers(503, one)
        one._child.send(signal.SIGINT)
        assert await one._child.ended(10) == 0
    assert "drain_cut_short" in one.output()


async def test_a_port_that_is_taken_ends_it_with_1_and_last_words(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    file = tmp_path / "termination-log"
    file.touch()
    async with answering("200 OK") as port:
        child = Child(
            [COMMAND, "serve", "--termination-log", str(file)],
            log=tmp_path / "log",
            environ=environment(
                **redis_server.environ, WS_HOST="127.0.0.1", WS_PORT=str(port), TABLEFORGE_HTTP_PORT="0"
            ),
        )
        assert await child.ended(20) == 1
    assert "address already in use" in file.read_text()


async def test_a_missing_key_file_is_told_and_waited_for(
    redis_server: RedisServer, dataplane: DataplaneFleet, tmp_path: Path
) -> None:
    file = tmp_path / "jwt" / "secret"
    [one] = await dataplane(
        redis_server, 1, wait_until_ready=False, AUTH_REQUIRED="true", JWT_SECRET_FILE=str(file)
    )
    async with asyncio.timeout(20):
        while True:
            try:
                status, body = await one.get("/health")
                break
            except OSError:
                await asyncio.sleep(0.05)
        while len(waiting := json.loads(body)["waitingFor"]) != 1:
            await asyncio.sleep(0.05)
            status, body = await one.get("/health")
    assert status == 503
    assert waiting[0].startswith(f"JWT_SECRET_FILE={file} does not exist: create the Secret")
    file.parent.mkdir()
    file.write_text(KEY)
    await until_ready_answers(200, one)
    assert (await one.get("/health"))[0] == 200


async def test_settings_without_effect_are_logged(
    redis_server: RedisServer, dataplane: DataplaneFleet
) -> None:
    [one] = await dataplane(redis_server, 1, REDIS_PUBSUB_DB="1")
    assert "setting_without_effect" in {line["event"] for line in events(one.log)}
