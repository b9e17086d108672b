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

import jwt
import pytest
from websockets.asyncio.client import connect

from tableforge_dataplane.contract.settings import AuthSettings, Secret, specs
from tableforge_dataplane.observability.logging import EventLog
from tableforge_dataplane.security.tokens import TokenVerifier
from tests.support.children import Child, free_port, logged
from tests.support.processes import DataplaneFleet, DataplaneProcess
from tests.support.redis import RedisServer

COMMAND = str(Path(sys.executable).parent / "tableforge-dataplane")
KEY = "0123456789abcdef0123456789abcdef"


def environment(**more: str) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")}
    return {**own, **more}


def run(*arguments: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [COMMAND, *arguments], env=environment(**environ), capture_output=True, text=True, timeout=120
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


def test_every_command_has_help_with_examples() -> None:
    for command in ("serve", "check", "token", "healthcheck"):
        done = run(command, "--help")
        assert (done.returncode, "example" in done.stdout) == (0, True)
        assert f"tableforge-dataplane {command}" in done.stdout


def test_print_config_has_every_setting_that_options_move_too() -> None:
    done = run("serve", "--print-config", "--port", "4000", "--instances", "3", "--host", "127.0.0.1")
    lines = dict(line.partition("=")[::2] for line in done.stdout.splitlines())
    assert (lines["WS_HOST"], lines["WS_PORT"], lines["TABLEFORGE_HTTP_PORT"]) == (
        "127.0.0.1",
        "4000",
        "4003",
    )
    for spec, default in specs().values():
        assert isinstance(default, Secret) or spec.env in lines
    done = run("serve", "--print-config", "--port", "4000", TABLEFORGE_HTTP_PORT="5000")
    assert "TABLEFORGE_HTTP_PORT=5000" in done.stdout.splitlines()


def test_a_token_lasts_a_day_unless_said_and_suits_the_settings() -> None:
    environ = {
        "JWT_SECRET": KEY * 2,
        "TABLEFORGE_AUTH_SECRET_ALGORITHM": "HS512",
        "TABLEFORGE_AUTH_ISSUER": "https://me",
        "TABLEFORGE_AUTH_AUDIENCE": "tables",
    }
    done = run("token", "--user", "ada", "--direct", "**", "--presence", "table:*", **environ)
    text = done.stdout.strip()
    claims = jwt.decode(text, KEY * 2, algorithms=["HS512"], issuer="https://me", audience="tables")
    assert claims["exp"] - claims["iat"] == 86_400
    assert claims["tableforge"] == {"join": [], "publish": [], "presence": ["table:*"], "direct": ["**"]}
    done = run("token", "--user", "ada", **environ, TABLEFORGE_AUTH_TOKEN_EXPIRY="60000")
    claims = jwt.decode(done.stdout.strip(), KEY * 2, algorithms=["HS512"], audience="tables")
    assert claims["exp"] - claims["iat"] == 60
    assert "tableforge" not in claims


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
        identity = TokenVerifier(AuthSettings(jwt_secret=Secret(value=KEY)), log=EventLog("test")).verify(
            done.stdout.strip()
        )
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


async def test_the_health_check_minds_no_file_that_the_instance_does_without(tmp_path: Path) -> None:
    live = tmp_path / "settings.json"
    live.write_text("not JSON")
    async with answering("200 OK") as port:
        done = await asyncio.to_thread(
            run,
            "healthcheck",
            WS_PORT=str(port),
            WS_HOST="0.0.0.0",
            TABLEFORGE_LIVE_SETTINGS_FILE=str(live),
        )
    assert done.returncode == 0, done.stderr


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
        async with asyncio.timeout(60):
            while (await asyncio.to_thread(run, "healthcheck", **ports)).returncode != 0:
                assert child.returncode is None, child.output()
    finally:
        child.send(signal.SIGTERM)
        assert await child.ended(60) == 0, child.output()


async def until_ready_answers(status: int, instance: DataplaneProcess) -> None:
    async with asyncio.timeout(60):
        while (await instance.get("/ready"))[0] != status:  # noqa: ASYNC110 (another process)
            await asyncio.sleep(0.02)


async def test_sigterm_ends_an_instance_with_0_and_takes_it_out_of_the_registry(
    redis_server: RedisServer, dataplane: DataplaneFleet
) -> None:
    one, two = await dataplane(redis_server, 2, TABLEFORGE_HTTP_FLEET_KEY="the-key")
    assert await one.sigterm() == 0
    told = logged(one.log)
    names = [line["event"] for line in told]
    assert names.index("signal_received") < names.index("drained") < names.index("stopped")
    assert "instance_withdrawn" in names
    assert {line["instance"] for line in told} == {"instance-1"}
    assert two.running


async def test_a_drain_ends_when_the_last_client_has_gone(
    redis_server: RedisServer, dataplane: DataplaneFleet
) -> None:
    [one] = await dataplane(redis_server, 1, TABLEFORGE_SCALING_DRAIN_TIMEOUT="600000")
    async with connect(one.url) as client:
        ended = asyncio.create_task(one.sigterm())
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
        assert await one._child.ended(60) == 0
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
        assert await child.ended(60) == 1
    words = file.read_text()
    assert "address already in use" in words
    assert "TABLEFORGE_HTTP_PORT" in words, "which settings say where it listens"
    log = (tmp_path / "log").read_text()
    assert words.strip() in log
    assert "Traceback" not in log


async def test_who_does_not_want_to_wait_for_redis_ends_with_what_is_wrong(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    file = tmp_path / "termination-log"
    file.touch()
    serve = [COMMAND, "serve", "--termination-log", str(file)]
    more = {"TABLEFORGE_REDIS_LAZY_CONNECT": "false", "WS_HOST": "127.0.0.1", "WS_PORT": "0"}
    more |= {"TABLEFORGE_HTTP_PORT": "0"}
    port = free_port()
    away = environment(
        REDIS_HOST="127.0.0.1", REDIS_PORT=str(port), TABLEFORGE_REDIS_CONNECT_TIMEOUT="2000", **more
    )
    child = Child(serve, log=tmp_path / "log", environ=away)
    assert await child.ended(60) == 1
    assert file.read_text().startswith(f"Redis at 127.0.0.1:{port} cannot be reached")
    # where Redis answers, it goes on
    child = Child(serve, log=tmp_path / "log2", environ=environment(**redis_server.environ, **more))
    try:
        async with asyncio.timeout(60):
            while "started" not in {line["event"] for line in logged(tmp_path / "log2")}:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        child.send(signal.SIGTERM)
        assert await child.ended(60) == 0
    finally:
        await child.stop()


async def test_a_missing_key_file_is_told_and_waited_for(
    redis_server: RedisServer, dataplane: DataplaneFleet, tmp_path: Path
) -> None:
    file = tmp_path / "jwt" / "secret"
    [one] = await dataplane(
        redis_server, 1, wait_until_ready=False, AUTH_REQUIRED="true", JWT_SECRET_FILE=str(file)
    )
    async with asyncio.timeout(60):
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


@pytest.mark.parametrize("others", [False, True])
async def test_a_key_file_that_goes_away_later_shows_in_health_until_it_is_back(
    redis_server: RedisServer, dataplane: DataplaneFleet, tmp_path: Path, others: bool
) -> None:
    file = tmp_path / "secret"
    file.write_text(KEY)
    [one] = await dataplane(
        redis_server,
        1,
        AUTH_REQUIRED="true",
        JWT_SECRET_FILE=str(file),
        TABLEFORGE_AUTH_PREVIOUS_JWT_SECRET="p" * 32 if others else "",
        TABLEFORGE_MONITORING_HEALTH_CHECK_INTERVAL="100",
    )

    async def until_health_says(status: str, code: int, problems: list[str]) -> None:
        async with asyncio.timeout(60):
            while True:
                answered, body = await one.get("/health")
                health = json.loads(body)
                found = [sentence.partition(":")[0] for sentence in health["problems"]]
                lines = [line for line in logged(one.log) if line["event"] == "health"]
                told = lines and (lines[-1]["status"], lines[-1].get("problems", []))
                if (health["status"], answered, found) == (status, code, problems) and told == (
                    status,
                    health["problems"],
                ):
                    return
                await asyncio.sleep(0.05)

    await until_health_says("healthy", 200, [])
    file.unlink()
    # where there is another key, those who have tokens of that one still get in
    gone = [f"JWT_SECRET_FILE={file} does not exist"]
    await until_health_says(*(("healthy", 200) if others else ("degraded", 503)), gone)
    assert (await one.get("/ready"))[0] == 200
    file.write_text(KEY)
    await until_health_says("healthy", 200, [])


async def test_settings_without_effect_are_logged(
    redis_server: RedisServer, dataplane: DataplaneFleet
) -> None:
    [one] = await dataplane(redis_server, 1, REDIS_PUBSUB_DB="1")
    assert "setting_without_effect" in {line["event"] for line in logged(one.log)}
