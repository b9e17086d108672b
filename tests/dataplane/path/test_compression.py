"""permessage-deflate: agreed on without context, compressed once for all, and safe against bombs."""

import json
import os
import zlib
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.frames import Frame, Opcode

from tableforge_dataplane.observability.metrics import Metrics
from tableforge_dataplane.server import Server
from tableforge_dataplane.wire.compression import Deflater
from tests.dataplane.path.instances import Instances, Peer, Peers, until
from tests.support.processes import DataplaneFleet
from tests.support.redis import RedisServer

TEXT = "All of this is said once more. " * 100


def deflating(window_bits: int | None = None) -> dict[str, Any]:
    """Options for a peer that offers compression, with a window of its choice."""
    return {"extensions": [ClientPerMessageDeflateFactory(server_max_window_bits=window_bits)]}


def counted(peer: Peer) -> list[int]:
    """Counts what comes from the peer's socket from now on."""
    received = [0]
    original = peer.socket.data_received

    def data_received(data: bytes) -> None:
        received[0] += len(data)
        original(data)

    transport: Any = peer.socket.transport
    peer.socket.data_received = data_received  # type: ignore[method-assign]
    transport.set_protocol(peer.socket)
    return received


async def test_a_message_is_compressed_once_for_all_and_sent_plain_to_others(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server)
    squeezed = [await peers(one, **deflating()) for _ in range(5)]
    plain = await peers(one)
    for peer in (*squeezed, plain):
        await peer.join("lobby")
    sizes = [counted(peer) for peer in (*squeezed, plain)]
    await plain.publish("lobby", TEXT)
    for peer in (*squeezed, plain):
        (message,) = await peer.messages(1)
        assert message["data"] == TEXT
    await plain.silent()
    assert all(size[0] < len(TEXT) / 5 for size in sizes[:-1]), sizes
    assert sizes[-1][0] > len(TEXT)
    assert len(TEXT) < one.metrics.compression_in_bytes < 2 * len(TEXT), "more than once"
    assert 0 < one.metrics.compression_out_bytes < len(TEXT) / 5


async def test_the_handshake_declines_context_in_both_directions(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server)
    peer = await peers(one, **deflating())
    assert peer.socket.response is not None
    agreed = peer.socket.response.headers["Sec-WebSocket-Extensions"]
    assert "server_no_context_takeover" in agreed
    assert "client_no_context_takeover" in agreed


async def test_below_the_threshold_and_where_it_is_off_nothing_is_compressed(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    one, off = [
        *await instances(redis_server, performance={"compression_threshold_bytes": 100_000}),
        *await instances(redis_server, performance={"enable_compression": False}),
    ]
    for server in (one, off):
        peer = await peers(server, **deflating())
        assert bool(peer.socket.protocol.extensions) == (server is one)
        await peer.join("lobby")
        received = counted(peer)
        await peer.publish("lobby", TEXT)
        assert (await peer.messages(1))[0]["data"] == TEXT
        assert received[0] > len(TEXT)
        assert server.metrics.compression_in_bytes == 0


async def test_each_window_size_gets_what_it_can_inflate(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server)
    squeezed = [await peers(one, **deflating(bits)) for bits in (9, 10, 15, None)]
    # repeats further back than a small window reaches
    text = "".join(f"{number * number} " for number in range(3000)) * 2
    for peer in squeezed:
        await peer.join("lobby")
    for _ in range(3):
        await squeezed[0].publish("lobby", text)
        for peer in squeezed:
            assert (await peer.messages(1))[0]["data"] == text


async def test_recovered_pages_are_compressed_too(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server)
    ada = await peers(one)
    beginning = (await ada.join("lobby"))["pos"]
    for _ in range(5):
        await ada.published("lobby", TEXT)
    late = await peers(one, **deflating())
    received = counted(late)
    await late.join("lobby", beginning)
    assert [message["data"] for message in await late.messages(5)] == [TEXT] * 5
    assert received[0] < len(TEXT)


async def test_compressed_commands_are_carried_out(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server)
    peer = await peers(one, **deflating())
    await peer.join("lobby")
    for _ in range(3):
        await peer.publish("lobby", TEXT)
        assert (await peer.messages(1))[0]["data"] == TEXT
    # in fragments, with a ping between them
    whole = json.dumps({"type": "publish", "room": "lobby", "event": "said", "data": TEXT})

    async def parts() -> Any:
        for start in range(0, len(whole), 1000):
            yield whole[start : start + 1000]
            await (await peer.socket.ping())

    await peer.socket.send(parts())
    assert (await peer.messages(1))[0]["data"] == TEXT


def bomb(megabytes: int) -> bytes:
    """A text message that becomes so large, compressed about a thousand times."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    squeezed = b"".join(compressor.compress(b" " * 1_048_576) for _ in range(megabytes))
    return (squeezed + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


def masked(squeezed: bytes, *, fin: bool = True, first: bool = True) -> bytes:
    """A client's frame; the first of a compressed message has a reserved bit set."""
    frame = Frame(Opcode.TEXT if first else Opcode.CONT, squeezed, fin).serialize(mask=True)
    return bytes((frame[0] | (0x40 if first else 0),)) + frame[1:]


async def test_a_bomb_is_refused_with_1009_and_costs_neither_memory_nor_others(
    redis_server: RedisServer, dataplane: DataplaneFleet, peers: Peers
) -> None:
    (process,) = await dataplane(redis_server, 1)
    server: Server = process  # type: ignore[assignment]
    witness = await peers(server)
    await witness.join("lobby")
    status = Path(f"/proc/{process.pid}/status")

    def peak_bytes() -> int:
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) * 1024

    before, cpu_before = peak_bytes(), _cpu_seconds(process.pid)
    squeezed = bomb(64)
    assert len(squeezed) < 100_000, "it must pass as a frame"
    for _ in range(10):
        attacker = await peers(server, **deflating())
        attacker.socket.transport.write(masked(squeezed))
        assert await attacker.closed() == 1009
        # in pieces, of which none is too large
        attacker = await peers(server, **deflating())
        pieces = [squeezed[at : at + 50] for at in range(0, 2000, 50)]
        for number, piece in enumerate(pieces):
            attacker.socket.transport.write(masked(piece, fin=False, first=number == 0))
        assert await attacker.closed() == 1009
    assert peak_bytes() - before < 16_000_000
    assert _cpu_seconds(process.pid) - cpu_before < 2.0
    await witness.published("lobby", "unharmed")


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("garbage", [b"\xff\xff\xff", b"", os.urandom(500)])
async def test_what_cannot_be_inflated_ends_only_its_own_connection(
    redis_server: RedisServer, instances: Instances, peers: Peers, garbage: bytes
) -> None:
    (one,) = await instances(redis_server)
    witness, attacker = await peers(one), await peers(one, **deflating())
    attacker.socket.transport.write(masked(garbage))
    if garbage:
        assert await attacker.closed() in (1002, 1009)
    else:
        assert (await attacker.hear_type("error"))["code"] == "bad_frame"
    await witness.silent()


