"""Keys from an identity provider's address: fetched, aged, rotated, out of reach, and misused."""

import asyncio
import datetime as dt
import ipaddress
import json
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import jwt
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tableforge_dataplane.contract.settings import AuthSettings, Secret
from tableforge_dataplane.observability.logging import EventLog
from tableforge_dataplane.security import jwks
from tableforge_dataplane.security.tokens import TokenError, TokenVerifier
from tests.dataplane.path.instances import Instances, Peers
from tests.support.children import free_port
from tests.support.processes import DataplaneFleet
from tests.support.redis import RedisServer

ONE = ec.generate_private_key(ec.SECP256R1())
TWO = ec.generate_private_key(ec.SECP256R1())


def token(key: Any, kid: str | None) -> str:
    headers = {} if kid is None else {"kid": kid}
    return jwt.encode({"sub": "ada", "exp": time.time() + 60}, key, algorithm="ES256", headers=headers)


def entry(key: Any, kid: str) -> dict[str, Any]:
    return {**jwt.get_algorithm_by_name("ES256").to_jwk(key.public_key(), as_dict=True), "kid": kid}


class Provider:
    """An identity provider on 127.0.0.1 whose answer the test changes."""

    def __init__(self) -> None:
        self.keys: list[dict[str, Any]] = [entry(ONE, "one")]
        self.headers: dict[str, str] = {}
        self.answer: Callable[[], web.StreamResponse] | None = None
        self.delay = 0.0
        self.fetches = 0
        self.url = ""
        self._runner: web.AppRunner | None = None

    async def start(self, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        app = web.Application()
        app.router.add_get("/keys", self._serve)
        app.router.add_get("/elsewhere", self._serve_elsewhere)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", port, ssl_context=tls).start()
        self.port = self._runner.addresses[0][1]
        self.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{self.port}/keys"

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _serve(self, _request: web.Request) -> web.StreamResponse:
        self.fetches += 1
        await asyncio.sleep(self.delay)
        if self.answer is not None:
            return self.answer()
        return web.json_response({"keys": self.keys}, headers=self.headers)

    async def _serve_elsewhere(self, _request: web.Request) -> web.StreamResponse:
        return web.json_response({"keys": self.keys})


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    found = Provider()
    await found.start()
    yield found
    await found.stop()


@asynccontextmanager
async def verifying(url: str, **settings: Any) -> AsyncIterator[TokenVerifier]:
    checked = TokenVerifier(AuthSettings(jwks_url=url, **settings), log=EventLog("test"))
    checked.start()
    try:
        yield checked
    finally:
        await checked.stop()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 (another server's answer)
            await asyncio.sleep(0.005)


def outcome(checked: TokenVerifier, text: str) -> str:
    try:
        return checked.verify(text).user
    except TokenError as error:
        return error.code


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jwks, "FIRST_RETRY_SECONDS", 0.02)
    monkeypatch.setattr(jwks, "LONGEST_RETRY_SECONDS", 0.05)
    monkeypatch.setattr(jwks, "MIN_INTERVAL_SECONDS", 0.0)


async def test_nobody_gets_in_before_the_keys_are_there_and_everybody_known_does_afterwards(
    provider: Provider,
) -> None:
    provider.delay = 0.2
    async with verifying(provider.url) as checked:
        assert outcome(checked, token(ONE, "one")) == "unavailable"
        assert str(checked.problem).startswith(f"TABLEFORGE_AUTH_JWKS_URL={provider.url}: ")
        await until(lambda: checked.available)
        assert checked.problem is None
        assert outcome(checked, token(ONE, "one")) == "ada"
        assert outcome(checked, token(ONE, None)) == "ada"
        assert outcome(checked, token(TWO, "one")) == "unauthorized"


async def test_a_token_of_a_new_key_has_it_fetched_and_the_old_key_goes_with_its_set(
    provider: Provider, quick: None
) -> None:
    async with verifying(provider.url) as checked:
        await until(lambda: checked.available)
        provider.keys = [entry(TWO, "two")]
        # who comes first is told to come again, not to get a new token
        assert outcome(checked, token(TWO, "two")) == "unavailable"
        await until(lambda: outcome(checked, token(TWO, "two")) == "ada")
        assert provider.fetches == 2
        assert outcome(checked, token(ONE, "one")) != "ada"


async def test_tokens_with_made_up_keys_cause_one_fetch_per_interval(
    provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "MIN_INTERVAL_SECONDS", 3600.0)
    async with verifying(provider.url) as checked:
        await until(lambda: checked.available)
        for place in range(200):
            assert outcome(checked, token(TWO, f"made-up-{place}")) == "unauthorized"
            if place % 20 == 0:
                await asyncio.sleep(0.005)  # time for a fetch, were there one
        assert provider.fetches == 1


async def test_known_keys_stay_in_use_while_the_provider_is_away(provider: Provider, quick: None) -> None:
    await provider.stop()
    port = free_port()  # that no outgoing connection takes meanwhile
    await provider.start(port)
    async with verifying(provider.url) as checked:
        await until(lambda: checked.available)
        await provider.stop()
        assert outcome(checked, token(TWO, "two")) == "unavailable"
        await until(lambda: checked.problems() != [])
        assert outcome(checked, token(ONE, "one")) == "ada"
        assert checked.available
        provider.keys = [entry(ONE, "one"), entry(TWO, "two")]
        await provider.start(port)
        await until(lambda: outcome(checked, token(TWO, "two")) == "ada")
        assert checked.problems() == []


def _big() -> web.StreamResponse:
    return web.Response(body=b'{"keys": [' + b" " * 300_000 + b"]}")


def _redirect() -> web.StreamResponse:
    return web.Response(status=302, headers={"Location": "/elsewhere"})


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (_redirect, "redirects are not followed"),
        (_big, "longer than 262144 bytes"),
        (lambda: web.Response(text="<html>"), "no JSON"),
        (lambda: web.json_response({"keys": []}), "no usable key"),
        (lambda: web.json_response({"keys": [{"kty": "oct", "k": "AAAA"}]}), "private or shared"),
        (lambda: web.Response(status=500), "it answers 500"),
    ],
)
async def test_an_answer_that_is_no_set_of_keys_changes_nothing(
    provider: Provider, quick: None, answer: Callable[[], web.StreamResponse], said: str
) -> None:
    async with verifying(provider.url) as checked:
        await until(lambda: checked.available)
        provider.answer = answer
        outcome(checked, token(TWO, "two"))
        await until(lambda: checked.problems() != [])
        assert said in checked.problems()[0]
        assert outcome(checked, token(ONE, "one")) == "ada"


