"""A key prefix belongs to one living cluster: a second one on it does not become ready, and says why."""

from typing import Any

from tests.dataplane.path.instances import Instances, Peers, until
from tests.support.redis import RedisServer
from tests.support.redis_cluster import ask
from tests.support.versions import every_redis


def claiming(name: str) -> dict[str, dict[str, Any]]:
    return {"redis": {"claim": name}, "scaling": {"failover_timeout_seconds": 3.0}}


@every_redis
async def test_a_second_cluster_waits_until_the_first_is_gone(
    instances: Instances, redis_server: RedisServer, peers: Peers
) -> None:
    mine, also_mine = await instances(redis_server, 2, **claiming("cluster-1"))
    [other] = await instances(redis_server, wait_until_ready=False, **claiming("cluster-2"))
    await until(lambda: other.broker.redis_state().reason == "PrefixClaimed")
    report = other._health.report()
    assert not report.ready
    assert "cluster-1" in report.waiting_for[0]
    assert "TABLEFORGE_REDIS_KEY_PREFIX" in report.waiting_for[0]
    # it is not among the instances of the first, whose registry lies under the same keys
    fleet = await mine._registry.fleet()
    assert {record.instance for record in fleet.instances} <= {"instance-1", "instance-2"}
    ada = await peers(mine)
    await ada.join("room")
    await ada.published("room", "all the same")
    await also_mine.stop()
    await mine.stop()
    await until(lambda: other.ready)
    assert other.broker.redis_state().connected


@every_redis
async def test_a_claim_lost_while_redis_was_away_stops_publishes(
    instances: Instances, redis_server: RedisServer, peers: Peers
) -> None:
    [one] = await instances(redis_server, **claiming("cluster-1"))
    ada = await peers(one)
    await ada.join("room")
    await ada.published("room", 1)
    keys = await ask(redis_server, "KEYS", "tf:*claim")
    await ask(redis_server, "SET", keys[0], "cluster-2", "PX", 60_000)
    await until(lambda: one.broker.redis_state().reason == "PrefixClaimed")
    await ada.publish("room", 2)
    refusal = await ada.until("error")
    assert refusal["code"] == "unavailable"
    assert "cluster-2" in refusal["message"]
    await ask(redis_server, "DEL", keys[0])
    await until(lambda: one.broker.redis_state().connected)
    assert (await ada.published("room", 3))["seq"] == 2
