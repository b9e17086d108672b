"""The short path for upgrade requests against the library's, on generated requests to whole instances.

Both answer the same bytes, in the same pieces; 6,000 requests, or as many as `UPGRADE_REQUESTS` says.
"""

import asyncio
import dataclasses
import itertools
import json
import os
import random
import re
import time
from collections import Counter
from collections.abc import Awaitable
from typing import Any

import jwt
import pytest
from websockets.http11 import Request, Response

from tableforge_dataplane.contract.settings import Secret
from tableforge_dataplane.server import Server
from tableforge_dataplane.wire import usual
from tableforge_dataplane.wire.connection import Connection
from tests.dataplane.path.instances import Instances
from tests.dataplane.path.parsers import Transport, client_frame
from tests.support.redis import RedisServer

REQUESTS = int(os.environ.get("UPGRADE_REQUESTS", "6000"))

KEY = "a secret of at least 32 characters"
TOKEN = jwt.encode({"sub": "ada", "exp": time.time() + 3600}, KEY, algorithm="HS256")

PLAIN = [
    b"Host: play.example.com",
    b"Upgrade: websocket",
    b"Connection: Upgrade",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    b"Sec-WebSocket-Version: 13",
]
BROWSER = [
    b"Host: play.example.com",
    b"Connection: keep-alive, Upgrade",
    b"Pragma: no-cache",
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0",
    b"Upgrade: WebSocket",
    b"Origin: https://play.example.com",
    b"Sec-WebSocket-Version: 13",
    b"Accept-Encoding: gzip, deflate, br",
    b"Sec-WebSocket-Key: AQIDBAUGBwgJCgsMDQ4PEC==",
    b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits",
    b"Sec-WebSocket-Protocol: tableforge.v1, bearer." + TOKEN.encode(),
]

FIELDS = (
    *PLAIN,
    *BROWSER,
    b"Connection: close",
    b"Connection: upgrade",
    b"Connection: Upgrade, Keep-Alive",
    b"Connection: ,Upgrade",
    b"Connection: Upgrade;",
    b"connection:Upgrade",
    b"CONNECTION:\t UPGRADE",
    b"Connection: Upgrade ",
    b"Connection : Upgrade",
    b"Connection:",
    b"Upgrade: h2c",
    b"Upgrade: websocket, h2c",
    b"Upgrade: websocket/13",
    b"upgrade:WEBSOCKET",
    b"Upgrade:\r\n websocket",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZWU=",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZR==",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZ-Bub25jZQ==",
    b"Sec-WebSocket-Key: dGhlIHNhbXBs SBub25jZQ==",
    b"Sec-WebSocket-Key: ====",
    b"Sec-WebSocket-Key:",
    b"Sec-WebSocket-Version: 8",
    b"Sec-WebSocket-Version: 13, 8",
    b"Sec-WebSocket-Version: 013",
    b"sec-websocket-version:  13\t",
    b"Sec-WebSocket-Protocol: tableforge.v1",
    b"Sec-WebSocket-Protocol: tableforge.v1,chat",
    b"Sec-WebSocket-Protocol: chat,  tableforge.v1",
    b"Sec-WebSocket-Protocol: Tableforge.V1",
    b"Sec-WebSocket-Protocol: graphql-ws",
    b"Sec-WebSocket-Protocol: bearer.nonsense",
    b"Sec-WebSocket-Protocol: bearer." + TOKEN.encode(),
    b"Sec-WebSocket-Protocol: tableforge.v1,,",
    b"Sec-WebSocket-Protocol: , tableforge.v1",
    b"Sec-WebSocket-Protocol: tableforge.v1 chat",
    b'Sec-WebSocket-Protocol: "tableforge.v1"',
    b"Sec-WebSocket-Protocol:",
    b"Sec-WebSocket-Extensions: permessage-deflate",
    b"Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=9; client_max_window_bits=10",
    b"Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover, permessage-deflate",
    b"Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=99, permessage-deflate",
    b"Sec-WebSocket-Extensions: permessage-deflate; nonsense",
    b"Sec-WebSocket-Extensions: x-webkit-deflate-frame",
    b"Sec-WebSocket-Extensions: ;",
    b"Sec-WebSocket-Extensions:",
    b"Origin: https://evil.example.com",
    b"Origin: https://play.example.com \t",
    b"Origin: null",
    b"Origin:",
    b"Host: other.example.com",
    b"Authorization: Bearer " + TOKEN.encode(),
    b"Authorization: bearer nonsense",
    b"Authorization: Basic YTpi",
    b"Cookie: a=b; c=d",
    b"Content-Length: 0",
    b"Content-Length: 5",
    b"Transfer-Encoding: chunked",
    b"X-Forwarded-For: 203.0.113.7",
    b"X-Empty:",
    b"X-Tab: a\tb",
    b"X-Bytes: \xc3\xa9",
    b"X-Zero: a\0b",
    b"X-Delete: a\x7fb",
    b"X-Return: a\rb",
    b"X-Feed: a\nb",
    b"X-Long: " + b"x" * 4000,
    b"X-Longer: " + b"x" * 9000,
    b" folded",
    b"\tfolded",
    b"nothing",
    b": nameless",
    b"B\xc3\xa9: x",
    b"Na me: x",
    b"Name(: x",
    b"",
)

