"""From a token to an identity: JSON Web Tokens, signed by a key that this cluster trusts."""

import base64
import dataclasses
import json
import math
import time
from collections.abc import Callable
from typing import Any, Final, Literal

import jwt

from tableforge_dataplane.contract.auth import CLAIM, RightsError
from tableforge_dataplane.contract.settings import AuthSettings
from tableforge_dataplane.security.access import Rights, default_rights, rights_of
from tableforge_dataplane.security.jwks import JwksKeys, Log
from tableforge_dataplane.security.trust import TrustedKeys
from tableforge_dataplane.security.verification_keys import (
    MAX_UNNAMED,
    KeyProblem,
    VerificationKey,
    shared_key,
)

MAX_TOKEN_CHARACTERS: Final = 8192
"""What a header line of most proxies still carries; longer ones are refused before anything is decoded."""

MAX_USER_CHARACTERS: Final = 128

_SECOND_OPINIONS: Final = ("jku", "x5u", "jwk", "x5c", "crit")
"""Header members by which a token would say what judges it. `crit` names some that must be heeded: we heed
none."""


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
    """Judges tokens by the keys as they are now: a rotated key counts within a second.

    Where keys come from an address, `start()` begins to fetch them, and `stop()` ends that.
    """

    def __init__(
        self,
        settings: AuthSettings,
        *,
        log: Log,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises RightsError where the default rights are malformed, which `environment.read` refuses."""
        self._settings = settings
        self._clock = clock
        self._default_rights = default_rights(settings.default_rights)
        self._jwks = JwksKeys(settings, log=log, monotonic=monotonic) if settings.jwks_url else None
        self._trusted = TrustedKeys(settings, jwks=self._jwks, monotonic=monotonic)

    def renew(self, settings: AuthSettings) -> None:
        """Other rights for a token without rights of its own. What keys there are is of the start."""
        self._default_rights = default_rights(settings.default_rights)

    def start(self) -> None:
        """Begin to fetch what has to be fetched. To be called inside a running event loop."""
        if self._jwks is not None:
            self._jwks.start()

    async def stop(self) -> None:
        """End what `start()` began."""
        if self._jwks is not None:
            await self._jwks.stop()

    @property
    def default_rights(self) -> Rights:
        """Of a token without rights of its own, and of who needs no token."""
        return self._default_rights

    @property
    def available(self) -> bool:
        """Whether there is a usable key."""
        return bool(self._trusted.current())

    @property
    def problem(self) -> str | None:
        """What to create or mend, a sentence for each source of keys; None where there is any usable key."""
        return None if self.available else " ".join(self._trusted.problems())

    def problems(self) -> list[str]:
        """A sentence for each source of keys that has none, or none that are new."""
        return self._trusted.problems()

    def verify(self, token: str) -> Identity:
        """Who presents this token. Raises TokenError.

        Costs 50 µs with HS256, twice as much with RS256, ES256 and EdDSA, half a millisecond and more with
        ES384 and ES512.
        """
        if len(token) > MAX_TOKEN_CHARACTERS:
            raise _refused(f"the token is longer than {MAX_TOKEN_CHARACTERS} characters")
        keys = self._trusted.current()
        if not keys:
            raise TokenError(
                "unavailable", "This instance has no key to check tokens with yet: try again later."
            )
        claims = self._signed_claims(token, keys)
        expires_at = self._check_times(claims)
        self._check_origin(claims)
        user = _user_of(claims)
        if CLAIM not in claims:
            return Identity(user=user, rights=self._default_rights, expires_at=expires_at)
        try:
            rights = rights_of(claims[CLAIM])
        except RightsError as error:
            raise _refused(str(error)) from None
        return Identity(user=user, rights=rights, expires_at=expires_at)

    def _signed_claims(self, token: str, keys: tuple[VerificationKey, ...]) -> dict[str, Any]:
        header = _header(token)
        algorithm, kid = header.get("alg"), header.get("kid")
        candidates = [key for key in keys if key.algorithm == algorithm]
        if kid is not None:
            # a key without a name may be the one; one with another name isn't
            candidates = [key for key in candidates if key.kid is None or key.kid == kid]
        if len(candidates) > MAX_UNNAMED:
            raise _refused("the token doesn't name its key, and there are many: put its name into `kid`")
        for key in candidates:
            claims = _claims(token, key)
            if claims is not None:
                return claims
        if (
            self._jwks is not None
            and kid is not None
            and not any(key.kid == kid for key in keys)
            and self._jwks.may_bring_more()
        ):
            raise TokenError("unavailable", "The token's key is not known here yet: try again in a moment.")
        accepted = sorted({key.algorithm for key in keys})
        if algorithm not in accepted:
            raise _refused(f"the token's algorithm is not accepted: sign it with {' or '.join(accepted)}")
        raise _refused("the token's signature does not match: sign it with the key this cluster uses")

    def _check_times(self, claims: dict[str, Any]) -> float:
        now = self._clock()
        expires_at = _time_of(claims, "exp")
        if expires_at is None:
            raise _refused("the token has no `exp`: give it an expiry time in Unix seconds")
        if expires_at <= now:
            raise _refused("the token has expired: get a new one")
        not_before = _time_of(claims, "nbf")
        if not_before is not None and not_before > now + self._settings.leeway_seconds:
            raise _refused(
                "the token is not valid yet (`nbf`): use it later, or set the issuer's clock right"
            )
        return expires_at

    def _check_origin(self, claims: dict[str, Any]) -> None:
        issuer, audience = self._settings.issuer, self._settings.audience
        if issuer and claims.get("iss") != issuer:
            raise _refused(f"the token is another issuer's: its `iss` must be {issuer}")
        if audience:
            named = claims.get("aud")
            if audience not in (named if isinstance(named, list) else [named]):
                raise _refused(f"the token is for another audience: its `aud` must name {audience}")


def mint(
    key: str,
    *,
    user: str,
    lifetime_seconds: float,
    rights: dict[str, list[str]] | None,
    settings: AuthSettings | None = None,
) -> str:
    """A development token for `user`, as an application's own backend would make one.

    `rights` becomes the `tableforge` claim as it is; algorithm, issuer and audience are the settings'. Raises
    TokenError where the key or the claims could never be accepted.
    """
    settings = AuthSettings() if settings is None else settings
    try:
        found = shared_key(key, settings.secret_algorithm)
    except KeyProblem as problem:
        raise TokenError("unavailable", f"JWT_SECRET {problem}.") from None
    now = int(time.time())
    claims: dict[str, Any] = {"sub": user, "iat": now, "exp": now + math.ceil(lifetime_seconds)}
    if settings.issuer:
        claims["iss"] = settings.issuer
    if settings.audience:
        claims["aud"] = settings.audience
    if rights is not None:
        claims[CLAIM] = rights
        try:
            rights_of(rights)
        except RightsError as error:
            raise _refused(str(error)) from None
    _user_of(claims)
    token = jwt.encode(claims, found.material, algorithm=found.algorithm)
    if len(token) > MAX_TOKEN_CHARACTERS:
        raise _refused(
            f"the token would be longer than {MAX_TOKEN_CHARACTERS} characters: give it less rights"
        )
    return token


def _refused(reason: str) -> TokenError:
    return TokenError("unauthorized", f"{reason[:1].upper()}{reason[1:]}.")


def _header(token: str) -> dict[str, Any]:
    """Only to choose keys by: PyJWT reads it again, more strictly, when it checks the signature."""
    segment = token.partition(".")[0]
    try:
        header = json.loads(base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4)))
    except (ValueError, RecursionError):
        raise _refused("this is not a JSON Web Token") from None
    if not isinstance(header, dict) or not isinstance(header.get("kid", ""), str):
        raise _refused("this is not a JSON Web Token")
    for name in _SECOND_OPINIONS:
        if name in header:
            raise _refused(f"the token has `{name}` in its header: only this cluster's own keys count")
    return header


def _claims(token: str, key: VerificationKey) -> dict[str, Any] | None:
    """What the token says, if `key` signed it; else None."""
    try:
        claims = jwt.decode(
            token,
            key.material,
            algorithms=[key.algorithm],
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
        return None
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
