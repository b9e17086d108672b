"""`POST /fleet/commands`: what the operator tells the fleet, of any instance, and every way it is refused."""

import asyncio
from typing import Any

import aiohttp
import msgspec
import pytest

from tableforge_dataplane.contract.fleet import (
    FleetAnswer,
    Forget,
    InstanceOrder,
    InstanceRecord,
    Move,
    MoveOutcome,
    Orders,
    RoomMove,
    Shed,
)
from tableforge_dataplane.http.commands import MAX_COMMAND_BYTES, MOST_WAITING
from tableforge_dataplane.server import Server
from tests.dataplane.homes.directories import KEYS, Directories
from tests.dataplane.homes.fleets import API_KEY, agreed, command, enter, fleet, post
from tests.dataplane.path.instances import Instances, Peers, until
from tests.support.redis import RedisServer
from tests.support.redis_cluster import eventually

MOVE: dict[str, Any] = {"room": "hall", "source": "instance-1", "target": "instance-2"}
ORDER: dict[str, Any] = {"instance": "instance-1"}


async def record_of(server: Server, name: str) -> InstanceRecord | None:
    found = await server._registry.fleet()
    return next((record for record in found.instances if record.instance == name), None)


async def told(server: Server, name: str, **wanted: Any) -> None:
    """Wait until the fleet's record of an instance says so."""

    async def so() -> bool:
        record = await record_of(server, name)
        return record is not None and all(getattr(record, field) == value for field, value in wanted.items())

    await eventually(so)


async def refused(server: Server, body: bytes | Any, status: int, sentence: str, **headers: str) -> None:
    raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
    found, answer = await post(server, raw, **headers)
    error = msgspec.json.decode(answer)["error"]
    assert (found, sentence in error["message"]) == (status, True), (found, error)


async def test_a_move_is_followed_by_everybody_who_has_members(
    instances: Instances, redis_server: RedisServer
) -> None:
    one, two, three = await fleet(instances, redis_server, 3)
    enter(["hall"], one, two, three)
    await until(lambda: agreed(["hall"], one, two, three) is not None)
    source = one.homes.home_of("hall") or ""
    target = next(f"instance-{number}" for number in (1, 2, 3) if f"instance-{number}" != source)
    moved: list[list[str]] = []
    asker = next(server for server in (one, two, three) if server.homes.this not in (source, target))
    asker.homes.on_moved = moved.append
    moves = [
        RoomMove(room="hall", source=source, target=target),
        RoomMove(room="nowhere", source=source, target=target),
        RoomMove(room="hall", source=source, target="nobody"),
    ]
    answer = await command(asker, Move(fence=2, id="m1", moves=moves))
    assert answer == FleetAnswer(
        fence=2,
        moves=[
            MoveOutcome(room="hall", outcome="moved"),
            MoveOutcome(room="nowhere", outcome="no_such_room"),
            MoveOutcome(room="hall", outcome="elsewhere"),
        ],
    )
    await until(lambda: agreed(["hall"], one, two, three) == {"hall": target})
    assert moved == [["hall"]]
    assert asker.metrics.home_moves == {"moved": 1, "no_such_room": 1, "elsewhere": 1}
    # sent again it is the same
    assert (await command(two, Move(fence=2, id="m1", moves=moves[:1]))).moves == answer.moves[:1]
    await told(two, target, homes=1)
    await told(two, source, homes=0)


async def test_orders_are_acted_on_and_shown_and_outlive_the_settings(
    instances: Instances, redis_server: RedisServer
) -> None:
    one, two = await fleet(instances, redis_server, 2)
    assert (one.homes.address, one.homes.weight, one.homes.cordoned) == ("/i/instance-1/ws", 100.0, False)
    changes = asyncio.Event()
    one.homes.on_change = changes.set
    order = InstanceOrder(instance="instance-1", cordoned=True, weight=2.5, address="wss://x.example/a/ws")
    answer = await command(two, Orders(fence=1, id="o", instances=[order, InstanceOrder(instance="gone")]))
    assert answer == FleetAnswer(fence=1, unknown=["gone"])
    await until(lambda: one.homes.cordoned)
    await changes.wait()
    await told(two, "instance-1", cordoned=True, weight=2.5, address="wss://x.example/a/ws")
    rooms = [f"room-{number}" for number in range(20)]
    enter(rooms, one)
    await until(lambda: agreed(rooms, one) == dict.fromkeys(rooms, "instance-2"))
    await command(one, Orders(fence=1, id="o2", instances=[InstanceOrder(instance="instance-1")]))
    await told(two, "instance-1", cordoned=False, weight=100.0, address="/i/instance-1/ws")


