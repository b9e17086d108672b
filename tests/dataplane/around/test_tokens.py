"""Tokens: what lets somebody in, what doesn't, and a key that comes late or changes."""

import base64
import json
import os
from pathlib import Path
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tableforge_dataplane.contract.settings import AuthSettings, Secret
from tableforge_dataplane.observability.logging import EventLog
from tableforge_dataplane.security.tokens import TokenError, TokenVerifier, mint

KEY = "0123456789abcdef0123456789abcdef"
NOW = 1_800_000_000.0
LOG = EventLog("test")


def verifier(key: str = KEY) -> TokenVerifier:
    return TokenVerifier(AuthSettings(jwt_secret=Secret(value=key)), log=LOG, clock=lambda: NOW)


def token(claims: dict[str, Any] | None = None, *, key: str = KEY, **header: Any) -> str:
    return jwt.encode(
        {"sub": "ada", "exp": NOW + 60} if claims is None else claims, key, algorithm="HS256", headers=header
    )


def refusal(text: str, *, key: str = KEY) -> TokenError:
    with pytest.raises(TokenError) as caught:
        verifier(key).verify(text)
    return caught.value


def test_a_good_token_says_who_what_and_until_when() -> None:
    identity = verifier().verify(
        token({"sub": "ada", "exp": NOW + 60, "tableforge": {"join": ["table:*"], "publish": []}})
    )
    assert (identity.user, identity.expires_at) == ("ada", NOW + 60)
    assert identity.rights.may_join("table:1")
    assert not identity.rights.may_publish("table:1")


@pytest.mark.parametrize(
    ("claims", "user"),
    [
        ({"userId": "bob"}, "bob"),
        ({"userId": 42}, "42"),
        ({"sub": "ada", "userId": "bob"}, "ada"),
        ({"sub": "x" * 128}, "x" * 128),
        ({"sub": "Zoë 🂡"}, "Zoë 🂡"),
    ],
)
def test_the_user_is_sub_or_user_id(claims: dict[str, Any], user: str) -> None:
    assert verifier().verify(token({**claims, "exp": NOW + 1})).user == user


@pytest.mark.parametrize(
    "sub",
    ["", "x" * 129, 7, True, ["ada"], {"a": 1}, "line\nbreak", "null\0", "half \ud800 pair", "\u202eada"],
)
def test_a_user_that_cannot_be_one_is_refused(sub: Any) -> None:
    error = refusal(token({"sub": sub, "exp": NOW + 60}))
    assert (error.code, "`sub`" in error.message) == ("unauthorized", True)


def test_a_token_without_a_user_is_refused() -> None:
    assert "names no user" in refusal(token({"exp": NOW + 60})).message
    assert refusal(token({"userId": True, "exp": NOW + 60})).code == "unauthorized"


@pytest.mark.parametrize("exp", [NOW, NOW - 1, 0, -1])
def test_an_expired_token_is_refused(exp: float) -> None:
    assert "expired" in refusal(token({"sub": "ada", "exp": exp})).message


@pytest.mark.parametrize("exp", ["soon", True, [], 1e300, float("nan"), float("inf")])
def test_an_expiry_that_is_no_time_is_refused(exp: Any) -> None:
    assert "`exp` must be a time" in refusal(token({"sub": "ada", "exp": exp})).message


def test_a_token_without_expiry_is_refused() -> None:
    assert "no `exp`" in refusal(token({"sub": "ada"})).message


def test_not_before_is_honoured_with_a_little_patience() -> None:
    assert "not valid yet" in refusal(token({"sub": "ada", "exp": NOW + 60, "nbf": NOW + 6})).message
    assert verifier().verify(token({"sub": "ada", "exp": NOW + 60, "nbf": NOW + 4})).user == "ada"


def test_a_malformed_rights_claim_is_named() -> None:
    error = refusal(token({"sub": "ada", "exp": NOW + 60, "tableforge": {"join": "*"}}))
    assert "`tableforge.join`" in error.message


