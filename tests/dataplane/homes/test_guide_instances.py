"""Whole instances guide their clients only to where they are let in."""

from typing import Any

from tableforge_dataplane.contract.fleet import InstanceOrder, Orders
from tableforge_dataplane.server import Server
from tests.dataplane.homes.fleets import agreed, command, enter, fleet
from tests.dataplane.path.instances import Instances, Peers, until
from tests.support.redis import RedisServer


async def two_with_a_room_at_the_second(
    instances: Instances, redis: RedisServer, **groups: Any
) -> list[Server]:
    one, two = await fleet(instances, redis, 2, **groups)
    enter(["r"], two)
    await until(lambda: agreed(["r"], two) == {"r": "instance-2"})
    return [one, two]


async def test_nobody_is_sent_to_a_cordoned_instance_until_it_is_open_again(
    instances: Instances, redis_server: RedisServer, peers: Peers
) -> None:
    one, two = await two_with_a_room_at_the_second(instances, redis_server)
    await command(
        one, Orders(fence=1, id="a", instances=[InstanceOrder(instance="instance-2", cordoned=True)])
    )
    await until(lambda: two.homes.cordoned)
    ada = await peers(one)
    await ada.join("r")
    await until(lambda: bool(one.guide._stuck))
    assert one.homes.home_of("r") == "instance-2"
    assert one.guide._astray.next_due() is None
    await ada.silent()
    await command(one, Orders(fence=1, id="b", instances=[InstanceOrder(instance="instance-2")]))
    hint = await ada.hear_type("migrate")
    assert (hint["url"], hint["reason"]) == ("/i/instance-2/ws", "home")


async def test_nobody_is_sent_to_an_instance_that_is_full_until_it_has_room(
    instances: Instances, redis_server: RedisServer, peers: Peers
) -> None:
    one, two = await two_with_a_room_at_the_second(
        instances, redis_server, websocket={"host": "127.0.0.1", "port": 0, "max_connections": 1}
    )
    bob = await peers(two)
    await until(lambda: two.homes._state == "full")
    ada = await peers(one)
    await ada.join("r")
    await until(lambda: bool(one.guide._stuck))
    await ada.silent()
    await bob.socket.close()
    assert (await ada.hear_type("migrate"))["url"] == "/i/instance-2/ws"
