"""All the keys that are trusted at the moment, from wherever the settings say."""

from collections.abc import Callable
from typing import Final

from tableforge_dataplane.contract.settings import AuthSettings
from tableforge_dataplane.security.jwks import JwksKeys
from tableforge_dataplane.security.keys import WatchedSecret
from tableforge_dataplane.security.verification_keys import (
    KeyProblem,
    VerificationKey,
    public_keys,
    shared_key,
)

_SHARED_PURPOSE: Final = (
    "create the Secret that auth.jwtSecretRef names, without Kubernetes the file itself, with a random key "
    "of at least 32 bytes (for example: openssl rand -hex 32)."
)
_PREVIOUS_PURPOSE: Final = "put the key there that was in use before, or unset it."
_PUBLIC_PURPOSE: Final = "put the public keys there that tokens are checked with (PEM, or a JWK Set)."

Parse = Callable[[str], tuple[VerificationKey, ...]]


class _WatchedKeys:
    """Keys in a secret's text, which may come late and may change."""

    def __init__(self, secret: WatchedSecret, *, variable: str, purpose: str, parse: Parse) -> None:
        self._secret = secret
        self._variable = variable
        self._purpose = purpose
        self._parse = parse
        self._text: str | None = None
        self._keys: tuple[VerificationKey, ...] = ()
        self._problem: str | None = None

    def current(self) -> tuple[VerificationKey, ...]:
        text = self._secret.current()
        if text is not self._text:
            self._text, self._keys, self._problem = text, (), None
            if text is not None:
                try:
                    self._keys = self._parse(text)
                except KeyProblem as problem:
                    self._problem = f"{self._variable} {problem}: {self._purpose}"
        return self._keys

    @property
    def problem(self) -> str | None:
        self.current()
        return self._secret.problem or self._problem


class TrustedKeys:
    """The shared keys, the public ones and those that are fetched."""

    def __init__(
        self, settings: AuthSettings, *, jwks: JwksKeys | None, monotonic: Callable[[], float]
    ) -> None:
        def shared(text: str) -> tuple[VerificationKey, ...]:
            return (shared_key(text, settings.secret_algorithm),)

        def public(text: str) -> tuple[VerificationKey, ...]:
            return public_keys(text, rsa_algorithm=settings.rsa_algorithm)

        self._sources: list[_WatchedKeys | JwksKeys] = []
        for secret, variable, purpose, parse in (
            (settings.jwt_secret, "JWT_SECRET", _SHARED_PURPOSE, shared),
            (settings.previous_jwt_secret, "TABLEFORGE_AUTH_PREVIOUS_JWT_SECRET", _PREVIOUS_PURPOSE, shared),
            (settings.public_key, "TABLEFORGE_AUTH_PUBLIC_KEY", _PUBLIC_PURPOSE, public),
        ):
            if secret.configured:
                watched = WatchedSecret(secret, variable=variable, purpose=purpose, clock=monotonic)
                self._sources.append(_WatchedKeys(watched, variable=variable, purpose=purpose, parse=parse))
        if jwks is not None:
            self._sources.append(jwks)

    def current(self) -> tuple[VerificationKey, ...]:
        """Every usable key (about 1 µs a source)."""
        if len(self._sources) == 1:
            return self._sources[0].current()
        return tuple(key for source in self._sources for key in source.current())

    def problems(self) -> list[str]:
        """A sentence for each source that has no usable key, or cannot be asked for new ones."""
        if not self._sources:
            return [f"JWT_SECRET is not set: {_SHARED_PURPOSE}"]
        return [source.problem for source in self._sources if source.problem is not None]
