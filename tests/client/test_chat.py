"""The chat in the terminal, run as a user runs it."""

import asyncio
import base64
import hashlib
import hmac
import json
import sys
import time
from pathlib import Path

from tableforge_client.__main__ import development_token
from tests.support.scripted_peer import ScriptedPeer


async def start(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tableforge_client",
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def test_lines_are_published_and_messages_printed(peer: ScriptedPeer) -> None:
    process = await start(peer.url, "--room", "table:1")
    assert process.stdin is not None
    assert process.stdout is not None
    connection = await peer.connection(within=60)
    await connection.welcome("tables-a-x2")
    await connection.join("table:1")
    process.stdin.write(b"hello\n")
    await connection.ack(await connection.expect("publish", event="chat", data="hello"), 1)
    process.stdin.close()  # the line must come back before the chat ends
    await connection.message("table:1", 1, "hello\x1b[2J")
    line = (await process.stdout.readline()).decode()
    assert "[tables-a-x2 #1] ada chat: hello" in line
    assert "\x1b" not in line
    assert await connection.closed() == 1000
    _, errors = await process.communicate()
    assert process.returncode == 0, errors
    assert b"connected to tables-a-x2" in errors


async def test_a_refused_room_is_an_exit_code_and_a_sentence(peer: ScriptedPeer) -> None:
    process = await start(peer.url, "--room", "table:1", "--listen")
    connection = await peer.connection(within=60)
    await connection.welcome()
    command = await connection.expect("join")
    await connection.reply(command, type="error", code="forbidden", message="not yours")
    _, errors = await process.communicate()
    assert process.returncode == 1
    assert b"tableforge_client: forbidden: not yours" in errors


async def test_wrong_arguments_say_what_would_be_right() -> None:
    process = await start("ws://127.0.0.1:9/ws", "--room", "a", "--user", "ada")
    _, errors = await process.communicate()
    assert process.returncode == 2
    assert b"--user and --secret-file go together" in errors
    process = await start("ws://127.0.0.1:9/ws", "--room", "a", "--user", "ada", "--secret-file", "/no/file")
    _, errors = await process.communicate()
    assert process.returncode == 2
    assert b"/no/file is not there or cannot be read" in errors


def test_the_development_token_is_a_signed_jwt(tmp_path: Path) -> None:
    token = development_token("ada", "s" * 32)
    head, claims, signature = token.split(".")
    decoded = json.loads(base64.urlsafe_b64decode(claims + "=="))
    assert decoded["sub"] == "ada"
    assert 0 < decoded["exp"] - time.time() <= 3600
    expected = hmac.new(b"s" * 32, f"{head}.{claims}".encode(), hashlib.sha256).digest()
    assert base64.urlsafe_b64decode(signature + "==") == expected
