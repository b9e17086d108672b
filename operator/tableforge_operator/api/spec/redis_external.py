"""`spec.redis.external`: a Redis that exists already."""

from typing import Annotated, Any, ClassVar, Final, Literal

from tableforge_operator.api.fields import (
    Group,
    Rule,
    default_of,
    field,
    optional_setting,
    setting,
    written_setting,
)
from tableforge_operator.api.spec.certificates import CaConfigMapRef, CaSecretRef, CertificateSecretRef
from tableforge_operator.api.spec.common import DNS_NAME, NAME, SECRET_KEY

_DEFAULT_PORT: Final = default_of("redis.port")
_USER: Final = Rule("self.matches('^[!-~]+$')", "must be a name without spaces")
_PORT: Final = "([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
_ADDRESS: Final = Rule(
    f"self.matches('^([A-Za-z0-9._-]{{1,253}}|[[][0-9A-Fa-f:.]{{2,60}}[]])(:{_PORT})?$')",
    "must be host or host:port, an IPv6 address in brackets, without a scheme",
)
_USER_BOUNDS: Final[dict[str, Any]] = {"min_length": 1, "max_length": 200}
Address = Annotated[str, field("A server's address.", _ADDRESS, min_length=1, max_length=262)]


class PasswordSecretRef(Group, frozen=True):
    """The Secret with a password. When it changes, the instances use the new one at their next connect."""

    name: Annotated[
        str, field("Name of the Secret, in the namespace of the WebSocketCluster.", DNS_NAME, **NAME)
    ]
    key: Annotated[
        str,
        field(
            "Key in the Secret whose value is the password.",
            SECRET_KEY,
            **NAME,
        ),
    ] = "password"


class Sentinel(Group, frozen=True):
    """The sentinels that name the primary."""

    master_name: Annotated[
        str,
        written_setting(
            "redis.sentinel_master_name",
            "What the sentinels call the primary.",
            Rule("self.matches('^[A-Za-z0-9._-]+$')", "must be letters, digits or any of . _ -"),
            min_length=1,
            max_length=200,
        ),
    ]
    addresses: Annotated[
        list[Address],
        written_setting(
            "redis.addresses",
            "The sentinels, as `host` or `host:port`; 26379 where there is no port. Name all of them.",
            min_length=1,
            max_length=16,
        ),
    ]
    username: (
        Annotated[
            str,
            written_setting(
                "redis.sentinel_username",
                "ACL user of the sentinels. Default: the default user.",
                _USER,
                **_USER_BOUNDS,
            ),
        ]
        | None
    ) = None
    password_secret_ref: Annotated[
        PasswordSecretRef | None,
        field("The Secret with the sentinels' password; none where they ask for none."),
    ] = None

    rules: ClassVar = (
        Rule(
            "!has(self.username) || has(self.passwordSecretRef)",
            "username needs passwordSecretRef: name the Secret with this user's password",
            field_path=".passwordSecretRef",
            reason="FieldValueRequired",
        ),
    )


class Cluster(Group, frozen=True):
    """A Redis Cluster."""

    addresses: Annotated[
        list[Address],
        written_setting(
            "redis.addresses",
            "Some nodes of the cluster, as `host` or `host:port`; 6379 where there is no port. The others "
            "are found by them.",
            min_length=1,
            max_length=16,
        ),
    ]


class Tls(Group, frozen=True):
    """Connections to Redis and its sentinels are encrypted where this is given, be it empty. The server's
    certificate is always checked. Changed certificates count at the next connect.
    """

    ca_secret_ref: Annotated[
        CaSecretRef | None,
        field(
            "The Secret with the authorities that Redis's certificate may come from. Default: the system's."
        ),
    ] = None
    ca_config_map_ref: Annotated[CaConfigMapRef | None, field("The same in a ConfigMap.")] = None
    client_certificate_secret_ref: Annotated[
        CertificateSecretRef | None,
        field("The instances' own certificate and key, where Redis asks clients for one."),
    ] = None
    server_name: (
        Annotated[
            str,
            written_setting(
                "redis.tls_server_name",
                "The name that Redis's certificate must bear. Default: the host that is connected to.",
                Rule("self.matches('^[A-Za-z0-9._:-]+$')", "must be a host name or an address"),
                min_length=1,
                max_length=253,
            ),
        ]
        | None
    ) = None

    rules: ClassVar = (
        Rule(
            "!(has(self.caSecretRef) && has(self.caConfigMapRef))",
            "caSecretRef and caConfigMapRef exclude each other: remove one of them",
            reason="FieldValueForbidden",
        ),
    )


