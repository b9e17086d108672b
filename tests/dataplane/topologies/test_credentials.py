"""A Redis that is reached over TLS, as a user of its own with the rights it needs, in another database."""

import asyncio
from pathlib import Path

import redis.asyncio

from tableforge_dataplane.contract.settings import Secret
from tests.dataplane.door.certificates import write_pair
from tests.dataplane.path.instances import Instances, Peers, until
from tests.support.children import free_port
from tests.support.redis import RedisServer

RIGHTS = (
    "resetkeys ~tf:tables:* resetchannels &tf:tables:* -@all +@read +@write +@pubsub +@scripting "
    "+@connection +info +role +time +waitaof +wait +config|get"
)
"""What docs/operations.md names."""


def test_the_rights_are_those_that_the_documentation_names() -> None:
    page = Path(__file__).parents[3] / "docs" / "operations.md"
    assert RIGHTS in " ".join(page.read_text().split())


async def test_rooms_live_on_a_redis_that_lets_in_only_who_has_a_name_a_password_and_its_certificate(
    instances: Instances, peers: Peers, tmp_path: Path
) -> None:
    certificate, key, port = tmp_path / "redis.crt", tmp_path / "redis.key", free_port()
    write_pair(certificate, key, name="redis", host=None)
    args: tuple[str, ...] = (
        "--tls-port",
        str(port),
        "--tls-auth-clients",
        "no",
        "--tls-cert-file",
        str(certificate),
    )
    args += ("--tls-key-file", str(key), "--tls-ca-cert-file", str(certificate))
    async with RedisServer(tmp_path, binary="redis7", args=args) as server:
        admin = redis.asyncio.Redis(host=server.host, port=server.port)
        await admin.execute_command("ACL", "SETUSER", "tables", "on", ">its-password", *RIGHTS.split())
        await admin.execute_command("ACL", "LOG", "RESET")
        one, two = await instances(
            server,
            2,
            wait_until_ready=False,
            redis={
                "port": port,
                "username": "tables",
                "password": Secret(value="its-password"),
                "database": 3,
                "key_prefix": "tables",
                "durability": "Disk",
                "tls": True,
                "tls_ca_file": str(certificate),
            },
        )
        await until(lambda: one.ready and two.ready)
        ada, bob = await peers(one), await peers(two)
        start = (await ada.join("lobby"))["pos"]
        await bob.join("lobby")
        for number in range(20):
            await ada.published("lobby", number)
        assert [message["data"] for message in await bob.messages(20)] == list(range(20))
        carl = await peers(two)
        assert (await carl.join("lobby", start))["recovered"] is True
        assert [message["data"] for message in await carl.messages(20)] == list(range(20))
        async with asyncio.timeout(30):
            count = 0
            while count != 3:
                await asyncio.sleep(0.1)  # who asks more often than the rate limit allows gets no answer
                await carl.say({"type": "presence", "room": "lobby"})
                count = (await carl.until("presence"))["count"]
        keyspace = await admin.info("keyspace")
        assert set(keyspace) == {"db3"}
        refused = await admin.execute_command("ACL", "LOG")
        assert refused == [], "something needs a right that is not named"
        await admin.aclose()
