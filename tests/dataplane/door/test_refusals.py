"""Everybody who doesn't get in, over real sockets; who is in notices nothing."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from websockets.datastructures import Headers
from websockets.exceptions import InvalidStatus

from tableforge_dataplane.contract.settings import Secret
from tableforge_dataplane.security.floods import FREE_OFFENCES
from tableforge_dataplane.security.tokens import mint
from tableforge_dataplane.server import Server
from tableforge_dataplane.wire import door
from tests.dataplane.door.test_proxy_protocol import v1, v2
from tests.dataplane.path.instances import Instances, Peer, Peers, until
from tests.support.redis import RedisServer

KEY = "a-key-that-is-long-enough-for-hs256"
PAGE = "http://127.0.0.1:8000"
BEHIND = {"trusted_proxies": "127.0.0.1/32"}
HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
CLOSE = b"\x88\x80\0\0\0\0"
"""A close frame, masked with nothing."""


def token(user: str = "ada") -> str:
    return mint(KEY, user=user, lifetime_seconds=600, rights=None)


def stand_still(server: Server, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """From now on the door's clock stands, and goes on by what is given to the answer."""
    now = server._door._clock()

    def goes_on(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(server._door, "_clock", lambda: now)
    return goes_on


def from_address(address: str, **more: str) -> dict[str, str]:
    return {"X-Forwarded-For": address, **more}


async def refused(peers: Peers, server: Server, **options: Any) -> tuple[int, Headers, str]:
    """Status, headers and text of the refusal a program gets."""
    with pytest.raises(InvalidStatus) as caught:
        await peers(server, **options)
    response = caught.value.response
    return response.status_code, response.headers, bytes(response.body or b"").decode()


async def told(peer: Peer) -> tuple[str, int | None]:
    """The error's code and the close code a browser gets."""
    error = await peer.hear_type("error")
    return error["code"], await peer.closed()


async def raw(server: Server, first: bytes, *, host: str = "127.0.0.1") -> bytes:
    """What comes back for `first` until the server closes, or its first bytes where it stays open."""
    reader, writer = await asyncio.open_connection(host, server.port)
    writer.write(first)
    try:
        async with asyncio.timeout(30):
            return await reader.read(65_536)
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


@pytest.mark.parametrize("request_", [HANDSHAKE, b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n"])
async def test_a_second_request_behind_the_first_is_nobodys(
    redis_server: RedisServer, instances: Instances, request_: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (one,) = await instances(redis_server)
    # as whoever would smuggle one past a proxy sends it
    answer = await raw(one, request_ + b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"101" not in answer
    assert b"healthy" not in answer
    await until(lambda: one._door._arriving == 0)
    assert one.metrics.connections == 0
    assert not [record for record in caplog.records if record.levelname == "ERROR"], caplog.text


async def test_an_address_gets_so_many_connections(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server, security={**BEHIND, "max_connections_per_ip": 2})
    first = await peers(one, additional_headers=from_address("198.51.100.1"))
    await peers(one, additional_headers=from_address("198.51.100.1"))
    status, headers, text = await refused(peers, one, additional_headers=from_address("198.51.100.1"))
    assert (status, "2 connections" in text) == (429, True)
    assert int(headers["Retry-After"]) > 0
    # what a client writes in front of what its proxy adds changes nothing
    spoofed = from_address("6.6.6.6, 198.51.100.1")
    assert (await refused(peers, one, additional_headers=spoofed))[0] == 429
    in_browser = await peers(one, welcome=False, origin=PAGE, additional_headers=from_address("198.51.100.1"))
    assert await told(in_browser) == ("rate_limited", 4429)
    await peers(one, additional_headers=from_address("198.51.100.2"))
    await first.silent()
    assert one.metrics.connections_refused["address_full"] == 3
    await first.socket.close()
    await until(lambda: one.metrics.connections == 2)
    await peers(one, additional_headers=from_address("198.51.100.1"))


async def test_ipv6_counts_by_64(redis_server: RedisServer, instances: Instances, peers: Peers) -> None:
    (one,) = await instances(redis_server, security={**BEHIND, "max_connections_per_ip": 1})
    await peers(one, additional_headers=from_address("2001:db8::1"))
    assert (await refused(peers, one, additional_headers=from_address("2001:db8::2:1")))[0] == 429
    await peers(one, additional_headers=from_address("2001:db8:0:1::1"))


@pytest.mark.parametrize("proxies", ["", "192.0.2.0/24"])
async def test_a_header_from_who_is_no_trusted_proxy_is_ignored(
    redis_server: RedisServer, instances: Instances, peers: Peers, proxies: str
) -> None:
    (one,) = await instances(redis_server, security={"trusted_proxies": proxies, "max_connections_per_ip": 1})
    await peers(one, additional_headers=from_address("198.51.100.1"))
    if proxies:
        # peers are clients then, this machine's too, and no header makes another one of it
        assert (await refused(peers, one, additional_headers=from_address("198.51.100.2")))[0] == 429
    else:
        await peers(one, additional_headers=from_address("198.51.100.1"))


async def test_limits_by_address_and_user_can_be_switched_off(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    security = {
        **BEHIND,
        "enable_connection_limiting": False,
        "max_connections_per_ip": 1,
        "max_connections_per_user": 1,
    }
    auth = {"jwt_secret": Secret(value=KEY), "required": True}
    (one,) = await instances(redis_server, security=security, auth=auth)
    headers = from_address("198.51.100.1", Authorization=f"Bearer {token()}")
    for _ in range(3):
        await peers(one, additional_headers=headers)


async def test_an_unreadable_header_of_a_trusted_proxy_is_refused(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server, security=BEHIND)
    assert (await refused(peers, one, additional_headers=from_address("nonsense")))[0] == 400
    # what doesn't matter for who the client is may be anything
    await peers(one, additional_headers=from_address("nonsense, 198.51.100.1"))


async def test_forwarded_counts_where_it_is_named(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    security = {**BEHIND, "client_address_header": "Forwarded", "max_connections_per_ip": 1}
    (one,) = await instances(redis_server, security=security)
    ada = {"Forwarded": 'for="[2001:db8::7]:4711";proto=https', "X-Forwarded-For": "198.51.100.1"}
    await peers(one, additional_headers=ada)
    ada["X-Forwarded-For"] = "198.51.100.2"
    assert (await refused(peers, one, additional_headers=ada))[0] == 429


async def test_a_user_gets_so_many_connections_however_the_token_comes(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    auth = {"jwt_secret": Secret(value=KEY), "required": True}
    (one,) = await instances(redis_server, security={"max_connections_per_user": 2}, auth=auth)
    ada = {"Authorization": f"Bearer {token()}"}
    first = await peers(one, additional_headers=ada)
    second = await peers(one, welcome=False)
    await second.say({"type": "auth", "token": token()})
    await second.hear_type("welcome")
    assert (await refused(peers, one, additional_headers=ada))[0] == 429
    third = await peers(one, welcome=False)
    await third.say({"type": "auth", "token": token()})
    assert await told(third) == ("rate_limited", 4429)
    assert await told(await peers(one, welcome=False, origin=PAGE, additional_headers=ada)) == (
        "rate_limited",
        4429,
    )
    await peers(one, additional_headers={"Authorization": f"Bearer {token('bob')}"})
    await second.socket.close()
    await until(lambda: one.metrics.connections == 2)
    # being turned away is no offence, whatever the number of times
    await peers(one, additional_headers=ada)
    await first.silent()


async def test_capacity_is_the_smaller_of_two_limits(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server, load_balancing={"max_connections_per_instance": 1})
    await peers(one)
    assert (await refused(peers, one))[0] == 503


async def test_an_origin_that_is_not_allowed_is_refused_with_403_and_4403(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server, security={"allowed_origins": "https://*.example.com"})
    ada = await peers(one, origin="https://app.example.com")
    await peers(one)  # programs have none
    evil = await peers(one, welcome=False, origin="https://evil.example")
    assert await told(evil) == ("forbidden", 4403)
    reply = await raw(one, HANDSHAKE[:-2] + b"Origin: https://a.example.com\r\nOrigin: https://b\r\n\r\n")
    assert reply.startswith(b"HTTP/1.1 400 ")
    # beyond those that are told already, a page gets what programs get
    one._admission.told += 50
    assert (await refused(peers, one, origin="https://evil.example"))[0] == 403
    one._admission.told -= 50
    await ada.silent()


async def test_where_anybody_may_connect_foreign_pages_may_not(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server)
    await peers(one, origin=PAGE)
    assert await told(await peers(one, welcome=False, origin="https://evil.example")) == ("forbidden", 4403)


async def test_handshakes_from_one_address_come_so_many_a_second(
    redis_server: RedisServer, instances: Instances, peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    security = {**BEHIND, "max_handshakes_per_second": 1, "max_connections_per_ip": 100}
    (one,) = await instances(redis_server, security=security)
    goes_on = stand_still(one, monkeypatch)
    bob = await peers(one, additional_headers=from_address("198.51.100.2"))
    headers = from_address("198.51.100.1")
    for _ in range(4):
        await peers(one, additional_headers=headers)
    began = asyncio.get_running_loop().time()
    status, answer, _ = await refused(peers, one, additional_headers=headers)
    # the answer waits, so that who tries again at once doesn't do so at once
    assert asyncio.get_running_loop().time() - began >= door.HOLD_SECONDS * 0.9
    assert (status, int(answer["Retry-After"]) >= 1) == (429, True)
    await bob.silent()
    goes_on(1.0)
    await peers(one, additional_headers=headers)
    assert (await refused(peers, one, additional_headers=headers))[0] == 429


async def test_an_address_that_floods_is_dropped_without_an_answer_in_the_end(
    redis_server: RedisServer, instances: Instances, peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "MOST_HELD_FROM_ONE", 3)
    monkeypatch.setattr(door, "HOLD_SECONDS", 0.5)
    security = {"trusted_proxies": "none", "max_handshakes_per_second": 1, "max_connections_per_ip": 100}
    (one,) = await instances(redis_server, security=security)
    stand_still(one, monkeypatch)
    ada = await peers(one)
    for _ in range(3):
        await peers(one)
    answers = await asyncio.gather(*(raw(one, HANDSHAKE) for _ in range(8)))
    assert sum(answer.startswith(b"HTTP/1.1 429") for answer in answers) >= 3
    await ada.silent()
    await until(lambda: one._door._held == 0)
    monkeypatch.setattr(door, "HOLD_SECONDS", 3.0)  # long enough to be met
    held = [asyncio.create_task(raw(one, HANDSHAKE)) for _ in range(3)]
    await until(lambda: one._door._held == 3)
    assert await raw(one, HANDSHAKE) == b""
    assert one.metrics.connections_refused["flood"] >= 1
    await ada.silent()
    await asyncio.gather(*held)
    await until(lambda: one._door._held == 0 and not one._door._held_from)


async def test_who_sends_nonsense_again_and_again_has_to_wait_longer_each_time(
    redis_server: RedisServer, instances: Instances, peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "HOLD_SECONDS", 0.05)
    (one,) = await instances(redis_server, security=BEHIND)
    goes_on = stand_still(one, monkeypatch)
    bob = await peers(one, additional_headers=from_address("198.51.100.2"))
    headers = from_address("198.51.100.1")
    offences: list[Callable[[Peer], Any]] = [
        lambda peer: peer.socket.send(b"binary"),
        lambda peer: peer.socket.send("x" * 200_000),
        lambda peer: peer.say(*[{"type": "nonsense"}] * 21),
        lambda peer: peer.socket.send(b"\xff", text=True),
    ]
    codes = []
    for number in range(FREE_OFFENCES + 1):
        peer = await peers(one, additional_headers=headers)
        await offences[number % 4](peer)
        codes.append(await peer.closed())
    assert codes == [1003, 1009, 4400, 1007]
    status, answer, text = await refused(peers, one, additional_headers=headers)
    assert (status, answer["Retry-After"]) == (429, "1")
    assert "again and again" in text
    assert await told(await peers(one, welcome=False, origin=PAGE, additional_headers=headers)) == (
        "rate_limited",
        4429,
    )
    goes_on(1.0)
    peer = await peers(one, additional_headers=headers)
    await peer.socket.send(b"binary")
    assert await peer.closed() == 1003
    assert (await refused(peers, one, additional_headers=headers))[1]["Retry-After"] == "2"
    await bob.silent()


async def test_a_user_who_sends_nonsense_has_to_wait_wherever_it_is(
    redis_server: RedisServer, instances: Instances, peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "HOLD_SECONDS", 0.05)
    auth = {"jwt_secret": Secret(value=KEY), "required": True}
    (one,) = await instances(redis_server, security=BEHIND, auth=auth)
    stand_still(one, monkeypatch)
    for number in range(FREE_OFFENCES + 1):
        headers = from_address(f"198.51.100.{number}", Authorization=f"Bearer {token()}")
        peer = await peers(one, additional_headers=headers)
        await peer.socket.send(b"binary")
        assert await peer.closed() == 1003
    headers = from_address("203.0.113.9", Authorization=f"Bearer {token()}")
    assert (await refused(peers, one, additional_headers=headers))[0] == 429
    await peers(one, additional_headers=from_address("198.51.100.0", Authorization=f"Bearer {token('bob')}"))


async def test_without_protection_nobody_has_to_wait(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    security = {**BEHIND, "enable_ddos_protection": False, "max_handshakes_per_second": 1}
    (one,) = await instances(redis_server, security=security)
    for _ in range(FREE_OFFENCES + 4):
        peer = await peers(one, additional_headers=from_address("198.51.100.1"))
        await peer.socket.send(b"binary")
        assert await peer.closed() == 1003


async def test_a_handshake_takes_no_longer_than_it_may(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    (one,) = await instances(redis_server, security={"handshake_timeout_seconds": 60.0})
    ada = await peers(one)
    one.handshake_timeout_seconds = 0.5
    began = asyncio.get_running_loop().time()
    reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
    writer.write(HANDSHAKE[:40])
    async with asyncio.timeout(30):
        assert await reader.read() == b""
    assert asyncio.get_running_loop().time() - began > 0.45
    writer.close()
    await ada.silent()
    await until(lambda: one._door._arriving == 0)


@pytest.mark.parametrize(
    ("head", "answer"),
    [
        (b"X-Long: " + b"a" * 9000 + b"\r\n", b"HTTP/1.1 431"),
        (b"X: y\r\n" * 200, b"HTTP/1.1 431"),
        (b"".join(b"X-%d: %b\r\n" % (n, b"a" * 1000) for n in range(60)), b"HTTP/1.1 431"),
    ],
)
async def test_headers_have_a_bound_in_size_and_number(
    redis_server: RedisServer, instances: Instances, peers: Peers, head: bytes, answer: bytes
) -> None:
    (one,) = await instances(redis_server)
    ada = await peers(one)
    assert (await raw(one, HANDSHAKE[:-2] + head + b"\r\n")).startswith(answer)
    await ada.silent()


async def test_one_address_cannot_take_all_places_of_those_who_arrive(
    redis_server: RedisServer, instances: Instances, peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "MOST_ARRIVING_FROM_ONE", 5)
    (one,) = await instances(redis_server, security={"trusted_proxies": "none"})
    ada = await peers(one)
    writers = [(await asyncio.open_connection("127.0.0.1", one.port))[1] for _ in range(5)]
    await until(lambda: one._door._arriving == 5)
    assert await raw(one, HANDSHAKE) == b""
    assert one.metrics.connections_refused["handshakes"] == 1
    await ada.silent()
    for writer in writers:
        writer.close()
    await until(lambda: one._door._arriving == 0 and not one._door._arriving_from)
    await peers(one)


async def test_no_more_arrive_at_once_than_there_are_places_in_all(
    redis_server: RedisServer, instances: Instances, peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "MOST_ARRIVING", 5)
    # a balancer's address, most likely, so that none of its own limits holds
    (one,) = await instances(redis_server)
    ada = await peers(one)
    writers = [(await asyncio.open_connection("127.0.0.1", one.port))[1] for _ in range(5)]
    await until(lambda: one._door._arriving == 5)
    assert await raw(one, HANDSHAKE) == b""
    assert one.metrics.connections_refused["handshakes"] == 1
    await ada.silent()
    writers.pop().close()
    await until(lambda: one._door._arriving == 4)
    await peers(one)
    assert one.metrics.connections_refused["handshakes"] == 1
    for writer in writers:
        writer.close()


PROXIED = {"trusted_proxies": "127.0.0.1/32", "proxy_protocol": True}


async def test_a_balancers_header_names_the_client(redis_server: RedisServer, instances: Instances) -> None:
    (one,) = await instances(redis_server, security={**PROXIED, "max_connections_per_ip": 1})
    for header in (v2("198.51.100.1"), v1("PROXY TCP4 198.51.100.2 10.0.0.1 1 2"), v2("2001:db8::1")):
        kept = await asyncio.open_connection("127.0.0.1", one.port)
        for byte in header:  # in the smallest pieces there are
            kept[1].write(bytes((byte,)))
            await kept[1].drain()
            await asyncio.sleep(0)
        kept[1].write(HANDSHAKE)
        assert (await kept[0].readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        assert (await raw(one, header + HANDSHAKE)).startswith(b"HTTP/1.1 429 ")
        kept[1].close()


async def test_a_balancer_that_says_nothing_gets_its_checks_answered_and_nobody_in(
    redis_server: RedisServer, instances: Instances
) -> None:
    (one,) = await instances(redis_server, security=PROXIED)
    assert (await raw(one, b"GET /ready HTTP/1.1\r\nHost: a\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    assert (await raw(one, HANDSHAKE)).startswith(b"HTTP/1.1 400 ")
    # LOCAL: the balancer speaks for itself
    assert (
        await raw(one, v2("198.51.100.1", command=0) + b"GET /ready HTTP/1.1\r\nHost: a\r\n\r\n")
    ).startswith(b"HTTP/1.1 200 ")
    assert await raw(one, b"\x00\x01nonsense") == b""
    assert await raw(one, v2("198.51.100.1", tlvs=bytes(5000)) + HANDSHAKE) == b""
    assert one.metrics.connections_refused["proxy_header"] == 3


async def test_a_balancers_header_from_anybody_else_is_nonsense(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    security = {"trusted_proxies": "192.0.2.0/24", "proxy_protocol": True}
    (one,) = await instances(redis_server, security=security)
    ada = await peers(one)
    assert b"101" not in await raw(one, v2("198.51.100.1") + HANDSHAKE)
    await ada.silent()


@pytest.mark.parametrize("allowed", [True, False])
async def test_a_token_in_the_address_counts_only_where_it_may(
    redis_server: RedisServer, instances: Instances, allowed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    auth = {"jwt_secret": Secret(value=KEY), "required": True, "query_token": allowed}
    (one,) = await instances(redis_server, auth=auth)
    target = f"GET /ws?a=b&token={token()} HTTP".encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
    writer.write(HANDSHAKE.replace(b"GET /ws HTTP", target))
    async with asyncio.timeout(30):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        if allowed:
            assert await reader.readuntil(b'"welcome"')
        else:
            writer.write(CLOSE)
            assert b'"welcome"' not in await reader.read()
    writer.close()
    bad = await raw(one, HANDSHAKE.replace(b"GET /ws HTTP", b"GET /ws?token=eyJnonsense HTTP"))
    assert bad.startswith(b"HTTP/1.1 401 " if allowed else b"HTTP/1.1 101 ")
    logged = [record for record in caplog.records if record.name.startswith("tableforge")]
    assert logged
    assert not any(token()[:30] in json.dumps(record.__dict__, default=str) for record in logged)


async def test_tokens_come_in_a_header_a_subprotocol_or_a_frame(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    auth = {"jwt_secret": Secret(value=KEY), "required": True}
    (one,) = await instances(redis_server, auth=auth)
    ada = await peers(one, additional_headers={"Authorization": f"Bearer {token()}"})
    bob = await peers(one, subprotocols=["tableforge.v1", f"bearer.{token('bob')}"])
    assert bob.socket.subprotocol == "tableforge.v1"
    eve = await peers(one, welcome=False)
    await eve.say({"type": "auth", "token": token("eve")})
    assert [ada.welcome["user"], bob.welcome["user"], (await eve.hear())["user"]] == ["ada", "bob", "eve"]
    status, headers, _ = await refused(peers, one, additional_headers={"Authorization": "Bearer nonsense"})
    assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
    page = await peers(one, welcome=False, origin=PAGE, subprotocols=["tableforge.v1", "bearer.nonsense"])
    assert await told(page) == ("unauthorized", 4401)
    await ada.silent()


async def test_who_breaks_the_rate_hears_so_once_a_second_and_for_each_id(
    redis_server: RedisServer, instances: Instances, peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    security = {"max_messages_per_second": 10, "max_messages_per_minute": 1000}
    (one,) = await instances(redis_server, security=security)
    now = one.surroundings.clock()
    monkeypatch.setattr(one.surroundings, "clock", lambda: now)  # all of it within a second
    bob, ada = await peers(one), await peers(one)
    await ada.say(*[{"type": "leave", "room": "a"}] * 10)
    assert [(await ada.hear())["code"] for _ in range(10)] == ["not_joined"] * 10
    await ada.say(*[{"type": "ping"}] * 30, {"type": "ping", "id": 7})
    told_once, with_id = await ada.hear_type("error"), await ada.hear_type("error")
    assert (told_once["code"], with_id["code"], with_id["id"]) == ("rate_limited", "rate_limited", 7)
    assert 0 < told_once["retryAfter"] <= 1
    now += told_once["retryAfter"]  # as it was told to: then it may
    await ada.silent()
    await ada.say(*[{"type": "ping"}] * 100)
    await ada.say(*[{"type": "ping"}] * 100)
    assert await ada.closed() == 4429
    await bob.silent()


async def test_a_user_has_one_rate_over_all_connections(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    auth = {"jwt_secret": Secret(value=KEY), "required": True}
    security = {"max_messages_per_second": 20, "max_messages_per_minute": 20}
    (one,) = await instances(redis_server, security=security, auth=auth)
    first, second, bob = [
        await peers(one, additional_headers={"Authorization": f"Bearer {token(user)}"})
        for user in ("ada", "ada", "bob")
    ]
    for peer in (first, second):
        await peer.say(*[{"type": "ping"}] * 10)
        for _ in range(10):
            await peer.hear_type("pong")
    for peer in (first, second):
        await peer.say({"type": "ping", "id": 1})
        assert (await peer.hear_type("error"))["code"] == "rate_limited"
    await bob.silent()


async def test_without_rate_limiting_commands_are_not_counted(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    security = {"max_messages_per_second": 1, "max_messages_per_minute": 1, "enable_rate_limiting": False}
    (one,) = await instances(redis_server, security=security)
    ada = await peers(one)
    await ada.say(*[{"type": "ping"}] * 100)
    for _ in range(100):
        await ada.hear_type("pong")
