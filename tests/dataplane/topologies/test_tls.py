"""TLS to a Redis that asks for certificates: a wrong one is named, a rotated one counts soon."""

import shutil
from pathlib import Path

from tableforge_dataplane.topology.slots import slot_of
from tests.dataplane.door.certificates import write_pair
from tests.dataplane.path.instances import Instances, Peers, until
from tests.support.children import free_port
from tests.support.redis import RedisServer
from tests.support.redis_cluster import RedisCluster, ask


async def test_both_sides_certificates_are_checked_and_read_anew(
    instances: Instances, peers: Peers, tmp_path: Path
) -> None:
    for name in ("server", "client", "stranger"):
        write_pair(
            tmp_path / f"{name}.crt",
            tmp_path / f"{name}.key",
            name=name,
            host="redis.example" if name == "server" else None,
        )
    port = free_port()
    args = ["--tls-port", str(port), "--tls-auth-clients", "yes"]
    args += ["--tls-cert-file", str(tmp_path / "server.crt"), "--tls-key-file", str(tmp_path / "server.key")]
    args += ["--tls-ca-cert-file", str(tmp_path / "client.crt"), "--loglevel", "verbose"]
    # what the instance has at first: another authority, and a certificate that Redis does not know
    authority, certificate, key = tmp_path / "ca.crt", tmp_path / "tls.crt", tmp_path / "tls.key"
    shutil.copy(tmp_path / "stranger.crt", authority)
    shutil.copy(tmp_path / "stranger.crt", certificate)
    shutil.copy(tmp_path / "stranger.key", key)
    async with RedisServer(tmp_path / "redis", binary="redis7", args=tuple(args)) as server:
        [one] = await instances(
            server,
            wait_until_ready=False,
            redis={
                "port": port,
                "tls": True,
                "tls_ca_file": str(authority),
                "tls_cert_file": str(certificate),
                "tls_key_file": str(key),
                "tls_server_name": "redis.example",
            },
        )
        await until(lambda: "does not hold" in one.broker.redis_state().message)
        assert "TABLEFORGE_REDIS_TLS_CA_FILE" in one.broker.redis_state().message
        shutil.copy(tmp_path / "server.crt", authority)
        await until(lambda: "does not hold" not in one.broker.redis_state().message)
        await until(lambda: server.output().count("Error accepting a client connection") >= 2)
        assert not one.ready
        assert one.broker.redis_state().reason == "Unreachable"
        authority.unlink()
        await until(lambda: "ca.crt is not there" in one.broker.redis_state().message)
        shutil.copy(tmp_path / "server.crt", authority)
        shutil.copy(tmp_path / "client.crt", certificate)
        shutil.copy(tmp_path / "client.key", key)
        await until(lambda: one.ready)
        ada = await peers(one)
        await ada.join("room")
        assert (await ada.published("room", 1))["seq"] == 1
        await until(lambda: one._registry.registered)


async def test_a_cluster_is_followed_over_tls_alone(
    instances: Instances, peers: Peers, tmp_path: Path
) -> None:
    """Its nodes name their TLS ports to who asks over TLS, in the map of slots and when a slot has moved."""
    certificate, key = tmp_path / "redis.crt", tmp_path / "redis.key"
    write_pair(certificate, key, name="redis", host=None)
    async with RedisCluster(binary="redis7", tls=(certificate, key)) as cluster:
        [one] = await instances(
            cluster.primaries[0],
            redis={
                "mode": "Cluster",
                "addresses": ",".join(f"127.0.0.1:{port}" for port in cluster.tls_ports.values()),
                "tls": True,
                "tls_ca_file": str(certificate),
            },
        )
        ada = await peers(one)
        rooms = [f"room-{number}" for number in range(6)]
        for room in rooms:
            await ada.join(room)
            assert (await ada.published(room, 1))["seq"] == 1
        assert all([await ask(node, "DBSIZE") for node in cluster.primaries])
        slot = slot_of(rooms[0].encode())
        source = await cluster.owner(slot)
        target = next(node for node in cluster.primaries if node is not source)
        await cluster.begin_move(slot, source=source, target=target)
        await cluster.move_keys(slot, source=source, target=target)
        await cluster.end_move(slot, source=source, target=target)
        assert (await ada.published(rooms[0], 2))["seq"] == 2
        assert await ask(target, "EXISTS", one.broker.address(rooms[0]).log) == 1
        # everything that this instance has open is encrypted
        for node in cluster.primaries:
            clients = (await ask(node, "CLIENT", "LIST")).decode().splitlines()
            ours = [client for client in clients if " name=tableforge" in client]
            assert ours
            assert all(f":{cluster.tls_ports[node]} " in client for client in ours), ours
