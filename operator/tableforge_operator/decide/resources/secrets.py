"""The Secrets of a cluster. They are derived, never read: the operator may only create Secrets.

A name carries the CR's uid and a generation, so that a Secret by that name holds what was derived here.
"""

import dataclasses
import hashlib
from typing import Any, Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tableforge_dataplane.contract import endpoints
from tableforge_operator.api import WebSocketCluster
from tableforge_operator.decide.resources.kinds import SECRET
from tableforge_operator.decide.resources.metadata import child

REDIS_GENERATION: Final = 1
REDIS_PASSWORD_KEY: Final = "password"  # noqa: S105  (a key in a Secret, no secret)
REDIS_CONF_KEY: Final = "auth.conf"
FLEET_KEY_KEY: Final = "key"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DerivedSecrets:
    """What is derived from the operator's master key for one cluster. Never shown in `repr`."""

    fleet_key: str = dataclasses.field(repr=False)
    """Bearer key of the instances' `/fleet`."""
    redis_password: str = dataclasses.field(repr=False)
    """Password of the managed Redis."""

    @property
    def fleet_generation(self) -> str:
        """Tells this key from one derived from another master key.

        It stands in the Secret's name: an operator that was installed anew, with a new master key, makes a
        new Secret and rolls the instances, where it would else be locked out of every `/fleet` for good.
        """
        return hashlib.sha256(self.fleet_key.encode()).hexdigest()[:8]


def derive(master_key: bytes, uid: str) -> DerivedSecrets:
    """The secrets of the cluster with this `uid`. Raises ValueError for a key of less than 32 bytes."""
    if len(master_key) < 32:
        raise ValueError("the master key must be at least 32 bytes long")
    return DerivedSecrets(
        fleet_key=_expand(master_key, salt=uid, info=endpoints.FLEET_KEY_INFO),
        redis_password=_expand(
            master_key, salt=f"{uid}/{REDIS_GENERATION}", info=endpoints.REDIS_PASSWORD_INFO
        ),
    )


def redis_secret_name(cluster: WebSocketCluster) -> str:
    return f"{cluster.name}-redis-{cluster.uid[:8]}-{REDIS_GENERATION}"


def fleet_secret_name(cluster: WebSocketCluster, secrets: DerivedSecrets) -> str:
    return f"{cluster.name}-fleet-{cluster.uid[:8]}-{secrets.fleet_generation}"


def redis_secret(cluster: WebSocketCluster, secrets: DerivedSecrets) -> dict[str, Any]:
    """The password twice: for the instances, and as the line of configuration that Redis includes."""
    return {
        **child(cluster, SECRET, redis_secret_name(cluster), "redis"),
        "type": "Opaque",
        "immutable": True,
        "stringData": {
            REDIS_PASSWORD_KEY: secrets.redis_password,
            REDIS_CONF_KEY: f"requirepass {secrets.redis_password}\n",
        },
    }


def fleet_secret(cluster: WebSocketCluster, secrets: DerivedSecrets) -> dict[str, Any]:
    """The key that guards `/fleet`."""
    return {
        **child(cluster, SECRET, fleet_secret_name(cluster, secrets), "dataplane"),
        "type": "Opaque",
        "immutable": True,
        "stringData": {FLEET_KEY_KEY: secrets.fleet_key},
    }


def _expand(master_key: bytes, *, salt: str, info: str) -> str:
    # Hexadecimal needs no quoting in a configuration file or a header.
    return (
        HKDF(algorithm=SHA256(), length=32, salt=salt.encode(), info=info.encode()).derive(master_key).hex()
    )
