"""A chat in the terminal: `python -m tableforge_client ws://127.0.0.1:3001/ws --room table:1`.

Lines typed are published; messages are printed with the instance they came through and their number. State
changes go to stderr. It ends at the end of the input or with Ctrl-C.
"""

import argparse
import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from tableforge_client import (
    Client,
    Message,
    Reset,
    Room,
    State,
    StateChange,
    TableForgeError,
    connect,
)

_TOKEN_SECONDS = 3600
_OWN_LINE_SECONDS = 2.0
"""How long the end of the input waits for the last line to come back from the room."""


def development_token(user: str, secret: str, *, seconds: int = _TOKEN_SECONDS) -> str:
    """A JWT for `user` that is good for `seconds`, signed with HS256 as the service's own would be."""

    def part(raw: bytes) -> str:
        return base64.urlsafe_b64encode(raw).decode().rstrip("=")

    claims = {"sub": user, "exp": int(time.time()) + seconds}
    head = part(b'{"alg":"HS256","typ":"JWT"}') + "." + part(json.dumps(claims).encode())
    return head + "." + part(hmac.new(secret.encode(), head.encode(), hashlib.sha256).digest())


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tableforge_client",
        description="Talk in a room from the terminal: lines of standard input are published, what the room "
        "hears is printed.",
        epilog="A token can also come from the environment variable TABLEFORGE_TOKEN, where no process list "
        "shows it.",
    )
    parser.add_argument(
        "url", nargs="+", help="address of the service, ws://…/ws or wss://…/ws; several are tried"
    )
    parser.add_argument("--room", required=True, help="the room to join")
    parser.add_argument("--pos", help="go on after this place (shown by --show-pos) instead of from now")
    parser.add_argument(
        "--event", default="chat", help="the event's name for published lines (default: chat)"
    )
    parser.add_argument("--listen", action="store_true", help="only print; don't read standard input")
    parser.add_argument("--show-pos", action="store_true", help="print each message's pos too")
    who = parser.add_argument_group("who you are")
    who.add_argument("--token", help="a JWT to present")
    who.add_argument("--user", help="make a development token for this user; needs --secret-file")
    who.add_argument("--secret-file", type=Path, help="file with the service's JWT secret (HS256)")
    chosen = parser.parse_args(argv)
    if bool(chosen.user) != bool(chosen.secret_file):
        parser.error("--user and --secret-file go together: the token for the user is signed with the secret")
    if chosen.user and chosen.token:
        parser.error("give either --token or --user with --secret-file")
    if chosen.secret_file and not os.access(chosen.secret_file, os.R_OK):
        parser.error(f"{chosen.secret_file} is not there or cannot be read")
    return chosen


def _token(chosen: argparse.Namespace) -> str | Callable[[], str] | None:
    if chosen.user:
        user: str = chosen.user
        secret_file: Path = chosen.secret_file
        return lambda: development_token(user, secret_file.read_text(encoding="utf-8").rstrip("\r\n"))
    return chosen.token or os.environ.get("TABLEFORGE_TOKEN") or None


def _on_state(change: StateChange) -> None:
    match change.state:
        case State.CONNECTED:
            text = f"connected to {change.instance}"
        case State.RECONNECTING:
            text = f"reconnecting in {change.retry_in_seconds or 0:.1f} s ({change.reason})"
        case State.CONNECTING if change.reason:
            text = f"connecting again in {change.retry_in_seconds or 0:.1f} s ({change.reason})"
        case _:
            return
    print(f"-- {text}", file=sys.stderr, flush=True)


def _line(item: Message | Reset, instance: str | None, *, show_pos: bool) -> str:
    if isinstance(item, Reset):
        return f"-- {item.reason}: what follows does not continue what came before"
    data = item.data if isinstance(item.data, str) else json.dumps(item.data, ensure_ascii=False)
    pos = f" {item.pos}" if show_pos else ""
    # what others sent must not be able to move this terminal's cursor
    text = "".join(letter if letter.isprintable() else "�" for letter in f"{item.event}: {data}")
    clock = time.strftime("%H:%M:%S", time.localtime(item.ts))
    return f"{clock} [{instance or 'reconnecting'} #{item.seq}{pos}] {item.sender or 'someone'} {text}"


class _Printed:
    """The number of the newest message printed."""

    def __init__(self) -> None:
        self._seq = 0
        self._moved = asyncio.Event()

    def moved_to(self, seq: int) -> None:
        self._seq = seq
        self._moved.set()

    async def reaches(self, seq: int) -> None:
        while self._seq < seq:
            self._moved.clear()
            await self._moved.wait()


async def _print_all(client: Client, room: Room, printed: _Printed, *, show_pos: bool) -> None:
    async for item in room:
        if isinstance(item, Message | Reset):
            print(_line(item, client.instance, show_pos=show_pos), flush=True)
        if isinstance(item, Message):
            printed.moved_to(item.seq)


def _read_lines(source: TextIO, put: Callable[[str | None], None]) -> None:
    for line in source:
        put(line.rstrip("\n"))
    put(None)


async def _publish_lines(room: Room, event: str, printed: _Printed) -> None:
    last = 0
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[str | None] = asyncio.Queue(1)

    def put(line: str | None) -> None:
        # waits while a line is being published, so a large file on standard input stays a file
        asyncio.run_coroutine_threadsafe(lines.put(line), loop).result()

    # a thread of its own, and a daemon: a read of a terminal cannot be cancelled
    threading.Thread(target=_read_lines, args=(sys.stdin, put), daemon=True).start()
    while (line := await lines.get()) is not None:
        if line:
            last = (await room.publish(event, line)).seq
    # an acknowledgement may be ahead of the message itself
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_OWN_LINE_SECONDS):
            await printed.reaches(last)


async def chat(chosen: argparse.Namespace) -> None:
    """Run the chat until the input ends or the room does."""
    async with connect(chosen.url, token=_token(chosen), on_state=_on_state) as client:
        room = await client.join(chosen.room, pos=chosen.pos)
        printed = _Printed()
        printing = asyncio.create_task(_print_all(client, room, printed, show_pos=chosen.show_pos))
        if chosen.listen:
            await printing
            return
        publishing = asyncio.create_task(_publish_lines(room, chosen.event, printed))
        await asyncio.wait({printing, publishing}, return_when=asyncio.FIRST_COMPLETED)
        for task in (publishing, printing):
            if task.done():
                task.result()
        publishing.cancel()
        await room.leave()
        await printing


def main() -> None:
    try:
        asyncio.run(chat(arguments()))
    except KeyboardInterrupt:
        sys.exit(130)
    except (TableForgeError, OSError) as error:
        sys.exit(f"tableforge_client: {error}")


if __name__ == "__main__":
    main()