def unsigned(header: dict[str, Any], claims: dict[str, Any] | None = None) -> str:
    parts = [header, {"sub": "ada", "exp": NOW + 60} if claims is None else claims]
    return ".".join(
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts
    )


@pytest.mark.parametrize(
    "algorithm", ["none", "None", "NONE", "", "HS512", "RS256", "ES256", None, ["HS256"], 5]
)
def test_no_other_algorithm_is_accepted(algorithm: Any) -> None:
    for signature in ("", "AAAA"):
        assert refusal(f"{unsigned({'alg': algorithm, 'typ': 'JWT'})}.{signature}").code == "unauthorized"


def test_a_longer_hash_with_the_right_key_is_not_accepted_either() -> None:
    text = jwt.encode({"sub": "ada", "exp": NOW + 60}, KEY * 2, algorithm="HS512")
    assert "HS256" in refusal(text, key=KEY * 2).message


def test_a_wrong_signature_is_refused() -> None:
    assert "signature" in refusal(token(key="another key of at least 32 bytes!")).message


def test_a_header_the_verifier_does_not_understand_is_refused() -> None:
    assert refusal(token(crit=["future"], future=1)).code == "unauthorized"


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda raw: raw.decode("latin-1")))
def test_no_text_breaks_the_verifier(text: str) -> None:
    assert refusal(text).code == "unauthorized"


@given(
    st.dictionaries(
        st.sampled_from(["sub", "exp", "nbf", "userId", "tableforge", "iat", "aud"]),
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers()
            | st.floats()
            | st.text(st.characters(exclude_categories=["Cs"])),
            lambda inner: (
                st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
            ),
            max_leaves=6,
        ),
    )
)
def test_no_signed_claims_break_the_verifier(claims: dict[str, Any]) -> None:
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
    header = base64.urlsafe_b64encode(b'{"alg":"HS256"}').rstrip(b"=").decode()
    signature = jwt.get_algorithm_by_name("HS256").sign(f"{header}.{body}".encode(), KEY.encode())
    text = f"{header}.{body}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"
    try:
        identity = verifier().verify(text)
    except TokenError:
        return
    assert 1 <= len(identity.user) <= 128
    assert identity.expires_at > NOW


def test_a_token_nested_thousands_deep_is_refused() -> None:
    deep = "[" * 3000 + "]" * 3000
    header = base64.urlsafe_b64encode(b'{"alg":"HS256"}').rstrip(b"=").decode()
    body = base64.urlsafe_b64encode(f'{{"sub":{deep}}}'.encode()).rstrip(b"=").decode()
    signature = jwt.get_algorithm_by_name("HS256").sign(f"{header}.{body}".encode(), KEY.encode())
    text = f"{header}.{body}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"
    assert refusal(text).code == "unauthorized"


def test_an_oversized_token_is_refused_before_it_is_decoded() -> None:
    assert "longer than" in refusal("e" * 8193).message


def test_an_error_never_repeats_the_token() -> None:
    text = token(key="another key of at least 32 bytes!")
    assert text.split(".")[1] not in refusal(text).message


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("k" * 31, "31 bytes"),
        ("-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE\n-----END PUBLIC KEY-----", "PEM"),
        ("ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQ comment", "SSH"),
    ],
)
def test_an_unfit_key_lets_nobody_in(key: str, said: str) -> None:
    checked = verifier(key)
    assert not checked.available
    assert checked.problem is not None
    assert said in checked.problem
    assert key not in checked.problem
    # whoever knows the key's text cannot sign with it
    header = base64.urlsafe_b64encode(b'{"alg":"HS256"}').rstrip(b"=").decode()
    body = base64.urlsafe_b64encode(b'{"sub":"eve","exp":9999999999}').rstrip(b"=").decode()
    signature = jwt.get_algorithm_by_name("HS256").sign(f"{header}.{body}".encode(), key.encode())
    forged = f"{header}.{body}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"
    assert refusal(forged, key=key).code == "unavailable"


