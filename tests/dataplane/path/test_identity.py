"""Who gets in and what that allows, over real sockets: algorithms, rotation, default rights, each right."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from websockets.exceptions import InvalidStatus

from tableforge_dataplane.contract.settings import Secret
from tableforge_dataplane.security import jwks
from tests.dataplane.path.instances import Instances, Peer, Peers
from tests.support.redis import RedisServer

SHARED = "0123456789abcdef" * 4
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
KEYS: dict[str, Any] = {
    **dict.fromkeys(("HS256", "HS384", "HS512"), SHARED),
    **dict.fromkeys(("RS256", "RS512", "PS256"), RSA),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "ES384": ec.generate_private_key(ec.SECP384R1()),
    "ES512": ec.generate_private_key(ec.SECP521R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}


def pem(key: Any) -> str:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def token(
    algorithm: str, *, key: Any = None, lifetime: float = 60, kid: str | None = None, **more: Any
) -> str:
    claims = {"sub": "ada", "exp": time.time() + lifetime, **more}
    headers = {} if kid is None else {"kid": kid}
    return jwt.encode(claims, key or KEYS[algorithm], algorithm=algorithm, headers=headers)


def auth(algorithm: str) -> dict[str, Any]:
    found: dict[str, Any] = {"required": True}
    if algorithm.startswith("HS"):
        return found | {"jwt_secret": Secret(value=SHARED), "secret_algorithm": algorithm}
    if algorithm[:2] in ("RS", "PS"):
        found["rsa_algorithm"] = algorithm
    return found | {"public_key": Secret(value=pem(KEYS[algorithm]))}


def bearer(text: str) -> dict[str, Any]:
    return {"additional_headers": {"Authorization": f"Bearer {text}"}}


@pytest.mark.parametrize("algorithm", KEYS)
async def test_every_algorithm_lets_in_renews_and_ends_a_session_at_its_expiry(
    redis_server: RedisServer, instances: Instances, peers: Peers, algorithm: str
) -> None:
    [one] = await instances(redis_server, auth=auth(algorithm))
    ada = await peers(one, **bearer(token(algorithm, lifetime=60)))
    assert ada.welcome["user"] == "ada"
    async with asyncio.timeout(30):
        renewed: dict[str, Any] = {}
        while renewed.get("type") != "authenticated":  # it lasts so short that it may be over already
            await ada.say({"type": "auth", "id": 1, "token": token(algorithm, lifetime=1.0)})
            renewed = await ada.hear()
    assert renewed["user"] == "ada"
    assert await ada.closed(within=30) == 4401
    assert time.time() >= renewed["expiresAt"]
    stranger = jwt.encode({"sub": "eve", "exp": time.time() + 60}, "k" * 64, algorithm="HS256")
    with pytest.raises(InvalidStatus) as refused:
        await peers(one, **bearer(stranger))
    assert refused.value.response.status_code == 401


async def test_a_key_takes_over_from_another_while_clients_stay(
    redis_server: RedisServer, instances: Instances, peers: Peers, tmp_path: Path
) -> None:
    old, new = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    file = tmp_path / "keys.pem"
    file.write_text(pem(old))
    [one] = await instances(redis_server, auth={"required": True, "public_key": Secret(file=file)})
    ada = await peers(one, **bearer(token("ES256", key=old)))
    file.write_text(pem(old) + pem(new))
    async with asyncio.timeout(30):
        while True:
            await ada.say({"type": "auth", "token": token("ES256", key=new)})
            if (await ada.hear())["type"] == "authenticated":
                break
            await asyncio.sleep(0.1)
    assert (await peers(one, **bearer(token("ES256", key=old)))).welcome["user"] == "ada"
    file.write_text(pem(new))
    async with asyncio.timeout(30):
        while True:
            try:
                late = await peers(one, **bearer(token("ES256", key=old)))
            except InvalidStatus as refused:
                status = refused.response.status_code
                break
            await late.socket.close()
            await asyncio.sleep(0.1)
    assert status == 401
    await ada.silent()


class Provider:
    """A JWK Set on 127.0.0.1."""

    def __init__(self) -> None:
        self.keys: dict[str, Any] = {}
        self.url = ""

    async def answer(self, _request: web.Request) -> web.Response:
        es256 = jwt.get_algorithm_by_name("ES256")
        keys = [
            {**es256.to_jwk(key.public_key(), as_dict=True), "kid": kid} for kid, key in self.keys.items()
        ]
        return web.json_response({"keys": keys})


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    found = Provider()
    app = web.Application()
    app.router.add_get("/keys", found.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    found.url = f"http://127.0.0.1:{runner.addresses[0][1]}/keys"
    yield found
    await runner.cleanup()


async def test_a_token_of_a_key_not_known_yet_is_told_to_come_again_and_then_lets_in(
    redis_server: RedisServer,
    instances: Instances,
    peers: Peers,
    provider: Provider,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jwks, "MIN_INTERVAL_SECONDS", 0.0)
    first, second = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    provider.keys = {"first": first}
    [one] = await instances(redis_server, auth={"required": True, "jwks_url": provider.url})
    assert (await peers(one, **bearer(token("ES256", key=first, kid="first")))).welcome["user"] == "ada"
    provider.keys = {"first": first, "second": second}
    fresh = token("ES256", key=second, kid="second")
    with pytest.raises(InvalidStatus) as told:
        await peers(one, **bearer(fresh))
    assert told.value.response.status_code == 503
    assert int(told.value.response.headers["Retry-After"]) > 0
    async with asyncio.timeout(30):
        while True:
            try:
                ada = await peers(one, **bearer(fresh))
                break
            except InvalidStatus:
                await asyncio.sleep(0.05)
    assert ada.welcome["user"] == "ada"


async def test_who_needs_no_token_has_the_default_rights(
    redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    rights = '{"join":["lobby"],"publish":["lobby"]}'
    [one] = await instances(redis_server, auth={"default_rights": rights})
    guest = await peers(one)
    await guest.join("lobby")
    await guest.published("lobby", 1, echo=False)
    await guest.say({"type": "join", "room": "table:1"})
    assert (await guest.hear_type("error"))["code"] == "forbidden"
    await guest.say({"type": "presence", "room": "lobby"})
    assert (await guest.hear_type("error"))["code"] == "forbidden"


COMMANDS: dict[str, dict[str, Any]] = {
    "join": {"type": "join", "room": "table:1"},
    "publish": {"type": "publish", "room": "hall", "event": "e", "data": 1},
    "presence": {"type": "presence", "room": "hall"},
    "direct": {"type": "direct", "to": "bob", "event": "e", "data": 1},
}


@pytest.mark.parametrize("right", [None, *COMMANDS])
async def test_each_right_allows_what_it_names_and_nothing_else(
    redis_server: RedisServer, instances: Instances, peers: Peers, right: str | None
) -> None:
    [one] = await instances(redis_server, auth=auth("HS256"))
    # a member of `hall`: publishing and seeing who is there need that, too
    rights: dict[str, list[str]] = {"join": ["hall"]}
    if right is not None:
        rights.setdefault(right, []).append(
            "bob" if right == "direct" else "*" if right != "join" else "table:*"
        )
    ada = await peers(one, **bearer(token("HS256", tableforge=rights)))
    await ada.join("hall")
    for name, command in COMMANDS.items():
        await ada.say({**command, "id": name})
        answer = await _answer(ada, name)
        if name == right:
            assert answer["type"] in ("joined", "ack", "presence"), answer
        else:
            assert (answer["type"], answer.get("code")) == ("error", "forbidden"), answer


async def _answer(peer: Peer, identifier: str) -> dict[str, Any]:
    while (frame := await peer.hear()).get("id") != identifier:
        assert frame["type"] in ("message", "members"), json.dumps(frame)
    return frame
