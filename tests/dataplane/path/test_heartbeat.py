"""How often connections are pinged, and that who answers stays."""

import asyncio
from typing import Any

import pytest
from websockets.frames import Frame, Opcode

from tests.dataplane.path.instances import Instances, Peers, until
from tests.support.redis import RedisServer


@pytest.mark.parametrize("timeout", [0.1, 0.4])
async def test_pings_come_once_an_interval_however_long_a_pong_may_take(
    redis_server: RedisServer, instances: Instances, peers: Peers, timeout: float
) -> None:
    (one,) = await instances(
        redis_server, websocket={"ping_interval_seconds": 0.4, "pong_timeout_seconds": timeout}
    )
    ada = await peers(one)
    loop = asyncio.get_running_loop()
    pinged: list[float] = []
    take = ada.socket.process_event

    def process_event(event: Any) -> None:
        if isinstance(event, Frame) and event.opcode is Opcode.PING:
            pinged.append(loop.time())
        take(event)

    ada.socket.process_event = process_event  # type: ignore[method-assign]
    await until(lambda: len(pinged) == 5, within=30)
    # on average: it looks four times a second only
    assert (pinged[-1] - pinged[0]) / 4 < 0.66
    await ada.silent()
    assert one.metrics.connections == 1