async def test_without_homes_instances_are_cordoned_and_shed_all_the_same(
    instances: Instances, redis_server: RedisServer, peers: Peers, look: Directories
) -> None:
    one, two = await fleet(instances, redis_server, 2, mode="Service")
    ada = await peers(one)
    await ada.join("hall")
    one.homes.entered("another")
    order = InstanceOrder(instance="instance-2", cordoned=True, address="/i/x/ws")
    await command(one, Orders(fence=1, id="o", instances=[order]))
    await told(one, "instance-2", cordoned=True, address=None)
    await two.shedding.stop()
    assert await command(one, Shed(fence=1, id="s", instance="instance-2", connections=1)) == FleetAnswer(
        fence=1
    )
    await until(lambda: two.homes.shed is not None)
    answer = await command(two, Move(fence=1, id="m", moves=[RoomMove(**MOVE)]))
    assert [outcome.outcome for outcome in answer.moves] == ["no_such_room"]
    assert one.homes.home_of("hall") is None
    await told(two, "instance-1", rooms=1, elsewhere=[])
    names = {key.decode().rpartition("}:")[2] for key in await look.redis.keys(f"{KEYS.directory('')}*")}
    assert not names & {"homes", "places", "stands", "leaving", "moved", "swept"}
    assert not any(name.startswith("homes-of:") for name in names)


async def test_a_record_says_which_of_its_rooms_have_their_home_elsewhere(
    instances: Instances, redis_server: RedisServer, peers: Peers
) -> None:
    """Nobody can move these from there."""
    one, two = await fleet(instances, redis_server, 2)
    for server in (one, two):
        ada = await peers(server)
        await ada.join("hall")
    await until(lambda: agreed(["hall"], one, two) is not None)
    home = (agreed(["hall"], one, two) or {})["hall"]
    for name in ("instance-1", "instance-2"):
        await told(one, name, elsewhere=[] if name == home else ["hall"], rooms=1)


async def test_a_shed_reaches_its_instance_is_reported_and_is_not_done_twice(
    instances: Instances, redis_server: RedisServer, look: Directories
) -> None:
    one, two = await fleet(instances, redis_server, 2)
    for server in (one, two):
        await server.shedding.stop()  # what it would do is told elsewhere
    first = Shed(fence=1, id="first", instance="instance-2", connections=3)
    await command(one, first)
    await until(lambda: two.homes.shed == first)
    second = Shed(fence=1, id="second", instance="instance-2", connections=0)
    await command(one, second)
    await until(lambda: two.homes.shed == second)
    two.homes.shed_done("first")
    two.homes.shed_done("second")
    await until(lambda: two.homes.shed is None)
    await told(one, "instance-2", commands=["first", "second"])
    await eventually(lambda: _absent(look))
    await command(one, first)
    await eventually(lambda: _absent(look))
    assert two.homes.shed is None
    answer = await command(one, Shed(fence=1, id="x", instance="gone", connections=3))
    assert answer == FleetAnswer(fence=1, unknown=["gone"])


async def _absent(look: Directories) -> bool:
    return not await look.redis.hexists(KEYS.directory("sheds"), "instance-2")


async def test_an_older_fence_is_refused_with_the_latest_and_changes_nothing(
    instances: Instances, redis_server: RedisServer
) -> None:
    one, two = await fleet(instances, redis_server, 2)
    enter(["hall"], one, two)  # so that it stays wherever it is
    await until(lambda: agreed(["hall"], one, two) is not None)
    home = one.homes.home_of("hall") or ""
    await command(one, Orders(fence=9, id="o", instances=[InstanceOrder(instance="instance-1")]))
    other = "instance-2" if home == "instance-1" else "instance-1"
    for body in (
        Move(fence=8, id="m", moves=[RoomMove(room="hall", source=home, target=other)]),
        Orders(fence=8, id="o", instances=[InstanceOrder(instance="instance-1", cordoned=True)]),
        Shed(fence=0, id="s", instance="instance-1", connections=1),
        Forget(fence=8, id="f", instances=["instance-1"]),
    ):
        status, answer = await post(two, body)
        assert status == 409
        assert msgspec.json.decode(answer, type=FleetAnswer) == FleetAnswer(stale=True, fence=9)
    assert await two.homes.homes_of(["hall"]) == [home]
    assert (await one.homes.directory.told(())).order == InstanceOrder(instance="instance-1")
    assert await record_of(two, "instance-1") is not None
    await told(two, "instance-1", alive=True)


