"""`Settings.redis`."""

import dataclasses
from typing import Final, Literal

from tableforge_dataplane.contract.settings.declaration import HOST, Unit, setting
from tableforge_dataplane.contract.settings.secret import Secret

_NODE: Final = r"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.%]{2,60}\])(?::[0-9]{1,5})?"
_PATH: Final = r"[^\x00-\x1f]{1,1000}"

Durability = Literal["Memory", "Disk", "Replica", "Disk+Replica"]
RedisMode = Literal["Standalone", "Sentinel", "Cluster"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RedisSettings:
    """Where Redis is and what an acknowledgement must mean there."""

    host: str = setting("localhost", "REDIS_HOST", "Host name or address of Redis.", pattern=HOST)
    port: int = setting(6379, "REDIS_PORT", "Port of Redis.", minimum=1, maximum=65535)
    password: Secret = setting(
        Secret,
        "REDIS_PASSWORD",
        "Password of Redis; REDIS_PASSWORD_FILE names a file that holds it, or a folder of files `1`, `2` "
        "and so on, of which the highest counts at the next connect.",
    )
    username: str = setting(
        "",
        "REDIS_USERNAME",
        "ACL user of Redis; empty: the default user. It needs REDIS_PASSWORD.",
        pattern=r"[^\s\x00]{1,200}",
    )
    mode: RedisMode = setting(
        "Standalone",
        "TABLEFORGE_REDIS_MODE",
        "`Standalone`: the server at REDIS_HOST. `Sentinel`: the primary that the sentinels at "
        "TABLEFORGE_REDIS_ADDRESSES name. `Cluster`: a Redis Cluster, found by the nodes named there.",
    )
    addresses: str = setting(
        "",
        "TABLEFORGE_REDIS_ADDRESSES",
        "Sentinels, or some nodes of the cluster, as `host:port,host:port`. Without a port: 26379 for "
        "sentinels, 6379 for nodes.",
        pattern=rf"{_NODE}(?:,{_NODE}){{0,99}}",
    )
    sentinel_master_name: str = setting(
        "",
        "TABLEFORGE_REDIS_SENTINEL_MASTER_NAME",
        "What the sentinels call the primary.",
        pattern=r"[A-Za-z0-9._-]{1,200}",
    )
    sentinel_username: str = setting(
        "",
        "TABLEFORGE_REDIS_SENTINEL_USERNAME",
        "ACL user of the sentinels; empty: the default user.",
        pattern=r"[^\s\x00]{1,200}",
    )
    sentinel_password: Secret = setting(
        Secret,
        "TABLEFORGE_REDIS_SENTINEL_PASSWORD",
        "Password of the sentinels, where they want one; TABLEFORGE_REDIS_SENTINEL_PASSWORD_FILE names a "
        "file that holds it.",
    )
    tls: bool = setting(
        False,
        "TABLEFORGE_REDIS_TLS",
        "Whether connections to Redis (and to its sentinels) are encrypted. The server's certificate is "
        "always checked.",
    )
    tls_ca_file: str = setting(
        "",
        "TABLEFORGE_REDIS_TLS_CA_FILE",
        "The authorities that Redis's certificate may come from, PEM; empty: the system's. TLS files are "
        "read anew at each connect.",
        pattern=_PATH,
    )
    tls_cert_file: str = setting(
        "",
        "TABLEFORGE_REDIS_TLS_CERT_FILE",
        "This instance's certificate, PEM, where Redis asks clients for one.",
        pattern=_PATH,
    )
    tls_key_file: str = setting(
        "", "TABLEFORGE_REDIS_TLS_KEY_FILE", "The private key of that certificate, PEM.", pattern=_PATH
    )
    tls_server_name: str = setting(
        "",
        "TABLEFORGE_REDIS_TLS_SERVER_NAME",
        "The name that Redis's certificate must bear; empty: the host that is connected to.",
        pattern=r"[A-Za-z0-9._:-]{1,253}",
    )
    max_retries_per_request: int = setting(
        3,
        "TABLEFORGE_REDIS_MAX_RETRIES_PER_REQUEST",
        "How often a request is sent again at once, after a redirection or a lost connection. Then reads "
        "fail, to be asked for again later, and publishes pause for "
        "`TABLEFORGE_REDIS_RETRY_DELAY_ON_FAILOVER`.",
        minimum=0,
        maximum=20,
    )
    retry_delay_on_failover_seconds: float = setting(
        0.1,
        "TABLEFORGE_REDIS_RETRY_DELAY_ON_FAILOVER",
        "How long to wait before the new primary, or the slot's new owner, is looked for and tried again; "
        "a server that stays away is tried less and less often, every two seconds in the end.",
        unit=Unit.MILLISECONDS,
        minimum=10,
        maximum=10_000,
    )
    lazy_connect: bool = setting(
        True,
        "TABLEFORGE_REDIS_LAZY_CONNECT",
        "`true`: the instance starts, not ready yet, whether Redis answers or not. `false`: it ends with a "
        "message where Redis cannot be used within `TABLEFORGE_REDIS_CONNECT_TIMEOUT`.",
    )
    claim: str = setting(
        "",
        "TABLEFORGE_REDIS_CLAIM",
        "A name for this cluster (its uid). All instances of a cluster have the same; while they live, "
        "instances with another one on the same key prefix do not become ready. Empty: not checked.",
        pattern=r"[A-Za-z0-9._:/-]{1,200}",
    )
    database: int = setting(
        0,
        "REDIS_DB",
        "Database number. Pub/Sub ignores it, so `TABLEFORGE_REDIS_KEY_PREFIX` is what keeps two "
        "clusters apart.",
        minimum=0,
        maximum=65535,
    )
    key_prefix: str = setting(
        "tableforge",
        "TABLEFORGE_REDIS_KEY_PREFIX",
        "What every key and channel of this cluster starts with, after `tf:`.",
        pattern=r"[A-Za-z0-9._:/-]{1,200}",
    )
    durability: Durability = setting(
        "Memory",
        "TABLEFORGE_REDIS_DURABILITY",
        "What an acknowledgement means: `Memory`, Redis has the message; `Disk`, Redis has synced it to disk "
        "(needs `appendonly yes`, and `appendfsync always` or Redis 8); `Replica`, a replica has it too "
        "(`min-replicas-to-write 1` is advised); `Disk+Replica`, both.",
    )
    connect_timeout_seconds: float = setting(
        5.0,
        "TABLEFORGE_REDIS_CONNECT_TIMEOUT",
        "How long a connection to Redis may take.",
        unit=Unit.MILLISECONDS,
        minimum=100,
        maximum=60_000,
    )
    memory_guard_percent: int = setting(
        90,
        "TABLEFORGE_REDIS_MEMORY_GUARD_PERCENT",
        "Publishes are refused once Redis uses this share of its "
        "`maxmemory`, before Redis itself has to refuse writes.",
        minimum=1,
        maximum=100,
    )
