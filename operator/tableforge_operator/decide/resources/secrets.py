"""The Secrets of a cluster. They are derived, never read: the operator may only create Secrets.

A name carries the CR's uid and a generation, so that a Secret by that name holds what was derived here.
"""

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any, Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tableforge_dataplane.contract import endpoints
from tableforge_operator.api import WebSocketCluster
from tableforge_operator.decide.resources.kinds import SECRET
from tableforge_operator.decide.resources.metadata import child
from tableforge_operator.decide.resources.passwords import Passwords, password_secret_name, taken_secret_name

REDIS_PASSWORD_KEY: Final = "password"  # noqa: S105  (a key in a Secret, no secret)
REDIS_CONF_KEY: Final = "auth.conf"
FLEET_KEY_KEY: Final = "key"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DerivedSecrets:
    """What is derived from the operator's master key for one cluster. Never shown in `repr`."""

    fleet_key: str = dataclasses.field(repr=False)
    """Bearer key of the instances' `/fleet`."""
    redis_password: Callable[[int], str] = dataclasses.field(repr=False)
    """Password of the managed Redis, by generation."""

    def redis_password_hash(self, generation: int) -> str:
        """SHA-256 of it, as Redis compares it."""
        return hashlib.sha256(self.redis_password(generation).encode()).hexdigest()

    @property
    def fleet_generation(self) -> str:
        """Tells this key from one derived from another master key.

        It stands in the Secret's name: an operator that was installed anew, with a new master key, makes a
        new Secret and rolls the instances, where it would else be locked out of every `/fleet` for good.
        """
        return hashlib.sha256(self.fleet_key.encode()).hexdigest()[:8]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MadeSecrets:
    """The Secrets that instances are mounted."""

    fleet: str
    """Name of the one with the fleet's key."""
    redis_password: int = 1
    """Generation of the managed Redis's password."""


def derive(master_key: bytes, uid: str) -> DerivedSecrets:
    """The secrets of the cluster with this `uid`. Raises ValueError for a key of less than 32 bytes."""
    if len(master_key) < 32:
        raise ValueError("the master key must be at least 32 bytes long")
    return DerivedSecrets(
        fleet_key=_expand(master_key, salt=uid, info=endpoints.FLEET_KEY_INFO),
        redis_password=lambda generation: _expand(
            master_key, salt=f"{uid}/{generation}", info=endpoints.REDIS_PASSWORD_INFO
        ),
    )


def fleet_secret_name(cluster: WebSocketCluster, secrets: DerivedSecrets) -> str:
    return f"{cluster.name}-fleet-{cluster.uid[:8]}-{secrets.fleet_generation}"


def redis_secrets(
    cluster: WebSocketCluster, secrets: DerivedSecrets, passwords: Passwords
) -> tuple[dict[str, Any], ...]:
    """What Redis takes, and what the instances are given: mostly the same Secret."""
    word = secrets.redis_password(passwords.given)
    # A line of configuration that Redis includes, beside the password that instances read.
    one = {REDIS_PASSWORD_KEY: word, REDIS_CONF_KEY: f"requirepass {word}\n"}
    given = _redis_secret(cluster, password_secret_name(cluster, passwords.given), one)
    if len(passwords.taken) == 1:
        return (given,)
    # By their hashes: the earlier one may be derived from a master key that is gone.
    taken = " ".join(f"#{word}" for generation in passwords.taken for word in passwords.hashes[generation])
    both = {REDIS_CONF_KEY: f"user default on {taken} ~* &* +@all\n"}
    return _redis_secret(cluster, taken_secret_name(cluster, passwords), both), given


def _redis_secret(cluster: WebSocketCluster, name: str, data: dict[str, str]) -> dict[str, Any]:
    return {
        **child(cluster, SECRET, name, "redis"),
        "type": "Opaque",
        "immutable": True,
        "stringData": data,
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
