"""`spec.auth`."""

from typing import Annotated, ClassVar, Final

from msgspec import Meta

from tableforge_dataplane.contract import settings
from tableforge_operator.api.fields import Group, Rule, field, optional_setting, setting, written_setting
from tableforge_operator.api.quantities import Duration
from tableforge_operator.api.spec.common import CONFIG_MAP_KEY, DNS_NAME, NAME, PATTERN, SECRET_KEY

_SECRET_NAME: Final = field("Name of the Secret, in the namespace of the WebSocketCluster.", DNS_NAME, **NAME)
_PRINTABLE: Final = Rule("self.matches('^[!-~]*$')", "must be printable ASCII characters without blanks")


class JwtSecretRef(Group, frozen=True):
    """The Secret with the key that tokens are signed with."""

    name: Annotated[str, _SECRET_NAME]
    key: Annotated[
        str,
        field(
            "Key in the Secret whose value is the tokens' key, at least as long as the hash: 32 bytes for "
            "HS256.",
            SECRET_KEY,
            **NAME,
        ),
    ] = "secret"


class ApiKeySecretRef(Group, frozen=True):
    """The Secret with the bearer key of the server API."""

    name: Annotated[str, _SECRET_NAME]
    key: Annotated[str, field("Key in the Secret whose value is the bearer key.", SECRET_KEY, **NAME)] = "key"


class SecretKeyRef(Group, frozen=True):
    """A key of a Secret."""

    name: Annotated[str, _SECRET_NAME]
    key: Annotated[str, field("Key in the Secret.", SECRET_KEY, **NAME)]


class ConfigMapKeyRef(Group, frozen=True):
    """A key of a ConfigMap."""

    name: Annotated[
        str, field("Name of the ConfigMap, in the namespace of the WebSocketCluster.", DNS_NAME, **NAME)
    ]
    key: Annotated[str, field("Key in the ConfigMap.", CONFIG_MAP_KEY, **NAME)]


class PublicKeys(Group, frozen=True):
    """Public keys that tokens are checked with: PEM blocks one after another, or a JWK Set."""

    secret_ref: Annotated[SecretKeyRef | None, field("The key of a Secret that holds them.")] = None
    config_map_ref: Annotated[ConfigMapKeyRef | None, field("The key of a ConfigMap that holds them.")] = None

    rules: ClassVar = (
        Rule(
            "has(self.secretRef) != has(self.configMapRef)",
            "auth.publicKeys must name one place: either secretRef or configMapRef",
        ),
    )


class Jwks(Group, frozen=True):
    """An identity provider's public keys (a JWK Set), fetched by the instances and never by the operator."""

    url: Annotated[
        str,
        written_setting(
            "auth.jwks_url",
            "Where they are published. The instances fetch them again as they age, and when a token names "
            "a key that isn't among them; while the address is out of reach, those known stay in use.",
            Rule(
                "self.matches('^https://[A-Za-z0-9._:\\\\[\\\\]-]{1,253}([/?][!-~]*)?$') && isURL(self) "
                "&& (url(self).getPort() == '' || int(url(self).getPort()) <= 65535)",
                "must be an address that starts with https://, since whoever can change what travels over "
                "plain http could let anybody in",
            ),
            min_length=1,
            max_length=1024,
        ),
    ]
    ca_secret_ref: Annotated[
        SecretKeyRef | None,
        field("The certificates (PEM) that the address is trusted by. Default: those of the image's system."),
    ] = None
    ca_config_map_ref: Annotated[ConfigMapKeyRef | None, field("The same, from a ConfigMap.")] = None

    rules: ClassVar = (
        Rule(
            "!(has(self.caSecretRef) && has(self.caConfigMapRef))",
            "auth.jwks.caSecretRef and auth.jwks.caConfigMapRef exclude each other: remove one of them",
            reason="FieldValueForbidden",
        ),
    )


_Patterns = Annotated[
    list[Annotated[str, PATTERN]], Meta(max_length=64, extra_json_schema={"x-kubernetes-list-type": "set"})
]


class DefaultRights(Group, frozen=True):
    """What a token without a `tableforge` claim may do, and who needs no token. What is left out, nobody "
    "may."""

    join: Annotated[_Patterns | None, field("Rooms that may be joined.")] = None
    publish: Annotated[_Patterns | None, field("Rooms that may be published to.")] = None
    presence: Annotated[_Patterns | None, field("Rooms whose members may be seen.")] = None
    direct: Annotated[_Patterns | None, field("Users whom direct messages may be sent to.")] = None


class Auth(Group, frozen=True):
    """Who may connect."""

    required: Annotated[
        bool,
        setting(
            "auth.required",
            "Whether a client must present a valid token. True unless said otherwise; "
            "`false` lets everybody in.",
        ),
    ] = True
    jwt_secret_ref: Annotated[
        JwtSecretRef | None,
        field(
            "The Secret with the key that tokens are signed with. "
            "It may come later: until then nobody is let in."
        ),
    ] = None
    previous_jwt_secret_ref: Annotated[
        JwtSecretRef | None,
        field("The Secret with the key before that one, accepted too while its tokens run out."),
    ] = None
    secret_algorithm: (
        Annotated[settings.SecretAlgorithm, optional_setting("auth.secret_algorithm")] | None
    ) = None
    public_keys: Annotated[
        PublicKeys | None,
        field(
            "Public keys that tokens are checked with. An elliptic curve's key means ES256, ES384 or ES512 "
            "by its curve, an Ed25519 or Ed448 key EdDSA; for RSA keys see `rsaAlgorithm`."
        ),
    ] = None
    rsa_algorithm: Annotated[settings.RsaAlgorithm, optional_setting("auth.rsa_algorithm")] | None = None
    jwks: Annotated[
        Jwks | None,
        field(
            "An identity provider's public keys (a JWK Set), fetched by the instances and never by the "
            "operator."
        ),
    ] = None
    issuer: (
        Annotated[
            str,
            written_setting(
                "auth.issuer",
                "What `iss` must be in a token. Unset: it may be anything or missing.",
                _PRINTABLE,
                max_length=512,
            ),
        ]
        | None
    ) = None
    audience: (
        Annotated[
            str,
            written_setting(
                "auth.audience",
                "What must be in a token's `aud`. Unset: it may be anything or missing; with `jwks`, tokens "
                "that the identity provider made for other applications let people in here too.",
                _PRINTABLE,
                max_length=512,
            ),
        ]
        | None
    ) = None
    leeway: Annotated[Duration, optional_setting("auth.leeway_seconds")] | None = None
    default_rights: (
        Annotated[
            DefaultRights,
            written_setting(
                "auth.default_rights",
                "What a token without a `tableforge` claim may do, and who needs no token. Default: join, "
                "publish and see who is there in all rooms, no direct messages.",
            ),
        ]
        | None
    ) = None
    query_token: Annotated[bool, optional_setting("auth.query_token")] | None = None
    api_key_secret_ref: Annotated[
        ApiKeySecretRef | None,
        field(
            "The Secret with the bearer key of the server API, `/stats` and `/rooms` on the internal port. "
            "Unset: they are off."
        ),
    ] = None

    rules: ClassVar = (
        Rule(
            "!has(self.previousJwtSecretRef) || has(self.jwtSecretRef)",
            "auth.previousJwtSecretRef must come with auth.jwtSecretRef, the key that took its place",
            field_path=".previousJwtSecretRef",
        ),
    )
