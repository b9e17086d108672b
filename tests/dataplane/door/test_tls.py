"""TLS on the clients' port: every path over it, a PROXY header before it, and certificates that change."""

import asyncio
import contextlib
import dataclasses
import json
import ssl
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidMessage, InvalidStatus

from tableforge_dataplane.contract.settings import WebsocketSettings
from tableforge_dataplane.server import Server
from tableforge_dataplane.wire import tls
from tableforge_dataplane.wire.connection import Connection
from tableforge_dataplane.wire.tls import Certificate
from tests.dataplane.door.certificates import write_pair
from tests.dataplane.door.test_proxy_protocol import v2
from tests.dataplane.path.instances import Instances, Peer, until
from tests.support.redis import RedisServer


@dataclasses.dataclass
class Pair:
    """Both files."""

    certificate: Path
    key: Path

    def write(self, name: str) -> None:
        write_pair(self.certificate, self.key, name=name)

    @property
    def settings(self) -> dict[str, Any]:
        return {"tls_cert_file": str(self.certificate), "tls_key_file": str(self.key)}


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    made = Pair(tmp_path / "tls.crt", tmp_path / "tls.key")
    made.write("first")
    return made


def context(pair: Pair | None = None, *, newest: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    """A client's; without a pair it trusts everybody."""
    made = ssl.create_default_context()
    if pair is None:
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
    else:
        made.load_verify_locations(pair.certificate)
    if newest is not None:
        made.maximum_version = newest
    return made


async def peer_of(server: Server, trusts: ssl.SSLContext) -> Peer:
    socket = await connect(
        f"wss://127.0.0.1:{server.port}/ws", ssl=trusts, compression=None, ping_interval=None, close_timeout=1
    )
    peer = Peer(socket)
    peer.welcome = await peer.hear_type("welcome")
    return peer


async def name_of(server: Server) -> str:
    """The common name of the certificate that a new handshake gets."""
    _, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=context())
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.transport.abort()
    found = x509.load_der_x509_certificate(der).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value)


