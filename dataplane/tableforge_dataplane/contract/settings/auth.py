"""`Settings.auth`."""

import dataclasses
from typing import Literal

from tableforge_dataplane.contract.settings.declaration import Unit, setting
from tableforge_dataplane.contract.settings.secret import Secret

SecretAlgorithm = Literal["HS256", "HS384", "HS512"]
RsaAlgorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuthSettings:
    """Who gets in, and what a token without rights of its own may do."""

    required: bool = setting(False, "AUTH_REQUIRED", "Whether a client must present a valid token.")
    jwt_secret: Secret = setting(
        Secret,
        "JWT_SECRET",
        "Shared key that tokens are signed with, at least as long as the hash (32 bytes for HS256); "
        "JWT_SECRET_FILE names a file that holds it. There is no default: without a key nobody is let in.",
    )
    previous_jwt_secret: Secret = setting(
        Secret,
        "TABLEFORGE_AUTH_PREVIOUS_JWT_SECRET",
        "The shared key before that one, accepted too while its tokens run out.",
    )
    secret_algorithm: SecretAlgorithm = setting(
        "HS256", "TABLEFORGE_AUTH_SECRET_ALGORITHM", "What the shared keys sign with; nothing else counts."
    )
    public_key: Secret = setting(
        Secret,
        "TABLEFORGE_AUTH_PUBLIC_KEY",
        "Public keys that tokens are checked with: PEM blocks one after another, or a JWK Set. An elliptic "
        "curve's key means ES256, ES384 or ES512 by its curve, an Ed25519 or Ed448 key EdDSA.",
    )
    rsa_algorithm: RsaAlgorithm = setting(
        "RS256",
        "TABLEFORGE_AUTH_RSA_ALGORITHM",
        "What RSA keys sign with that don't say so themselves (a JWK does in `alg`); nothing else counts.",
    )
    jwks_url: str = setting(
        "",
        "TABLEFORGE_AUTH_JWKS_URL",
        "Where an identity provider publishes its public keys (a JWK Set). They are fetched again as they "
        "age, and when a token names a key that isn't among them; while the address is out of reach, those "
        "known stay in use. https, or http to this machine.",
        pattern=r"(https?://[A-Za-z0-9._:\[\]-]{1,253}([/?][!-~]{0,1000})?)?",
        examples=("https://id.example.com/.well-known/jwks.json",),
    )
    jwks_plain_http: bool = setting(
        False,
        "TABLEFORGE_AUTH_JWKS_PLAIN_HTTP",
        "Allow http to another machine in TABLEFORGE_AUTH_JWKS_URL: whoever can change what travels there "
        "can let anybody in.",
    )
    jwks_ca_file: str = setting(
        "",
        "TABLEFORGE_AUTH_JWKS_CA_FILE",
        "PEM file with the certificates that TABLEFORGE_AUTH_JWKS_URL is trusted by. Empty: the system's.",
        pattern=r"[^\x00-\x1f]{0,1000}",
    )
    issuer: str = setting(
        "",
        "TABLEFORGE_AUTH_ISSUER",
        "What `iss` must be in a token. Empty: it may be anything or missing.",
        pattern=r"[!-~]{0,512}",
    )
    audience: str = setting(
        "",
        "TABLEFORGE_AUTH_AUDIENCE",
        "What must be in a token's `aud`. Empty: it may be anything or missing.",
        pattern=r"[!-~]{0,512}",
    )
    leeway_seconds: float = setting(
        5.0,
        "TABLEFORGE_AUTH_LEEWAY",
        "How far the issuer's clock may be ahead: a token counts this long before its `nbf`. There is none "
        "for `exp`: the session ends at that very moment.",
        unit=Unit.MILLISECONDS,
        minimum=0,
        maximum=300_000,
    )
    default_rights: str = setting(
        '{"join":["**"],"publish":["**"],"presence":["**"],"direct":[]}',
        "TABLEFORGE_AUTH_DEFAULT_RIGHTS",
        "What a token without a `tableforge` claim may do, and who needs no token: JSON in the claim's form.",
        pattern=r"\{[^\x00-\x1f]{0,70000}\}",
        examples=("{}", '{"join":["lobby","table:*"],"publish":["table:*"]}', '{"direct":["**"]}'),
        live=True,
    )
    query_token: bool = setting(
        False,
        "AUTH_QUERY_TOKEN",
        "Whether the token may also come in the address, as `?token=…`, where proxies may log it.",
        live=True,
    )
    token_expiry_seconds: float = setting(
        86_400.0,
        "TABLEFORGE_AUTH_TOKEN_EXPIRY",
        "How long a token lasts that `tableforge-dataplane token` makes.",
        unit=Unit.MILLISECONDS,
        minimum=1000,
        maximum=31_536_000_000,
    )
