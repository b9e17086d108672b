"""Every algorithm, and every way to make a key count for another one than its own."""

import base64
import datetime as dt
import json
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from tableforge_dataplane.contract.settings import AuthSettings, Secret
from tableforge_dataplane.observability.logging import EventLog
from tableforge_dataplane.security.tokens import TokenError, TokenVerifier, mint
from tableforge_dataplane.security.verification_keys import KeyProblem, keys_of_set, public_keys

NOW = 1_800_000_000.0
CLAIMS = {"sub": "ada", "exp": NOW + 60}
LONG = "0123456789abcdef" * 4

RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
P256 = ec.generate_private_key(ec.SECP256R1())
PRIVATE: dict[str, Any] = {
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), RSA),
    "ES256": P256,
    "ES384": ec.generate_private_key(ec.SECP384R1()),
    "ES512": ec.generate_private_key(ec.SECP521R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}
PUBLIC_ALGORITHMS = list(PRIVATE)
SHARED_ALGORITHMS = ["HS256", "HS384", "HS512"]


def pem(private: Any) -> str:
    return private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode().strip()


def jwk(algorithm: str, private: Any | None = None, **more: Any) -> dict[str, Any]:
    private = PRIVATE[algorithm] if private is None else private
    found: dict[str, Any] = jwt.get_algorithm_by_name(algorithm).to_jwk(private.public_key(), as_dict=True)
    return {**found, **more}


def verifier(**settings: Any) -> TokenVerifier:
    return TokenVerifier(AuthSettings(**settings), log=EventLog("test"), clock=lambda: NOW)


def of_public(text: str, **settings: Any) -> TokenVerifier:
    return verifier(public_key=Secret(value=text), **settings)


def settings_for(algorithm: str) -> dict[str, Any]:
    return {"rsa_algorithm": algorithm} if algorithm[:2] in ("RS", "PS") else {}


def sign(algorithm: str, key: Any, claims: dict[str, Any] | None = None, **header: Any) -> str:
    return jwt.encode(CLAIMS if claims is None else claims, key, algorithm=algorithm, headers=header)


def refusal(checked: TokenVerifier, token: str) -> TokenError:
    with pytest.raises(TokenError) as caught:
        checked.verify(token)
    return caught.value


@pytest.mark.parametrize("algorithm", PUBLIC_ALGORITHMS)
def test_a_public_key_counts_for_its_algorithm_and_no_other(algorithm: str) -> None:
    checked = of_public(pem(PRIVATE[algorithm]), **settings_for(algorithm))
    assert checked.verify(sign(algorithm, PRIVATE[algorithm])).user == "ada"
    for other in PUBLIC_ALGORITHMS:
        if other != algorithm:
            assert refusal(checked, sign(other, PRIVATE[other])).code == "unauthorized"


@pytest.mark.parametrize("algorithm", PUBLIC_ALGORITHMS)
def test_another_key_of_the_same_kind_does_not_count(algorithm: str) -> None:
    stranger: Any = (
        rsa.generate_private_key(public_exponent=65537, key_size=2048)
        if isinstance(PRIVATE[algorithm], rsa.RSAPrivateKey)
        else ed25519.Ed25519PrivateKey.generate()
        if algorithm == "EdDSA"
        else ec.generate_private_key(PRIVATE[algorithm].curve)
    )
    checked = of_public(pem(PRIVATE[algorithm]), **settings_for(algorithm))
    assert "signature" in refusal(checked, sign(algorithm, stranger)).message


@pytest.mark.parametrize("algorithm", SHARED_ALGORITHMS)
def test_a_shared_key_counts_for_the_algorithm_that_was_set(algorithm: str) -> None:
    checked = verifier(jwt_secret=Secret(value=LONG), secret_algorithm=algorithm)
    for other in SHARED_ALGORITHMS:
        token = sign(other, LONG)
        if other == algorithm:
            assert checked.verify(token).user == "ada"
        else:
            assert algorithm in refusal(checked, token).message


@pytest.mark.parametrize(("algorithm", "least"), [("HS256", 32), ("HS384", 48), ("HS512", 64)])
def test_a_shared_key_is_as_long_as_its_hash(algorithm: str, least: int) -> None:
    short = verifier(jwt_secret=Secret(value="k" * (least - 1)), secret_algorithm=algorithm)
    assert f"{least - 1} bytes" in str(short.problem)
    assert verifier(jwt_secret=Secret(value="k" * least), secret_algorithm=algorithm).problem is None