async def test_a_fence_that_somebody_raised_is_cleared_by_deleting_its_key(
    instances: Instances, redis_server: RedisServer, look: Directories
) -> None:
    (one,) = await fleet(instances, redis_server, 1)
    order = InstanceOrder(instance="instance-1")
    await command(one, Orders(fence=2**40, id="hostile", instances=[order]))
    status, answer = await post(one, Orders(fence=3, id="o", instances=[order]))
    assert (status, msgspec.json.decode(answer, type=FleetAnswer).fence) == (409, 2**40)
    assert KEYS.directory("fence") == "tf:test:{registry}:fence", "docs/operator.md names it"
    assert await look.redis.delete(KEYS.directory("fence")) == 1
    assert await command(one, Orders(fence=3, id="o", instances=[order])) == FleetAnswer(fence=3)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "The body must be a JSON object in UTF-8"),
        (b"[]", "Expected `object`, got `array`"),
        (b"\xff{}", "The body must be a JSON object in UTF-8"),
        (b'{"x":' + b"[" * 100_000, "The body must be a JSON object in UTF-8"),
        ({}, "missing required field `kind`"),
        ({"kind": "nuke"}, "Invalid value 'nuke' - at `$.kind`"),
        ({"kind": "move", "id": "m", "moves": []}, "missing required field `fence`"),
        ({"kind": "move", "fence": "1", "id": "m", "moves": []}, "`$.fence`"),
        ({"kind": "move", "fence": -1, "id": "m", "moves": [MOVE]}, "`fence` must be from 0 to"),
        ({"kind": "move", "fence": 10**16, "id": "m", "moves": [MOVE]}, "`fence` must be from 0 to"),
        ({"kind": "move", "fence": 1, "id": "", "moves": [MOVE]}, "`id` must have 1 to 64 characters."),
        ({"kind": "move", "fence": 1, "id": "x" * 65, "moves": [MOVE]}, "`id` must have 1 to 64 characters."),
        ({"kind": "move", "fence": 1, "id": "m", "moves": []}, "`moves` has 0 entries: 1 to 1000 are taken."),
        (
            {"kind": "move", "fence": 1, "id": "m", "moves": [MOVE] * 1001},
            "`moves` has 1001 entries: 1 to 1000 are taken.",
        ),
        (
            {"kind": "move", "fence": 1, "id": "m", "moves": [MOVE, {**MOVE, "room": "no room!"}]},
            "`moves[1]`: `room` must be 1 to 128 characters of",
        ),
        (
            {"kind": "move", "fence": 1, "id": "m", "moves": [{**MOVE, "source": ""}]},
            "`moves[0]`: `source` must be the name of an instance",
        ),
        (
            {"kind": "move", "fence": 1, "id": "m", "moves": [{**MOVE, "target": "a b"}]},
            "`moves[0]`: `target` must be the name of an instance",
        ),
        (
            {"kind": "move", "fence": 1, "id": "m", "moves": [{**MOVE, "why": "so"}]},
            "Object contains unknown field `why`",
        ),
        ({"kind": "shed", "fence": 1, "id": "s", "connections": 1}, "missing required field `instance`"),
        (
            {"kind": "shed", "fence": 1, "id": "s", "instance": "a", "connections": -1},
            "`connections` must be from 0 to 1000000.",
        ),
        (
            {"kind": "shed", "fence": 1, "id": "s", "instance": "é", "connections": 1},
            "`instance` must be the name of an instance",
        ),
        (
            {"kind": "forget", "fence": 1, "id": "f", "instances": ["a", "\n"]},
            "`instances[1]`: it must be the name of an instance",
        ),
        ({"kind": "forget", "fence": 1, "id": "f", "instances": []}, "`instances` has 0 entries"),
        (
            {"kind": "instances", "fence": 1, "id": "o", "instances": [{**ORDER, "weight": 0}]},
            "`instances[0]`: `weight` must be above 0 and at most 1000000.",
        ),
        (
            {"kind": "instances", "fence": 1, "id": "o", "instances": [{**ORDER, "weight": 2e6}]},
            "`instances[0]`: `weight` must be above 0 and at most 1000000.",
        ),
        (
            {"kind": "instances", "fence": 1, "id": "o", "instances": [{**ORDER, "address": "http://x/"}]},
            "`instances[0]`: `address` must be a path such as /i/tables-1/ws, or a whole URL",
        ),
        (
            {"kind": "instances", "fence": 1, "id": "o", "instances": [{**ORDER, "address": ""}]},
            "`instances[0]`: `address` must be a path such as",
        ),
        (
            {"kind": "instances", "fence": 1, "id": "o", "instances": [ORDER, ORDER]},
            "`instances` must name each instance once.",
        ),
        (
            {"kind": "instances", "fence": 1, "id": "o", "instances": [{**ORDER, "cordonned": True}]},
            "Object contains unknown field `cordonned`",
        ),
    ],
)
async def test_what_cannot_be_understood_is_400_with_the_field_and_what_would_be_right(
    shared: Server, body: Any, sentence: str
) -> None:
    await refused(shared, body, 400, sentence)