class ExternalRedis(Group, frozen=True):
    """A Redis or Valkey, 6.2 or newer, that exists already: a single server, one behind sentinels, or a Redis
    Cluster.
    """

    mode: Annotated[
        Literal["Standalone", "Sentinel", "Cluster"],
        setting(
            "redis.mode",
            "`Standalone`: the server at `host`. `Sentinel`: the primary that the sentinels name. `Cluster`: "
            "a Redis Cluster.",
        ),
    ] = "Standalone"
    host: (
        Annotated[
            str,
            written_setting(
                "redis.host",
                "Host name or address of the server, in mode `Standalone`.",
                Rule(
                    "self.matches('^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$|^[0-9A-Fa-f.]*(:[0-9A-Fa-f.]*){2,}$')",
                    "must be a host name or an address, without a scheme and without a port",
                ),
                min_length=1,
                max_length=253,
            ),
        ]
        | None
    ) = None
    port: Annotated[int, optional_setting("redis.port", "Port of the server at `host`.")] | None = None
    sentinel: Annotated[
        Sentinel | None, field("The sentinels that name the primary, in mode `Sentinel`.")
    ] = None
    cluster: Annotated[Cluster | None, field("The nodes of the cluster, in mode `Cluster`.")] = None
    database: Annotated[
        int,
        setting(
            "redis.database",
            "Database number; 0 in mode `Cluster`. Redis Pub/Sub ignores it: clusters on one Redis are kept "
            "apart by `keyPrefix`.",
        ),
    ] = default_of("redis.database")
    username: (
        Annotated[
            str,
            written_setting(
                "redis.username",
                "ACL user of Redis, with `passwordSecretRef`. Default: the default user.",
                _USER,
                **_USER_BOUNDS,
            ),
        ]
        | None
    ) = None
    password_secret_ref: Annotated[
        PasswordSecretRef | None,
        field("The Secret with the password; none where this Redis asks for none."),
    ] = None
    tls: Annotated[
        Tls | None, field("TLS to Redis and its sentinels: `{}` for certificates of a public authority.")
    ] = None

    rules: ClassVar = (
        Rule(
            "self.mode != 'Standalone' || has(self.host)",
            "mode Standalone (the default) needs host; for sentinels or a Redis Cluster set mode",
            field_path=".host",
            reason="FieldValueRequired",
        ),
        Rule(
            # The default port says nothing. Where it was filled in once, no apply that leaves it out takes it
            # away.
            "self.mode == 'Standalone' "
            f"|| (!has(self.host) && (!has(self.port) || self.port == {_DEFAULT_PORT}))",
            "host and port are for mode Standalone: remove them, and name the servers in sentinel.addresses "
            "or cluster.addresses",
            field_path=".host",
            reason="FieldValueForbidden",
        ),
        Rule(
            "self.mode != 'Sentinel' || has(self.sentinel)",
            "mode Sentinel needs sentinel, with masterName and addresses",
            field_path=".sentinel",
            reason="FieldValueRequired",
        ),
        Rule(
            "self.mode == 'Sentinel' || !has(self.sentinel)",
            "sentinel is for mode Sentinel: set mode, or remove sentinel",
            field_path=".sentinel",
            reason="FieldValueForbidden",
        ),
        Rule(
            "self.mode != 'Cluster' || has(self.cluster)",
            "mode Cluster needs cluster, with addresses",
            field_path=".cluster",
            reason="FieldValueRequired",
        ),
        Rule(
            "self.mode == 'Cluster' || !has(self.cluster)",
            "cluster is for mode Cluster: set mode, or remove cluster",
            field_path=".cluster",
            reason="FieldValueForbidden",
        ),
        Rule(
            "self.mode != 'Cluster' || self.database == 0",
            "database must be 0 in mode Cluster, which has no other: keyPrefix keeps clusters apart",
            field_path=".database",
        ),
        Rule(
            "!has(self.username) || has(self.passwordSecretRef)",
            "username needs passwordSecretRef: name the Secret with this user's password",
            field_path=".passwordSecretRef",
            reason="FieldValueRequired",
        ),
    )