def forged(header: dict[str, Any], key: bytes) -> str:
    """Signed as HS256, whatever the header says."""
    head, body = (
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in (header, CLAIMS)
    )
    signature = jwt.get_algorithm_by_name("HS256").sign(f"{head}.{body}".encode(), key)
    return f"{head}.{body}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


@pytest.mark.parametrize("algorithm", PUBLIC_ALGORITHMS)
def test_the_text_of_a_public_key_signs_nothing(algorithm: str) -> None:
    private = PRIVATE[algorithm]
    text = pem(private)
    checked = of_public(text, **settings_for(algorithm))
    mixed = of_public(text, jwt_secret=Secret(value=LONG), **settings_for(algorithm))
    der = private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    as_jwk = json.dumps(jwk(algorithm)).encode()
    for key in (text.encode(), text.encode() + b"\n", der, as_jwk):
        for claimed in ("HS256", "HS384", algorithm, "none"):
            assert refusal(checked, forged({"alg": claimed}, key)).code == "unauthorized"
            assert refusal(mixed, forged({"alg": claimed}, key)).code == "unauthorized"


@pytest.mark.parametrize(
    "member",
    [
        {"jku": "https://evil.example/keys"},
        {"x5u": "https://evil.example/chain"},
        {"x5c": ["AAAA"]},
        {"crit": ["b64"], "b64": True},
    ],
)
def test_a_token_does_not_say_what_judges_it(member: dict[str, Any]) -> None:
    [name] = [name for name in member if name != "b64"]
    # signed with the right key: the header alone is the reason
    checked = verifier(jwt_secret=Secret(value=LONG))
    assert f"`{name}`" in refusal(checked, forged({"alg": "HS256", **member}, LONG.encode())).message
    assert checked.verify(forged({"alg": "HS256"}, LONG.encode())).user == "ada"


@pytest.mark.parametrize("crit", [["exp"], [], "b64", [5]])
def test_what_must_be_heeded_and_is_not_known_is_refused(crit: Any) -> None:
    checked = verifier(jwt_secret=Secret(value=LONG))
    assert refusal(checked, forged({"alg": "HS256", "crit": crit}, LONG.encode())).code == "unauthorized"


def test_a_key_inside_the_token_does_not_count() -> None:
    stranger = ec.generate_private_key(ec.SECP256R1())
    token = sign("ES256", stranger, jwk=jwk("ES256", stranger))
    assert "`jwk`" in refusal(of_public(pem(P256)), token).message


def test_several_keys_count_at_once_while_one_takes_over_from_the_other() -> None:
    old, new = ec.generate_private_key(ec.SECP256R1()), P256
    both = of_public(f"{pem(old)}\n{pem(new)}\n{pem(PRIVATE['EdDSA'])}")
    for algorithm, key in (("ES256", old), ("ES256", new), ("EdDSA", PRIVATE["EdDSA"])):
        assert both.verify(sign(algorithm, key)).user == "ada"
    shared = verifier(jwt_secret=Secret(value=LONG), previous_jwt_secret=Secret(value=LONG[::-1]))
    for text in (LONG, LONG[::-1]):
        assert shared.verify(sign("HS256", text)).user == "ada"
    assert refusal(shared, sign("HS256", LONG.upper())).code == "unauthorized"


def test_shared_and_public_keys_stand_side_by_side() -> None:
    checked = of_public(pem(P256), jwt_secret=Secret(value=LONG))
    assert checked.verify(sign("HS256", LONG)).user == "ada"
    assert checked.verify(sign("ES256", P256)).user == "ada"


def test_a_public_key_file_that_changes_counts_within_a_second(tmp_path: Path) -> None:
    now = 0.0
    file = tmp_path / "keys.pem"
    checked = TokenVerifier(
        AuthSettings(public_key=Secret(file=file)),
        log=EventLog("test"),
        clock=lambda: NOW,
        monotonic=lambda: now,
    )
    assert "does not exist" in str(checked.problem)
    file.write_text(pem(P256) + "\n")
    now = 1.0
    assert checked.verify(sign("ES256", P256)).user == "ada"
    other = ec.generate_private_key(ec.SECP256R1())
    file.write_text(json.dumps({"keys": [jwk("ES256", other, kid="new")]}))
    now = 2.0
    assert refusal(checked, sign("ES256", P256)).code == "unauthorized"
    assert checked.verify(sign("ES256", other, kid="new")).user == "ada"