@pytest.fixture
async def shared(instances: Instances, redis_server: RedisServer) -> Server:
    (one,) = await fleet(instances, redis_server, 1)
    return one


async def test_who_has_no_key_too_large_a_body_or_the_wrong_method_is_refused(shared: Server) -> None:
    body = {"kind": "forget", "fence": 1, "id": "f", "instances": ["instance-1"]}
    await refused(shared, body, 401, "Send the key of this cluster", Authorization="Bearer wrong")
    await refused(shared, body, 401, "Send the key of this cluster", Authorization=f"Bearer {API_KEY}")
    await refused(
        shared, b" " * (MAX_COMMAND_BYTES + 1), 413, f"The body may have {MAX_COMMAND_BYTES} bytes."
    )

    async def endless() -> Any:
        for _ in range(20):
            yield b" " * 65_536

    url = f"http://127.0.0.1:{shared.http_port}/fleet/commands"
    async with aiohttp.ClientSession(headers={"Authorization": "Bearer the-key-of-this-cluster"}) as client:
        async with client.post(url, data=endless()) as answer:
            assert answer.status == 413
        async with client.get(url) as answer:
            assert answer.status == 405
            assert "/fleet/commands takes POST" in (await answer.json())["error"]["message"]
    # the body that just fits, with a thousand names of the longest kind
    longest = [f"{number:0253}" for number in range(1000)]
    answer_of_all = await command(shared, Forget(fence=1, id="f", instances=longest))
    assert answer_of_all.unknown == longest


async def test_without_redis_commands_are_503_and_do_not_pile_up(
    instances: Instances, redis_server: RedisServer
) -> None:
    (one,) = await fleet(instances, redis_server, 1)
    body = Shed(fence=1, id="s", instance="instance-1", connections=1)
    redis_server.pause()
    answers = await asyncio.gather(*(post(one, body) for _ in range(MOST_WAITING + 5)))
    redis_server.resume()
    assert {status for status, _ in answers} == {503}
    sentences = {msgspec.json.decode(answer)["error"]["message"] for _, answer in answers}
    assert "Many commands wait here already: send it again later." in sentences
    assert len(sentences) >= 2
    await eventually(lambda: _works(one))


async def _works(one: Server) -> bool:
    status, _ = await post(one, Shed(fence=1, id="s", instance="instance-1", connections=0))
    return status == 200


async def test_an_instance_whose_prefix_is_anothers_takes_no_command(
    instances: Instances, redis_server: RedisServer
) -> None:
    (one,) = await fleet(instances, redis_server, 1)
    one._registry.claim_problem = "Another cluster uses the key prefix."
    await refused(
        one,
        {"kind": "shed", "fence": 1, "id": "s", "instance": "instance-1", "connections": 1},
        503,
        "Another cluster uses the key prefix.",
    )


async def test_homes_show_in_the_list_of_rooms_and_of_instances(
    instances: Instances, redis_server: RedisServer, peers: Peers
) -> None:
    one, two = await fleet(instances, redis_server, 2)
    for server in (one, two):  # so that both rooms stay wherever they are
        member = await peers(server)
        await member.join("hall")
        await member.join("attic")
    await until(lambda: agreed(["hall", "attic"], one, two) is not None)
    homes = list((agreed(["hall", "attic"], one) or {}).values())
    for name in ("instance-1", "instance-2"):
        await told(two, name, homes=homes.count(name))
    headers = {"Authorization": f"Bearer {API_KEY}"}
    async with aiohttp.ClientSession(f"http://127.0.0.1:{two.http_port}", headers=headers) as client:
        async with client.get("/api/rooms") as answer:
            rooms = {listed["room"]: listed["home"] for listed in (await answer.json())["rooms"]}
        async with client.get("/api/instances") as answer:
            records = {record["instance"]: record for record in (await answer.json())["instances"]}
    assert rooms == agreed(["hall", "attic"], one)
    assert {name: record["address"] for name, record in records.items()} == {
        "instance-1": "/i/instance-1/ws",
        "instance-2": "/i/instance-2/ws",
    }
    assert sum(record["homes"] for record in records.values()) == 2
