"""What an instance counts while it works: everything of the message path, on its own metrics page."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import aiohttp
import redis.asyncio

from tableforge_dataplane.observability.metrics import SAMPLED_EVERY
from tableforge_dataplane.server import Server
from tests.dataplane.path.instances import Instances, Peers, until
from tests.dataplane.path.test_leaving import FAST, narrow
from tests.support.redis import RedisServer

PUBLISHES = 2 * SAMPLED_EVERY

ALLOWED = 60
"""Commands a second."""

SETTINGS: dict[str, Any] = {
    "security": {"max_messages_per_second": ALLOWED},
    "rooms": {"check_interval_seconds": 0.5},
    "scaling": {
        "retry_attempts": 2,
        "retry_delay_seconds": 0.1,
        "failover_timeout_seconds": 1.2,
        "heartbeat_interval_seconds": 0.3,
    },
}


class Page:
    """An instance's `/metrics`, looked at again and again."""

    def __init__(self, one: Server) -> None:
        self._url = f"http://127.0.0.1:{one.http_port}/metrics"
        self._instance = f'instance_id="{one.surroundings.instance}"'
        self._values: dict[str, float] = {}

    async def look(self) -> None:
        async with aiohttp.ClientSession() as session, session.get(self._url) as answer:
            assert answer.status == 200
            text = await answer.text()
        lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
        self._values = {name: float(value) for name, _, value in lines}

    def __call__(self, name: str, **label: str) -> float:
        """As it was at the last look; 0 where there is no such sample."""
        labels = sorted([self._instance, *(f'{key}="{value}"' for key, value in label.items())])
        return self._values.get(f"tableforge_{name}{{{','.join(labels)}}}", 0.0)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Look until it holds. Raises TimeoutError."""
        async with asyncio.timeout(30):
            await self.look()
            while not condition():
                await asyncio.sleep(0.02)
                await self.look()


async def test_the_metrics_page_tells_what_became_of_every_message(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    [one] = await instances(redis_server, **SETTINGS)
    page = Page(one)
    ada, bob = await peers(one), await peers(one)
    for peer in (ada, bob):
        await peer.join("lobby")
    first = await ada.published("lobby", 0)
    for number in range(1, PUBLISHES):
        await ada.published("lobby", number)
    await bob.messages(PUBLISHES)
    await page.look()
    assert page("websocket_connections_total") == 2
    assert page("websocket_rooms_total") == 1
    assert page("websocket_messages_received_total", message_type="said") == PUBLISHES
    assert page("websocket_messages_sent_total", message_type="said") == 2 * PUBLISHES
    assert page("publish_ack_seconds_count") == PUBLISHES / SAMPLED_EVERY
    assert 0 <= page("publish_ack_seconds_sum") < 60
    assert page("publish_delivery_seconds_count") == PUBLISHES / SAMPLED_EVERY
    assert 0 <= page("publish_delivery_seconds_sum") < 60
    assert page("redis_connected") == 1

    # who comes back, and whose history is another
    carl = await peers(one)
    assert (await carl.join("lobby", first["pos"]))["recovered"] is True
    await carl.messages(PUBLISHES - 1)
    dora = await peers(one)
    foreign = f"{first['pos'].partition('-')[0]}-1"
    assert (await dora.join("lobby", foreign))["recovered"] is False
    await page.look()
    assert page("websocket_recoveries_total", outcome="recovered") == 1
    assert page("websocket_recoveries_total", outcome="forked") == 1

    # a flood: as many as a second allows are judged one by one, the rest is refused for being too many
    eve = await peers(one)
    await eve.say(*({"type": "publish", "room": "hall", "event": "n", "data": n} for n in range(100)))
    await eve.until("error")
    await page.look()
    assert page("websocket_publishes_refused_total", reason="not_joined") == ALLOWED
    assert page("websocket_publishes_refused_total", reason="rate_limited") == 100 - ALLOWED
    assert page("websocket_messages_received_total", message_type="n") == 0

    # what Redis hands out twice, and what means nothing
    admin = redis.asyncio.Redis(host=redis_server.host, port=redis_server.port)
    channel = one.broker.address("lobby").channel
    listener = admin.pubsub(ignore_subscribe_messages=True)
    await listener.subscribe(channel)
    while not listener.subscribed or await listener.get_message(timeout=0.05) is not None:
        pass
    await ada.published("lobby", "twice")
    again = None
    async with asyncio.timeout(30):
        while again is None or b'"twice"' not in again["data"]:  # who came and went is told there, too
            again = await listener.get_message(timeout=1)
    await admin.publish(channel, again["data"])
    await admin.publish(channel, b"nonsense")
    await page.until(lambda: page("websocket_messages_dropped_total", reason="malformed") == 1)
    assert page("websocket_messages_dropped_total", reason="duplicate") == 1

    # an event loop that does not get to its work
    quick = page("event_loop_lag_seconds_bucket", le="0.25")
    time.sleep(0.8)  # noqa: ASYNC251  # that's it
    await page.until(
        lambda: (
            page("event_loop_lag_seconds_count") > page("event_loop_lag_seconds_bucket", le="0.25") >= quick
        )
    )
    assert page("event_loop_lag_seconds_sum") > 0.25
    assert page("event_loop_lag_average_seconds") > 0

    # a log that is gone
    await admin.flushall()
    assert (await ada.until("reset"))["reason"] == "log_lost"
    await page.look()
    assert page("websocket_resets_total", reason="log_lost") == 1
    await listener.aclose()
    await admin.aclose()

    # Redis is gone, publishes wait for it, and it is back
    fay = await peers(one)
    await fay.join("lobby")
    await redis_server.kill9()
    await until(lambda: not one.broker.redis_state().connected)
    acknowledged = page("publish_ack_seconds_sum")
    await fay.publish("lobby", "a connection's first is timed")
    began = time.monotonic()
    for number in range(2):
        await ada.publish("lobby", number)
    await page.until(lambda: page("publish_queue_depth") == 3)
    assert page("redis_connected") == 0
    await page.until(lambda: page("circuit_breaker_state", breaker="publish") == 2)
    await page.until(lambda: page("circuit_breaker_state", breaker="registry") == 2)
    waited = time.monotonic() - began
    await redis_server.start()
    for _ in range(2):
        await ada.until("ack")
    await fay.until("ack")
    await page.look()
    assert page("publish_ack_seconds_sum") - acknowledged > waited / 2
    await page.until(lambda: page("redis_connected") == 1)
    await page.until(lambda: page("publish_queue_depth") == 0)
    await page.until(lambda: page("circuit_breaker_state", breaker="publish") == 0)
    await page.until(lambda: page("circuit_breaker_state", breaker="registry") == 0)


async def test_messages_without_a_copy_for_their_sender_are_timed_too(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    [one] = await instances(redis_server, **FAST)
    page = Page(one)
    ada, bob = await peers(one), await peers(one)
    for peer in (ada, bob):
        await peer.join("lobby")
    for volatile in (False, True):
        for number in range(PUBLISHES):
            await ada.published("lobby", number, echo=False, volatile=volatile)
    await bob.messages(2 * PUBLISHES)
    await page.look()
    assert page("publish_delivery_seconds_count") == 2 * PUBLISHES / SAMPLED_EVERY
    assert 0 <= page("publish_delivery_seconds_sum") < 60


async def test_what_is_too_much_for_a_slow_client_is_counted(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    [one] = await instances(redis_server, websocket={"write_limit_bytes": 262_144}, **FAST)
    page = Page(one)
    ada, slow = await peers(one), await narrow(peers, one)
    for peer in (ada, slow):
        await peer.join("lobby")
    slow.socket.transport.pause_reading()
    while one.metrics.slow_consumers == 0:
        await ada.publish("lobby", "x" * 20_000)
        await ada.messages(1)
    await page.look()
    assert page("websocket_slow_consumers_total") == 1
    assert page("websocket_messages_dropped_total", reason="slow_consumer") == 1