LINES = (
    b"GET /ws HTTP/1.0",
    b"GET /ws HTTP/1.1 ",
    b"GET  /ws HTTP/1.1",
    b"GET /ws  HTTP/1.1",
    b" GET /ws HTTP/1.1",
    b"get /ws HTTP/1.1",
    b"HEAD /ws HTTP/1.1",
    b"POST /ws HTTP/1.1",
    b"GET /ws/ HTTP/1.1",
    b"GET /wsx HTTP/1.1",
    b"GET /WS HTTP/1.1",
    b"GET //ws HTTP/1.1",
    b"GET /ws#x HTTP/1.1",
    b"GET /ws;a HTTP/1.1",
    b"GET /live HTTP/1.1",
    b"GET /nowhere HTTP/1.1",
    b"GET http://play.example.com/ws HTTP/1.1",
    b"GET /i/another/ws HTTP/1.1",
    b"GET /i//ws HTTP/1.1",
    b"GET /i/instance-1/wsx HTTP/1.1",
    b"GET /i/instance-1/live HTTP/1.1",
    b"GET /i/instance-1 HTTP/1.1",
    b"GET /i/a/b/ws HTTP/1.1",
    b"GET /i/instance%2D1/ws HTTP/1.1",
    b"GET /ws?a b HTTP/1.1",
    b"GET /ws?\xc3\xa9 HTTP/1.1",
    b"GET /ws?a\tb HTTP/1.1",
    b"GET /ws?a\nb HTTP/1.1",
    b"GET /ws?a\r\nX:b HTTP/1.1",
    b"GET /ws",
    b"",
)

USUAL_LINES = (
    b"GET /ws HTTP/1.1",
    b"GET /ws HTTP/1.1",
    b"GET /i/instance-1/ws HTTP/1.1",
    b"GET /i/instance-1/ws?x=1 HTTP/1.1",
    b"GET /ws? HTTP/1.1",
    b"GET /ws?token=nonsense HTTP/1.1",
    b"GET /ws?x=1&token=" + TOKEN.encode() + b" HTTP/1.1",
    b"GET /ws?" + b"&".join([b"a=b"] * 30) + b" HTTP/1.1",
)

BEHIND = (
    client_frame(b'{"type":"ping","id":1}'),
    client_frame(b'{"type":"join","room":"a b"}'),
    client_frame(b'{"type":"ping","id":1}', fin=False),
    client_frame(b"x", opcode=9),
    client_frame(b"\x03\xe8", opcode=8),
    client_frame(b"", opcode=2),
    client_frame(b"{}", mask=None),
    b"\x81",
    b"\r\n".join([b"GET /ws HTTP/1.1", *PLAIN, b"", b""]),
    b"\r\n",
    b"hello",
)