class FileKey:
    """A verifier whose key lies in a file, and whose clock the test moves."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.monotonic = 0.0
        self.verifier = TokenVerifier(
            AuthSettings(jwt_secret=Secret(file=path)),
            log=LOG,
            clock=lambda: NOW,
            monotonic=lambda: self.monotonic,
        )

    def accepts(self, text: str) -> bool:
        try:
            return self.verifier.verify(text).user == "ada"
        except TokenError:
            return False


def test_a_key_that_is_not_there_yet_is_named_and_counts_once_it_is(tmp_path: Path) -> None:
    key = FileKey(tmp_path / "secret")
    assert not key.verifier.available
    problem = key.verifier.problem
    assert problem is not None
    assert problem.startswith(f"JWT_SECRET_FILE={key.path} does not exist: create the Secret")
    assert "auth.jwtSecretRef" in problem
    key.path.write_text(KEY + "\n")
    key.monotonic = 1.0
    assert key.verifier.available
    assert key.verifier.problem is None
    assert key.accepts(token())


def test_a_replaced_key_counts_within_a_second_and_the_old_one_no_more(tmp_path: Path) -> None:
    # as the kubelet does it: the path is a link into a folder that is swapped as a whole
    for name, text in (("first", KEY), ("second", KEY[::-1])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "secret").write_text(text)
    data = tmp_path / "..data"
    data.symlink_to("first")
    (tmp_path / "secret").symlink_to("..data/secret")
    key = FileKey(tmp_path / "secret")
    assert key.accepts(token())
    (tmp_path / "next").symlink_to("second")
    (tmp_path / "next").rename(data)
    key.monotonic = 0.9
    assert key.accepts(token())
    key.monotonic = 1.0
    assert not key.accepts(token())
    assert key.accepts(token(key=KEY[::-1]))


def test_a_key_rewritten_in_place_counts(tmp_path: Path) -> None:
    key = FileKey(tmp_path / "secret")
    key.path.write_text(KEY)
    assert key.accepts(token())
    key.path.write_text(KEY[::-1])
    os.utime(key.path, ns=(1, 1))
    key.monotonic = 1.0
    assert key.accepts(token(key=KEY[::-1]))


def test_a_deleted_key_lets_nobody_in(tmp_path: Path) -> None:
    key = FileKey(tmp_path / "secret")
    key.path.write_text(KEY)
    assert key.accepts(token())
    key.path.unlink()
    key.monotonic = 1.0
    assert not key.accepts(token())


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xfe" + b"k" * 40])
def test_a_file_that_holds_no_key_is_named(tmp_path: Path, content: bytes) -> None:
    key = FileKey(tmp_path / "secret")
    key.path.write_bytes(content)
    assert not key.verifier.available
    assert str(key.path) in str(key.verifier.problem)


def test_the_file_is_looked_at_once_a_second_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = FileKey(tmp_path / "secret")
    key.path.write_text(KEY)
    looks = 0
    stat = Path.stat

    def counted(self: Path, **options: Any) -> os.stat_result:
        nonlocal looks
        looks += 1
        return stat(self, **options)

    monkeypatch.setattr(Path, "stat", counted)
    for step in range(300):
        key.monotonic = step / 100
        assert key.accepts(token())
    assert looks == 4, "three looks, and for what the first one found the question whether it is a folder"


def test_a_minted_token_is_accepted() -> None:
    checked = TokenVerifier(AuthSettings(jwt_secret=Secret(value=KEY)), log=LOG)
    assert checked.verify(mint(KEY, user="ada", lifetime_seconds=60, rights=None)).user == "ada"
    narrow = checked.verify(mint(KEY, user="ada", lifetime_seconds=60, rights={"join": ["a"], "publish": []}))
    assert narrow.rights.may_join("a")
    assert not narrow.rights.may_publish("a")


@pytest.mark.parametrize(
    ("key", "user", "rights"), [("short", "ada", None), (KEY, "", None), (KEY, "ada", {"join": ["x*"]})]
)
def test_nothing_is_minted_that_nobody_would_accept(key: str, user: str, rights: Any) -> None:
    with pytest.raises(TokenError):
        mint(key, user=user, lifetime_seconds=60, rights=rights)