def test_a_certificate_gives_its_public_key() -> None:
    name = x509.Name([])
    moment = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(P256.public_key())
        .serial_number(1)
        .not_valid_before(moment)
        .not_valid_after(moment + dt.timedelta(days=1))
        .sign(P256, hashes.SHA256())
    )
    text = certificate.public_bytes(Encoding.PEM).decode()
    assert of_public(text).verify(sign("ES256", P256)).user == "ada"


PKCS8 = P256.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
SMALL_RSA = rsa.generate_private_key(public_exponent=65537, key_size=1024)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (PKCS8, "private key"),
        (pem(P256) + "\n" + PKCS8, "private key"),
        (json.dumps({"keys": [jwk("ES256", d="AAAA")]}), "private"),
        (json.dumps({"keys": [{"kty": "oct", "k": "AAAA"}]}), "shared"),
        (pem(SMALL_RSA), "1024 bits"),
        (json.dumps({"keys": [jwk("RS256", SMALL_RSA)]}), "1024 bits"),
        (pem(ec.generate_private_key(ec.SECP256K1())), "curve"),
        (json.dumps({"keys": [jwk("ES256", alg="ES384")]}), "`alg`"),
        (json.dumps({"keys": [jwk("RS256", alg="HS256")]}), "`alg`"),
        (json.dumps({"keys": [{"kty": "EC", "crv": "P-256", "x": 5, "y": None}]}), "cannot be read"),
        (json.dumps({"keys": [jwk("ES256", kid=7)]}), "`kid`"),
        (json.dumps({"keys": [{"kty": []}]}), "of a type that isn't"),
        (json.dumps({"keys": [jwk("RS256", alg=["RS256"])]}), "`alg`"),
        ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----", "cannot be read"),
        ("k" * 64, "neither PEM blocks nor a JWK Set"),
        ("{", "no JSON"),
        ('{"keys": {}}', "no JWK Set"),
        (json.dumps({"keys": [{}] * 101}), "101 keys"),
        ("\n".join(pem(ec.generate_private_key(ec.SECP256R1())) for _ in range(5)), "more than 4 keys"),
    ],
)
def test_what_cannot_check_tokens_is_named(text: str, said: str) -> None:
    checked = of_public(text)
    assert not checked.available
    assert said in str(checked.problem)
    assert "TABLEFORGE_AUTH_PUBLIC_KEY" in str(checked.problem)
    assert refusal(checked, sign("ES256", P256)).code == "unavailable"


@settings(max_examples=500)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["keys", "kty", "crv", "x", "y", "n", "e", "d", "k", "kid", "alg", "use", "key_ops"]
                ),
                inner
                | st.sampled_from(["RSA", "EC", "OKP", "P-256", "Ed25519", "AQAB", "sig", "ES256", "oct"]),
                max_size=8,
            )
        ),
        max_leaves=20,
    )
)
def test_no_json_breaks_the_reader_of_sets(document: Any) -> None:
    for text in (document, {"keys": [document]}, {"keys": document}):
        try:
            keys, refused = keys_of_set(json.dumps(text).encode(), rsa_algorithm="RS256")
        except KeyProblem:
            continue
        assert len(keys) + len(refused) <= 100


def test_a_named_key_is_the_only_one_that_counts_for_its_name() -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    text = json.dumps({"keys": [jwk("ES256", kid="one"), jwk("ES256", other, kid="two")]})
    checked = of_public(text)
    assert checked.verify(sign("ES256", P256, kid="one")).user == "ada"
    assert checked.verify(sign("ES256", P256)).user == "ada"
    assert "signature" in refusal(checked, sign("ES256", P256, kid="two")).message
    assert refusal(checked, sign("ES256", P256, kid="three")).code == "unauthorized"


def test_with_many_keys_a_token_has_to_name_its_own() -> None:
    keys = [ed25519.Ed25519PrivateKey.generate() for _ in range(5)]
    text = json.dumps({"keys": [jwk("EdDSA", key, kid=str(place)) for place, key in enumerate(keys)]})
    checked = of_public(text)
    assert checked.verify(sign("EdDSA", keys[4], kid="4")).user == "ada"
    assert "`kid`" in refusal(checked, sign("EdDSA", keys[4])).message