class Requests:
    """Makes a request, and what comes with it, from one seed."""

    def __init__(self, seed: int) -> None:
        choose = random.Random(seed)
        self.on = choose.randrange(2)
        """Which of the instances it comes to."""
        self.later = choose.random() < 0.15
        """Whether the answer takes a moment."""
        self.ends = choose.random() < 0.1
        line = choose.choice(LINES) if choose.random() < 0.08 else choose.choice(USUAL_LINES)
        fields = list(choose.choice((PLAIN, BROWSER)))
        if choose.random() < 0.5:
            choose.shuffle(fields)
        for _ in range(choose.choice((0, 0, 1, 1, 2, 3))):
            self._change(choose, fields)
        if choose.random() < 0.02:
            fields += [b"X: %d" % number for number in range(choose.choice((50, 60, 70, 120, 130)))]
        ends = [b"\n" if choose.random() < 0.01 else b"\r\n" for _ in range(len(fields) + 2)]
        self.request = b"".join(itertools.chain.from_iterable(zip([line, *fields, b""], ends, strict=True)))
        if choose.random() < 0.05:
            self.request = self._damage(choose, self.request)
        behind = [choose.choice(BEHIND) for _ in range(choose.choice((0, 0, 0, 1, 2)))]
        kind = choose.random()
        if kind < 0.5:
            self.parts = [self.request, *behind]
        elif kind < 0.55:
            # a request that is whole, but not the first that came
            self.parts = [line + b"\r\n", self.request, *behind]
        else:
            stream = self.request + b"".join(behind)
            cuts = {choose.randint(0, len(stream)) for _ in range(choose.choice((0, 1, 2, 5)))}
            cuts |= {len(self.request)} if choose.random() < 0.5 else set()
            self.parts = [
                stream[begin:end] for begin, end in itertools.pairwise(sorted(cuts | {0, len(stream)}))
            ]

    @staticmethod
    def _change(choose: random.Random, fields: list[bytes]) -> None:
        """One more, one less, or another one in the place of one of the same name."""
        other = choose.choice(FIELDS)
        kind = choose.random()
        if kind < 0.2:
            fields.insert(choose.randint(0, len(fields)), other)
        elif kind < 0.35 and fields:
            del fields[choose.randrange(len(fields))]
        else:
            name = other.partition(b":")[0].strip().lower()
            fields[:] = [field for field in fields if field.partition(b":")[0].strip().lower() != name]
            fields.insert(choose.randint(0, len(fields)), other)

    @staticmethod
    def _damage(choose: random.Random, request: bytes) -> bytes:
        """A byte more, less or other."""
        at = choose.randrange(len(request))
        return request[:at] + choose.randbytes(choose.randrange(2)) + request[at + choose.randrange(2) :]


class Wire(Transport):
    """Says whether it was closed, and how."""

    def __init__(self) -> None:
        super().__init__()
        self.ended = ""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 50_000) if name == "peername" else default

    def write_eof(self) -> None:
        self.ended += "eof "

    def is_closing(self) -> bool:
        return "abort" in self.ended or "close" in self.ended

    def close(self) -> None:
        self.ended += "close "

    def abort(self) -> None:
        self.ended += "abort "


_is_date = re.compile(r"Date: \w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT").fullmatch


@dataclasses.dataclass
class Seen:
    """What came of a request."""

    early: bytes
    """What the library answers to frames that come before its answer to the request."""
    head: list[str]
    """The response's lines, in their order."""
    body: list[Any]
    """What followed, frame by frame; or the text of a plain response."""
    ended: str
    state: str
    path: str
    subprotocol: str | None
    origin: str | None
    extensions: list[str]
    user: str | None
    guest: bool
    refusal: str | None
    short_frames: bool
    unread: bytes


def _frames(data: bytes) -> list[Any]:
    found: list[Any] = []
    while data:
        length, start = data[1], 2
        if length == 126:
            length, start = int.from_bytes(data[2:4]), 4
        payload = data[start : start + length]
        if data[0] == 0x81:
            event = json.loads(payload)
            for name in ("session", "time"):
                event.pop(name, None)
            if str(event.get("user")).startswith("guest-"):
                event["user"] = "guest"
            found.append(event)
        else:
            found.append((data[0], payload))
        data = data[start + length :]
    return found


def _seen(connection: Connection, wire: Wire) -> Seen:
    protocol = connection.protocol
    begins = max(0, wire.written.find(b"HTTP/1.1 "))
    head, _, body = wire.written[begins:].partition(b"\r\n\r\n")
    lines = head.decode("iso-8859-1").split("\r\n")
    dates = [
        line for line in lines if re.fullmatch(r"Date: \w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", line)
    ]
    switched = lines[0] == "HTTP/1.1 101 Switching Protocols"
    assert len(dates) == 1 or not switched
    session = connection.session
    user = connection.identity.user if connection.identity is not None else None
    return Seen(
        early=wire.written[:begins],
        head=["Date" if line in dates else line for line in lines],
        body=_frames(body) if switched else [body],
        ended=wire.ended,
        state=protocol.state.name,
        path="none" if session is None else "closed" if session.closed else "open",
        subprotocol=protocol.subprotocol,
        origin=protocol.origin,
        extensions=[repr(extension) for extension in protocol.extensions],
        user="guest" if connection.guest else user,
        guest=connection.guest,
        refusal=None if connection.refusal is None else connection.refusal.code,
        short_frames=connection._direct,
        unread=bytes(protocol.reader.buffer),
    )


