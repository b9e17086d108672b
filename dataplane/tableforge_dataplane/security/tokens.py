"""From a token to an identity. HS256 JSON Web Tokens, signed with the key of `JWT_SECRET(_FILE)`."""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any, Final, Literal

import jwt

from tableforge_dataplane.contract.settings import Secret
from tableforge_dataplane.security.access import CLAIM, DEFAULT_RIGHTS, Rights, RightsError, rights_of
from tableforge_dataplane.security.keys import WatchedSecret

ALGORITHM: Final = "HS256"

MIN_KEY_BYTES: Final = 32
"""RFC 7518, 3.2: a key as long as the hash's output, at least."""

MAX_TOKEN_CHARACTERS: Final = 8192
"""What a header line of most proxies still carries; longer ones are refused before anything is decoded."""

MAX_USER_CHARACTERS: Final = 128

NOT_BEFORE_LEEWAY_SECONDS: Final = 5.0
"""How far the issuer's clock may be ahead. There is none for `exp`: the session ends at that very moment."""

_KEY_PURPOSE = (
    "create the Secret that auth.jwtSecretRef names, with a random key of at least 32 bytes "
    "(for example: openssl rand -hex 32)."
)


class TokenError(Exception):
    """A token that lets nobody in.

    `code` is the protocol's: `unauthorized`, or `unavailable` where there is no key to judge it by. `message`
    says what was wrong and what would be right, and never repeats the token.
    """

    def __init__(self, code: Literal["unauthorized", "unavailable"], message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who a client is, for as long as its token is valid."""

    user: str
    rights: Rights
    expires_at: float
    """Unix seconds; infinity where no token was required."""


class TokenVerifier:
    """Judges tokens by the key as it is now: a rotated key counts within a second."""

    def __init__(
        self,
        secret: Secret,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._secret = WatchedSecret(secret, variable="JWT_SECRET", purpose=_KEY_PURPOSE, clock=monotonic)
        self._clock = clock
        self._text: str | None = None
        self._key: bytes | None = None
        self._key_problem: str | None = None

    @property
    def available(self) -> bool:
        """Whether there is a usable key."""
        return self._current_key() is not None

    @property
    def problem(self) -> str | None:
        """One sentence about what to create or mend; None where there is a usable key."""
        self._current_key()
        return self._secret.problem or self._key_problem

    def verify(self, token: str) -> Identity:
        """Who presents this token. Costs about 45 µs; raises TokenError."""
        if len(token) > MAX_TOKEN_CHARACTERS:
            raise _refused(f"the token is longer than {MAX_TOKEN_CHARACTERS} characters")
        key = self._current_key()
        if key is None:
            raise TokenError(
                "unavailable", "This instance has no key to check tokens with yet: try again later."
            )
        claims = _signed_claims(token, key)
        expires_at = self._check_times(claims)
        user = _user_of(claims)
        if CLAIM not in claims:
            return Identity(user=user, rights=DEFAULT_RIGHTS, expires_at=expires_at)
        try:
            rights = rights_of(claims[CLAIM])
        except RightsError as error:
            raise _refused(str(error)) from None
        return Identity(user=user, rights=rights, expires_at=expires_at)

    def _check_times(self, claims: dict[str, Any]) -> float:
        now = self._clock()
        expires_at = _time_of(claims, "exp")
        if expires_at is None:
            raise _refused("the token has no `exp`: give it an expiry time in Unix seconds")
        if expires_at <= now:
            raise _refused("the token has expired: get a new one")
        not_before = _time_of(claims, "nbf")
        if not_before is not None and not_before > now + NOT_BEFORE_LEEWAY_SECONDS:
            raise _refused(
                "the token is not valid yet (`nbf`): use it later, or set the issuer's clock right"
            )
        return expires_at

    def _current_key(self) -> bytes | None:
        text = self._secret.current()
        if text is not self._text:
            self._text = text
            self._key_problem = key_problem(text) if text is not None else None
            self._key = text.encode() if text is not None and self._key_problem is None else None
        return self._key


def key_problem(key: str) -> str | None:
    """Why `key` cannot be a key for HS256, in one sentence; None where it can."""
    try:
        jwt.get_algorithm_by_name(ALGORITHM).prepare_key(key)
    except jwt.InvalidKeyError:
        # whoever signs with a public key's text as the shared key could be anybody: that text is public
        return (
            "JWT_SECRET holds a PEM, SSH or JSON Web Key, and HS256 needs a shared random one: put a random "
            "key of at least 32 bytes into the Secret that auth.jwtSecretRef names."
        )
    if len(key.encode()) < MIN_KEY_BYTES:
        return (
            f"JWT_SECRET holds a key of {len(key.encode())} bytes: put one of at least {MIN_KEY_BYTES} bytes "
            "into the Secret that auth.jwtSecretRef names (for example: openssl rand -hex 32)."
        )
    return None


def mint(key: str, *, user: str, lifetime_seconds: float, rights: dict[str, list[str]] | None) -> str:
    """A development token for `user`, as an application's own backend would make one.

    `rights` becomes the `tableforge` claim as it is. Raises TokenError where the key or the claims could
    never be accepted.
    """
    problem = key_problem(key)
    if problem is not None:
        raise TokenError("unavailable", problem)
    now = int(time.time())
    claims: dict[str, Any] = {"sub": user, "iat": now, "exp": now + math.ceil(lifetime_seconds)}
    if rights is not None:
        claims[CLAIM] = rights
    token = jwt.encode(claims, key.encode(), algorithm=ALGORITHM)
    TokenVerifier(Secret(value=key)).verify(token)
    return token


def _refused(reason: str) -> TokenError:
    return TokenError("unauthorized", f"{reason[:1].upper()}{reason[1:]}.")


def _signed_claims(token: str, key: bytes) -> dict[str, Any]:
    try:
        claims = jwt.decode(
            token,
            key,
            algorithms=[ALGORITHM],
            options={
                # judged here instead: with our own clock, and messages that say what would be right
                "verify_exp": False,
                "verify_nbf": False,
                "verify_iat": False,
                "verify_aud": False,
                "verify_iss": False,
                "verify_sub": False,
                "verify_jti": False,
            },
        )
    except jwt.InvalidSignatureError:
        raise _refused(
            "the token's signature does not match: sign it with the key this cluster uses"
        ) from None
    except jwt.InvalidAlgorithmError:
        raise _refused(f"the token's algorithm is not accepted: sign it with {ALGORITHM}") from None
    except (jwt.InvalidTokenError, ValueError, RecursionError):
        # RecursionError: a claim nested thousands deep
        raise _refused("this is not a JSON Web Token") from None
    return dict(claims)


def _time_of(claims: dict[str, Any], name: str) -> float | None:
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e12:
        raise _refused(f"`{name}` must be a time in Unix seconds")
    return float(value)


def _user_of(claims: dict[str, Any]) -> str:
    user = claims.get("sub")
    if user is None:
        user = claims.get("userId")
        if isinstance(user, int) and not isinstance(user, bool) and abs(user) < 2**63:
            user = str(user)
    if user is None:
        raise _refused("the token names no user: put the user's id into `sub`")
    if not isinstance(user, str) or not 1 <= len(user) <= MAX_USER_CHARACTERS:
        raise _refused(f"`sub` must be a string of 1 to {MAX_USER_CHARACTERS} characters")
    # control characters and lone surrogates: the id travels in JSON, in logs and (encoded) in keys
    if not all(character.isprintable() for character in user):
        raise _refused("`sub` must consist of printable characters")
    return user
