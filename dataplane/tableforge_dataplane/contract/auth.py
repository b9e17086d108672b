"""What a rights claim may say, and which settings of tokens contradict one another."""

import ipaddress
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from tableforge_dataplane.contract.patterns import parse_pattern
from tableforge_dataplane.contract.settings import AuthSettings

CLAIM: Final = "tableforge"

RIGHTS: Final = ("join", "publish", "presence", "direct")

MAX_PATTERNS: Final = 256
"""Patterns one right may name: each join and publish looks at them all."""

MAX_PATTERN_CHARACTERS: Final = 256

MIN_KEY_BYTES: Final = {"HS256": 32, "HS384": 48, "HS512": 64}
"""RFC 7518, 3.2: a key as long as the hash's output, at least."""


class RightsError(ValueError):
    """A malformed claim; the message names the member and what would be right."""


def check_rights(claim: Any) -> dict[str, list[str]]:
    """The claim, in which what it leaves out is an empty list. Raises RightsError where it is malformed."""
    if not isinstance(claim, dict):
        raise RightsError(f"`{CLAIM}` must be an object of lists of patterns")
    # a misspelt right would otherwise silently give nothing, or be believed to
    for name in claim:
        if name not in RIGHTS:
            raise RightsError(f"`{CLAIM}.{str(name)[:50]}` is not a right: there are {', '.join(RIGHTS)}")
    return {name: _check_patterns(name, claim.get(name, [])) for name in RIGHTS}


def _check_patterns(name: str, value: Any) -> list[str]:
    where = f"`{CLAIM}.{name}`"
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise RightsError(f"{where} must be a list of strings")
    if len(value) > MAX_PATTERNS:
        raise RightsError(f"{where} has {len(value)} patterns, {MAX_PATTERNS} are allowed")
    for entry in value:
        if not 1 <= len(entry) <= MAX_PATTERN_CHARACTERS:
            raise RightsError(
                f"{where} has a pattern that isn't 1 to {MAX_PATTERN_CHARACTERS} characters long"
            )
        try:
            parse_pattern(entry)
        except ValueError as error:
            raise RightsError(f"{where}: {error}") from None
    return value


def parse_rights(text: str) -> dict[str, list[str]]:
    """`TABLEFORGE_AUTH_DEFAULT_RIGHTS` as a claim. Raises RightsError."""
    try:
        claim = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise RightsError(f"it must be JSON ({error})") from None
    return check_rights(claim)


def is_loopback(host: str) -> bool:
    """Whether what is sent to `host` stays on this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def auth_problems(auth: AuthSettings) -> list[str]:
    """A sentence for everything in the settings of tokens that cannot work."""
    problems: list[str] = []
    if auth.required and not (
        auth.jwt_secret.configured or auth.public_key.configured or auth.jwks_url != ""
    ):
        problems.append(
            "AUTH_REQUIRED=true: must come with JWT_SECRET_FILE (or JWT_SECRET), "
            "TABLEFORGE_AUTH_PUBLIC_KEY_FILE or TABLEFORGE_AUTH_JWKS_URL, keys to check tokens with."
        )
    if auth.previous_jwt_secret.configured and not auth.jwt_secret.configured:
        problems.append(
            "TABLEFORGE_AUTH_PREVIOUS_JWT_SECRET: must come with JWT_SECRET_FILE (or JWT_SECRET), the one "
            "that took its place."
        )
    least = MIN_KEY_BYTES[auth.secret_algorithm]
    for variable, secret in (
        ("JWT_SECRET", auth.jwt_secret),
        ("TABLEFORGE_AUTH_PREVIOUS_JWT_SECRET", auth.previous_jwt_secret),
    ):
        key = secret.value
        if key is not None and "-----BEGIN" in key:
            problems.append(
                f"{variable}: must be a random key that signer and instances share, not a PEM key, which "
                "belongs into TABLEFORGE_AUTH_PUBLIC_KEY_FILE."
            )
        elif key is not None and len(key.encode("utf-8", "surrogateescape")) < least:
            problems.append(
                f"{variable}: must be at least {least} bytes long, the size of the signature it makes with "
                f"TABLEFORGE_AUTH_SECRET_ALGORITHM={auth.secret_algorithm}."
            )
    problems.extend(_jwks_problems(auth))
    try:
        parse_rights(auth.default_rights)
    except RightsError as error:
        problems.append(f"TABLEFORGE_AUTH_DEFAULT_RIGHTS: {error}.")
    return problems


def _jwks_problems(auth: AuthSettings) -> list[str]:
    if not auth.jwks_url:
        if auth.jwks_ca_file or auth.jwks_plain_http:
            return ["TABLEFORGE_AUTH_JWKS_URL: must be set where TABLEFORGE_AUTH_JWKS_… settings are."]
        return []
    try:
        parts = urlsplit(auth.jwks_url)
        host, _port = parts.hostname or "", parts.port
    except ValueError as error:
        return [f"TABLEFORGE_AUTH_JWKS_URL={auth.jwks_url}: is no address ({error})."]
    if not host:
        return [f"TABLEFORGE_AUTH_JWKS_URL={auth.jwks_url}: names no host."]
    if parts.scheme == "http" and not auth.jwks_plain_http and not is_loopback(host):
        allowed = "TABLEFORGE_AUTH_JWKS_PLAIN_HTTP=true allows http all the same."
        return [
            f"TABLEFORGE_AUTH_JWKS_URL={auth.jwks_url}: must be https, or anybody could be let in; {allowed}"
        ]
    return []


def auth_warnings(auth: AuthSettings) -> list[str]:
    """A sentence for what works and may not be what was meant."""
    if not auth.jwks_url or auth.audience:
        return []
    danger = "tokens that the same identity provider made for other applications let people in here too."
    return [f"TABLEFORGE_AUTH_JWKS_URL without TABLEFORGE_AUTH_AUDIENCE: {danger}"]
