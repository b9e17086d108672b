"""What instances say of their Redis, in the words of the spec: they know variables and files, users know "
"fields."""

import re
from typing import Final

import msgspec

from tableforge_dataplane.contract import settings
from tableforge_dataplane.contract.fleet import RedisState
from tableforge_dataplane.contract.settings import Durability
from tableforge_operator.api import WebSocketCluster
from tableforge_operator.api.references import Reference

_EXTERNAL: Final = "spec.redis.external"
_FIELDS: Final = {
    "redis.host": f"{_EXTERNAL}.host",
    "redis.port": f"{_EXTERNAL}.port",
    "redis.username": f"{_EXTERNAL}.username",
    "redis.password": f"{_EXTERNAL}.passwordSecretRef",
    "redis.mode": f"{_EXTERNAL}.mode",
    "redis.sentinel_master_name": f"{_EXTERNAL}.sentinel.masterName",
    "redis.sentinel_username": f"{_EXTERNAL}.sentinel.username",
    "redis.sentinel_password": f"{_EXTERNAL}.sentinel.passwordSecretRef",
    "redis.tls": f"{_EXTERNAL}.tls",
    "redis.tls_ca_file": f"{_EXTERNAL}.tls.caSecretRef (or caConfigMapRef)",
    "redis.tls_cert_file": f"{_EXTERNAL}.tls.clientCertificateSecretRef",
    "redis.tls_key_file": f"{_EXTERNAL}.tls.clientCertificateSecretRef",
    "redis.tls_server_name": f"{_EXTERNAL}.tls.serverName",
    "redis.key_prefix": "spec.redis.keyPrefix",
    "redis.durability": "spec.redis.durability",
}
_SERVERS: Final = {
    "Standalone": f"{_EXTERNAL}.host and port",
    "Sentinel": f"{_EXTERNAL}.sentinel",
    "Cluster": f"{_EXTERNAL}.cluster.addresses",
}
_REFUSALS: Final = "MISCONF|NOREPLICAS"
"""Why a primary takes no writes: another address would not help."""
_MEANING: Final[dict[Durability, str]] = {
    "Memory": "Redis has it in memory",
    "Disk": "it is on disk",
    "Replica": "a replica has it, too",
    "Disk+Replica": "it is on disk, and a replica has it, too",
}
_SPECS: Final = settings.specs()


def meaning(durability: Durability) -> str:
    """What is true of a message once it is acknowledged."""
    return _MEANING[durability]


def told(cluster: WebSocketCluster, redis: RedisState) -> RedisState:
    """The state with a message that names the user's objects, the fields, and what to do about them."""
    said = in_fields(cluster, redis.message).rstrip(" .")
    advice = "" if redis.reason == "Connected" else _advice(cluster, redis)
    return msgspec.structs.replace(redis, message=f"{said}. {advice}".strip(" "))


def in_fields(cluster: WebSocketCluster, sentence: str) -> str:
    """An instance's sentence with the user's objects for the files, and the fields for the variables."""
    for ref in cluster.references:
        if ref.setting.startswith("redis."):
            sentence = sentence.replace(f"{ref.variable}={ref.file}", _named(ref))
            sentence = sentence.replace(ref.file, _named(ref))
    if cluster.managed_redis is None:
        addresses = f"{_SERVERS[_mode(cluster)].removesuffix('.addresses')}.addresses"
        fields = {**_FIELDS, "redis.addresses": addresses}
        for setting, field in fields.items():
            sentence = re.sub(rf"\b{_SPECS[setting][0].env}\b", field, sentence)
    return sentence


def _advice(cluster: WebSocketCluster, redis: RedisState) -> str:
    """What to change where, besides what the instance says already; may be empty."""
    external = cluster.spec.redis.external
    if external is None:
        return _ADVICE_MANAGED.get(redis.reason, "").format(name=cluster.name)
    match redis.reason:
        case "Unreachable":
            return f"Check {_SERVERS[external.mode]}, and {_EXTERNAL}.tls."
        case "AuthenticationFailed":
            ref = next((ref for ref in cluster.references if ref.setting == "redis.password"), None)
            if ref is None:
                return f"It is given none: name its Secret in {_EXTERNAL}.passwordSecretRef."
            user = "the default user" if external.username is None else f"user {external.username}"
            return f"It is given what {_named(ref)} holds, as {user} ({_EXTERNAL}.username)."
        case "ReadOnly" if external.mode == "Standalone" and not re.search(_REFUSALS, redis.message):
            return (
                f"Name the primary in {_EXTERNAL}.host, or its sentinels with {_EXTERNAL}.mode: Sentinel, "
                "which finds it."
            )
        case "DurabilityNotMet":
            return f"Or ask for less in spec.redis.durability, which is {cluster.durability}."
        case "PrefixClaimed":
            return (
                "spec.redis.keyPrefix cannot change later: delete this WebSocketCluster and create it again "
                "with another one."
            )
    return ""


_ADVICE_MANAGED: Final = {
    "Unreachable": "It is the managed one: see pod {name}-redis-0.",
    "OutOfMemory": "It is the managed one: raise spec.redis.managed.maxMemory.",
    "ReadOnly": "It is the managed one: give it room with spec.redis.managed.storage.size.",
    "VersionTooOld": "It is the managed one: choose a newer spec.redis.managed.image.",
    "PrefixClaimed": "It is the managed one, which no other cluster should use.",
}


def _mode(cluster: WebSocketCluster) -> settings.RedisMode:
    external = cluster.spec.redis.external
    return "Standalone" if external is None else external.mode


def _named(ref: Reference) -> str:
    return f"{ref.kind} {ref.name} (key {ref.key})"