async def test_endless_empty_fragments_take_no_memory(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server)
    peer = await peers(one)
    (connection,) = one._connections
    transport = peer.socket.transport
    transport.write(Frame(Opcode.TEXT, b'{"type":', False).serialize(mask=True))
    for _ in range(1000):
        transport.write(Frame(Opcode.CONT, b"", False).serialize(mask=True))
    transport.write(Frame(Opcode.CONT, b'"ping"', False).serialize(mask=True))
    await until(lambda: connection._fragments.endswith(b'"ping"'))
    assert connection._fragments == b'{"type":"ping"'
    transport.write(Frame(Opcode.CONT, b"}").serialize(mask=True))
    await peer.hear_type("pong")


async def test_who_offers_a_window_that_zlib_cannot_make_goes_without(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server)
    peer = await peers(
        one,
        additional_headers={"Sec-WebSocket-Extensions": "permessage-deflate; server_max_window_bits=8"},
    )
    assert not peer.socket.protocol.extensions
    await peer.silent()


def test_no_message_shows_in_the_size_of_the_next() -> None:
    metrics = Metrics()
    deflater = Deflater(window_bits=15, threshold_bytes=64, metrics=metrics)
    secret = json.dumps({"token": os.urandom(400).hex()}).encode()
    guess, other = secret, json.dumps({"token": os.urandom(400).hex()}).encode()
    deflater.frame(secret)
    after_secret = len(deflater.frame(guess))
    fresh = Deflater(window_bits=15, threshold_bytes=64, metrics=metrics)
    assert after_secret == len(fresh.frame(guess))
    assert abs(after_secret - len(deflater.frame(other))) < 32


def test_what_compression_makes_longer_is_sent_as_it_is() -> None:
    deflater = Deflater(window_bits=15, threshold_bytes=64, metrics=Metrics())
    noise = os.urandom(2000)
    assert deflater.frame(noise)[4:] == noise
    squeezed = deflater.frame(b"x" * 2000)[2:]
    assert zlib.decompressobj(-15).decompress(squeezed + b"\x00\x00\xff\xff") == b"x" * 2000


async def test_a_client_that_is_compressed_to_is_closed_when_slow_like_any_other(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(
        redis_server,
        websocket={"write_limit_bytes": 262_144},
        security={
            "max_messages_per_second": 100_000,
            "max_messages_per_minute": 1_000_000,
            "max_bytes_per_second": 1_000_000_000,
        },
    )
    ada, slow = await peers(one), await peers(one, **deflating())
    await ada.join("lobby")
    await slow.join("lobby")
    slow.socket.transport.pause_reading()
    noise = "".join(chr(32 + byte % 90) for byte in os.urandom(40_000)).replace("\\", " ").replace('"', " ")
    for _ in range(2000):
        if one.metrics.slow_consumers:
            break
        await ada.publish("lobby", noise)
        try:
            await ada.until("message")
        except ConnectionClosed:
            raise AssertionError("the wrong one was closed") from None
    assert one.metrics.slow_consumers == 1