async def get(server: Server, path: str) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=context())
    writer.write(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    async with asyncio.timeout(30):
        answer = await reader.read()
    writer.close()
    return answer


async def test_clients_talk_over_tls_and_messages_take_the_short_path(
    redis_server: RedisServer, instances: Instances, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    (one,) = await instances(redis_server, websocket=pair.settings)
    ada, bob = await peer_of(one, context(pair)), await peer_of(one, context(pair))
    await ada.join("a")
    await bob.join("a")
    taken: list[bytes] = []
    original = Connection._through_library
    monkeypatch.setattr(
        Connection, "_through_library", lambda self, data: (taken.append(data), original(self, data))[1]
    )
    for number in range(20):
        await ada.published("a", {"n": number, "text": "höher" * 20})
    heard = await bob.messages(20)
    assert [message["data"]["n"] for message in heard] == list(range(20))
    assert taken == []
    large = "x" * 90_000  # several TLS records, and more than a read of the socket
    await ada.publish("a", large)
    assert (await bob.messages(1))[0]["data"] == large
    await ada.socket.close()
    assert ada.socket.close_code == 1000
    await until(lambda: one.metrics.connections == 1)
    await bob.silent()


async def test_checks_and_refusals_work_over_tls(
    redis_server: RedisServer, instances: Instances, pair: Pair
) -> None:
    (one,) = await instances(redis_server, websocket={**pair.settings, "max_connections": 1})
    for path in ("/live", "/ready", "/health"):
        assert (await get(one, path)).startswith(b"HTTP/1.1 200 ")
    assert json.loads((await get(one, "/health")).partition(b"\r\n\r\n")[2])["status"] == "healthy"
    ada = await peer_of(one, context(pair))
    with pytest.raises(InvalidStatus) as refused:
        await peer_of(one, context(pair))
    assert refused.value.response.status_code == 503
    await ada.silent()


async def test_old_versions_and_plain_text_are_refused(
    redis_server: RedisServer, instances: Instances, pair: Pair
) -> None:
    (one,) = await instances(redis_server, websocket={**pair.settings, "tls_min_version": "1.3"})
    ada = await peer_of(one, context(pair))
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        await peer_of(one, context(pair, newest=ssl.TLSVersion.TLSv1_2))
    reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
    writer.write(b"GET /live HTTP/1.1\r\nHost: a\r\n\r\n")
    async with asyncio.timeout(30):
        try:
            answer = await reader.read()
        except ConnectionResetError:
            answer = b""
    assert b"200" not in answer
    writer.close()
    await until(lambda: one.metrics.connections_refused["tls"] == 2 and one._door._arriving == 0)
    await ada.silent()


async def test_a_handshake_that_never_ends_is_counted_and_ended(
    redis_server: RedisServer, instances: Instances, pair: Pair
) -> None:
    (one,) = await instances(redis_server, websocket=pair.settings)
    ada = await peer_of(one, context(pair))
    one.handshake_timeout_seconds = 1.0
    reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
    writer.write(b"\x16\x03\x01\x02\x00")
    await until(lambda: one._door._arriving == 1)
    async with asyncio.timeout(30):
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
    await until(lambda: one._door._arriving == 0)
    writer.close()
    await ada.silent()


async def test_a_new_certificate_counts_for_new_handshakes_and_a_bad_one_for_none(
    redis_server: RedisServer,
    instances: Instances,
    pair: Pair,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(tls, "LOOK_EVERY_SECONDS", 0.0)
    (one,) = await instances(redis_server, websocket=pair.settings)
    ada = await peer_of(one, context(pair))
    assert await name_of(one) == "first"
    pair.write("second")
    assert await name_of(one) == "second"
    # a key that doesn't belong to the certificate, then no key at all
    write_pair(tmp_path / "other.crt", pair.key, name="other")
    assert await name_of(one) == "second"
    [problem] = one._health.report().problems
    assert "cannot be used" in problem
    pair.key.unlink()
    assert await name_of(one) == "second"
    [problem] = one._health.report().problems
    assert "TABLEFORGE_WEBSOCKET_TLS_KEY_FILE" in problem
    assert one._health.report().status == "healthy"
    pair.write("third")
    assert await name_of(one) == "third"
    assert one._health.report().problems == []
    await ada.silent()


async def test_without_a_certificate_an_instance_waits_and_says_so(
    redis_server: RedisServer, instances: Instances, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "LOOK_EVERY_SECONDS", 0.0)
    pair.key.unlink()
    (one,) = await instances(redis_server, websocket=pair.settings, wait_until_ready=False)
    with pytest.raises((ConnectionError, EOFError, InvalidMessage)):
        await peer_of(one, context())
    assert any("TABLEFORGE_WEBSOCKET_TLS_KEY_FILE" in text for text in one._readiness.waiting_for())
    pair.write("first")
    await until(lambda: one.ready)
    await peer_of(one, context(pair))


def test_a_key_with_a_password_is_named(pair: Pair) -> None:
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(pair.key.read_bytes(), None)
    pair.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    certificate = Certificate(dataclasses.replace(WebsocketSettings(), **pair.settings))
    assert certificate.context() is None
    assert certificate.problem is not None
    assert "password" in certificate.problem


@pytest.mark.parametrize("pieces", [1, 7, 10_000])
async def test_a_balancers_header_comes_before_the_tls_handshake(
    redis_server: RedisServer, instances: Instances, pair: Pair, pieces: int
) -> None:
    (one,) = await instances(
        redis_server,
        websocket=pair.settings,
        security={"trusted_proxies": "127.0.0.1/32", "proxy_protocol": True, "max_connections_per_ip": 1},
    )
    request = (
        b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    kept = []
    for expected in (b"HTTP/1.1 101 ", b"HTTP/1.1 429 "):
        reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
        kept.append(writer)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = context().wrap_bio(incoming, outgoing, server_side=False)
        # header and ClientHello in one segment where the pieces are large
        first, step = v2("198.51.100.1"), None
        while step is None:
            try:
                client.do_handshake()
                step = "done"
            except ssl.SSLWantReadError:
                await _send(writer, first + outgoing.read(), pieces)
                first = b""
                incoming.write(await asyncio.wait_for(reader.read(65_536), 30))
        client.write(request)
        # the handshake's last flight and the request together
        await _send(writer, outgoing.read(), 10_000)
        answer = b""
        while len(answer) < 13:
            try:
                answer += client.read(65_536)
            except ssl.SSLWantReadError:
                incoming.write(await asyncio.wait_for(reader.read(65_536), 30))
        assert answer.startswith(expected)
    for writer in kept:
        writer.close()


async def _send(writer: asyncio.StreamWriter, data: bytes, piece: int) -> None:
    for at in range(0, len(data), piece):
        writer.write(data[at : at + piece])
        await writer.drain()
        await asyncio.sleep(0)