async def test_a_provider_that_never_finishes_is_given_up(
    provider: Provider, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "FETCH_SECONDS", 0.1)
    provider.delay = 60
    async with verifying(provider.url) as checked:
        await until(lambda: "no whole answer" in str(checked.problem))
        await until(lambda: provider.fetches > 1)


@pytest.mark.parametrize(
    ("header", "expected"),
    [("max-age=600", 600), ("public, max-age=5", 60), ("max-age=999999999", 86_400), ("no-cache", 300)],
)
async def test_max_age_is_believed_within_bounds(
    provider: Provider, header: str, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    pause = jwks.JwksKeys._pause

    async def noted(self: jwks.JwksKeys, seconds: float) -> None:
        waits.append(seconds)
        await pause(self, seconds)

    monkeypatch.setattr(jwks.JwksKeys, "_pause", noted)
    provider.headers = {"Cache-Control": header}
    async with verifying(provider.url):
        await until(lambda: waits != [])
    assert 0.9 * expected <= waits[0] <= expected


async def test_https_is_checked_by_the_certificates_that_were_named(tmp_path: Path, quick: None) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "id")])
    moment = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(moment - dt.timedelta(days=1))
        .not_valid_after(moment + dt.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(Encoding.PEM)
    (tmp_path / "ca.pem").write_bytes(pem)
    (tmp_path / "both.pem").write_bytes(
        pem + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "both.pem")
    provider = Provider()
    await provider.start(tls=context)
    try:
        async with verifying(provider.url) as checked:
            await until(lambda: "certificate" in str(checked.problem))
            assert provider.fetches == 0
        async with verifying(provider.url, jwks_ca_file=str(tmp_path / "ca.pem")) as checked:
            await until(lambda: checked.available)
            assert outcome(checked, token(ONE, "one")) == "ada"
        async with verifying(provider.url, jwks_ca_file=str(tmp_path / "none.pem")) as checked:
            await until(lambda: "TABLEFORGE_AUTH_JWKS_CA_FILE" in str(checked.problem))
    finally:
        await provider.stop()


async def test_a_shared_key_lets_people_in_while_the_provider_is_away() -> None:
    secret = "0123456789abcdef" * 2
    async with verifying("http://127.0.0.1:9/keys", jwt_secret=Secret(value=secret)) as checked:
        assert checked.problem is None
        text = jwt.encode({"sub": "ada", "exp": time.time() + 60}, secret, algorithm="HS256")
        assert outcome(checked, text) == "ada"
        assert outcome(checked, token(ONE, "one")) == "unavailable"


async def test_an_instance_says_what_it_waits_for_and_starts_once_the_provider_answers(
    provider: Provider, redis_server: RedisServer, dataplane: DataplaneFleet
) -> None:
    provider.answer = lambda: web.Response(status=503)
    [one] = await dataplane(
        redis_server,
        1,
        wait_until_ready=False,
        AUTH_REQUIRED="true",
        TABLEFORGE_AUTH_JWKS_URL=provider.url,
        TABLEFORGE_AUTH_AUDIENCE="tables",
    )
    expected = f"TABLEFORGE_AUTH_JWKS_URL={provider.url}: it answers 503, and 200 is needed."
    async with asyncio.timeout(60):
        while True:
            await asyncio.sleep(0.05)
            try:
                status, body = await one.get("/health")
            except OSError:
                continue
            if json.loads(body)["waitingFor"] == [expected]:
                break
    assert status == 503
    provider.answer = None
    async with asyncio.timeout(60):
        while (await one.get("/ready"))[0] != 200:  # noqa: ASYNC110 (another process)
            await asyncio.sleep(0.05)


async def test_who_comes_with_a_key_that_is_not_known_yet_is_told_when_to_come_again(
    provider: Provider, quick: None, redis_server: RedisServer, instances: Instances, peers: Peers
) -> None:
    [one] = await instances(redis_server, auth={"required": True, "jwks_url": provider.url})
    early = await peers(one, welcome=False)
    await early.say({"type": "auth", "id": 1, "token": token(TWO, "two")})
    error = await early.hear_type("error")
    assert (error["id"], error["code"], error["command"]) == (1, "unavailable", "auth")
    assert error["retryAfter"] > 0
    assert await early.closed() == 1013
    # a renewal costs the session nothing, whatever is wrong with it
    ada = await peers(one, additional_headers={"Authorization": f"Bearer {token(ONE, 'one')}"})
    await ada.join("lobby")
    await ada.say({"type": "auth", "id": 2, "token": token(TWO, "two")})
    error = await ada.hear_type("error")
    assert (error["id"], error["code"], error["command"]) == (2, "unavailable", "auth")
    assert error["retryAfter"] > 0
    await ada.say({"type": "auth", "id": 3, "token": "nonsense"})
    error = await ada.hear_type("error")
    assert (error["id"], error["code"], "retryAfter" in error) == (3, "unauthorized", False)
    await ada.published("lobby", "still here")