def test_a_set_says_what_its_rsa_keys_are_for_and_keys_for_encryption_are_passed_over() -> None:
    text = json.dumps(
        {
            "keys": [
                jwk("PS512", alg="PS512", kid="one"),
                jwk("ES256", use="enc", kid="two"),
                jwk("ES256", key_ops=["deriveBits"], kid="three"),
            ]
        }
    )
    assert [(key.kid, key.algorithm) for key in public_keys(text, rsa_algorithm="RS256")] == [
        ("one", "PS512")
    ]
    checked = of_public(text)
    assert checked.verify(sign("PS512", RSA, kid="one")).user == "ada"
    assert refusal(checked, sign("RS256", RSA, kid="one")).code == "unauthorized"


def test_ed448_is_eddsa_too() -> None:
    key = ed448.Ed448PrivateKey.generate()
    assert of_public(pem(key)).verify(sign("EdDSA", key)).user == "ada"


def of_issuer(**settings: Any) -> TokenVerifier:
    return verifier(jwt_secret=Secret(value=LONG), **settings)


@pytest.mark.parametrize("iss", [None, "", "https://id.example.com/", 5, ["https://id.example.com"]])
def test_only_the_issuer_that_was_set_counts(iss: Any) -> None:
    checked = of_issuer(issuer="https://id.example.com")
    # PyJWT refuses to make a token whose `iss` is no text
    claims = json.dumps({**CLAIMS, "iss": iss}).encode()
    token = jwt.api_jws.encode(claims, LONG, algorithm="HS256")
    assert "`iss`" in refusal(checked, token).message
    assert checked.verify(sign("HS256", LONG, {**CLAIMS, "iss": "https://id.example.com"})).user == "ada"


@pytest.mark.parametrize(
    ("aud", "fits"),
    [
        ("tables", True),
        (["other", "tables"], True),
        (None, False),
        ("table", False),
        ([], False),
        (["other"], False),
        ({"tables": 1}, False),
        (7, False),
    ],
)
def test_only_tokens_for_this_audience_count(aud: Any, fits: bool) -> None:
    checked = of_issuer(audience="tables")
    token = sign("HS256", LONG, {**CLAIMS, "aud": aud})
    if fits:
        assert checked.verify(token).user == "ada"
    else:
        assert "`aud`" in refusal(checked, token).message


def test_where_none_is_set_issuer_and_audience_may_be_anything() -> None:
    assert of_issuer().verify(sign("HS256", LONG, {**CLAIMS, "iss": "x", "aud": ["y"]})).user == "ada"


def test_the_leeway_counts_before_a_token_begins_and_not_after_its_end() -> None:
    checked = of_issuer(leeway_seconds=30.0)
    assert checked.verify(sign("HS256", LONG, {**CLAIMS, "nbf": NOW + 30})).user == "ada"
    assert "nbf" in refusal(checked, sign("HS256", LONG, {**CLAIMS, "nbf": NOW + 31})).message
    assert "expired" in refusal(checked, sign("HS256", LONG, {**CLAIMS, "exp": NOW - 1})).message


def test_default_rights_are_those_of_a_token_without_rights_of_its_own() -> None:
    checked = of_issuer(default_rights='{"join":["lobby","table:*"],"direct":["bob"]}')
    rights = checked.verify(sign("HS256", LONG)).rights
    assert rights == checked.default_rights
    assert [rights.may_join(room) for room in ("lobby", "table:1", "other")] == [True, True, False]
    assert not rights.may_publish("lobby")
    assert not rights.may_see_presence("lobby")
    assert (rights.direct.match("bob"), rights.direct.match("eve")) == (True, False)
    own = checked.verify(sign("HS256", LONG, {**CLAIMS, "tableforge": {"publish": ["x"]}})).rights
    assert (own.may_join("lobby"), own.may_publish("x")) == (False, True)


def test_a_minted_token_suits_the_settings_it_was_minted_by() -> None:
    settings = AuthSettings(
        jwt_secret=Secret(value=LONG), secret_algorithm="HS512", issuer="https://me", audience="tables"
    )
    token = mint(LONG, user="ada", lifetime_seconds=60, rights={"direct": ["**"]}, settings=settings)
    identity = TokenVerifier(settings, log=EventLog("test")).verify(token)
    assert (identity.user, identity.rights.direct.match("bob")) == ("ada", True)