async def _carried_out(server: Server, made: Requests, *, short: bool) -> tuple[Seen, bool]:
    """What the instance makes of it; with `short` False by the library alone. And whether it was short."""
    connection = server._make_connection()
    if not short:
        connection._untouched = False
    wire = Wire()
    connection.connection_made(wire)
    for part in made.parts:
        if wire.is_closing() or "eof" in wire.ended:
            break
        connection.data_received(part)
    if made.later:
        for _ in range(4):
            await asyncio.sleep(0)
    if made.ends and not wire.is_closing():
        connection.eof_received()
    seen = _seen(connection, wire)
    connection.connection_lost(None)
    return seen, connection._is_usual


class Slowly:
    """Stands in for an instance's answer to a request and gives it a turn of the loop later."""

    def __init__(self, server: Server) -> None:
        self._asked = server.asked

    def __call__(self, connection: Connection, request: Request) -> Awaitable[Response | None]:
        return self._answer(connection, request)

    async def _answer(self, connection: Connection, request: Request) -> Response | None:
        await asyncio.sleep(0)
        answer = self._asked(connection, request)
        assert answer is None or isinstance(answer, Response)
        return answer


@pytest.mark.timeout(max(120, REQUESTS // 100))
async def test_both_paths_give_every_request_the_same_answer(
    redis_server: RedisServer, instances: Instances, monkeypatch: pytest.MonkeyPatch
) -> None:
    # no user and address is to be remembered for the requests before
    alike = dict.fromkeys(
        ("enable_ddos_protection", "enable_connection_limiting", "enable_rate_limiting"), False
    )
    (anybody,) = await instances(redis_server, performance={"enable_compression": False}, security=alike)
    auth = {"required": True, "jwt_secret": Secret(value=KEY), "query_token": True}
    (known,) = await instances(redis_server, auth=auth, security=alike)
    statuses: Counter[str] = Counter()
    shorts: Counter[str] = Counter()
    for seed in range(REQUESTS):
        made = Requests(seed)
        server = (anybody, known)[made.on]
        with monkeypatch.context() as patched:
            if made.later:
                patched.setattr(server, "asked", Slowly(server))
            got, was_short = await _carried_out(server, made, short=True)
            expected, was_not = await _carried_out(server, made, short=False)
        assert not was_not
        assert got == expected, f"seed {seed}: {made.parts}"
        statuses[expected.head[0][:12]] += 1
        shorts[expected.head[0][:12]] += was_short
        if seed % 200 == 0:
            await asyncio.sleep(0)
    assert shorts["HTTP/1.1 101"] > REQUESTS / 10, shorts
    assert shorts["HTTP/1.1 401"] > REQUESTS / 500, shorts
    for status in ("", "HTTP/1.1 101", "HTTP/1.1 400", "HTTP/1.1 401", "HTTP/1.1 426"):
        assert statuses[status] - shorts[status] > REQUESTS / 500, f"{status} came hardly ever: {statuses}"


@pytest.mark.parametrize("fields", [PLAIN, BROWSER], ids=["plain", "browser"])
@pytest.mark.parametrize("line", USUAL_LINES)
def test_what_clients_send_takes_the_short_path(line: bytes, fields: list[bytes]) -> None:
    data = b"\r\n".join([line, *fields, b"", b""])
    request = usual.read(data)
    assert request is not None
    assert request.path == line.split()[1].decode()
    assert list(request.headers.raw_items()) == [tuple(field.decode().split(": ", 1)) for field in fields]


@pytest.mark.parametrize(
    "unusual",
    [
        b"GET /ws HTTP/1.1\r\n" + b"X:" * 2000 + b"\r\n\r\n",
        b"GET /ws HTTP/1.1\r\n" + b"a:\r\n" * 1000,
        b"GET /ws HTTP/1.1\r\n" + b"a: \t" * 1000,
        b"GET /ws?" + b"a" * 4000,
        b"GET /ws HTTP/1.1\r\n" + b"a:b c\r\n" * 60 + b"\n",
    ],
)
def test_no_request_takes_long_to_be_found_unusual(unusual: bytes) -> None:
    began = time.thread_time()
    for _ in range(100):
        assert usual.read(unusual) is None
    assert time.thread_time() - began < 0.1 * 5, "5 ms a request"
