"""Secrets are derived, stay the same, and differ from cluster to cluster."""

import pytest

from tableforge_operator.decide.resources.secrets import (
    derive,
    fleet_secret,
    fleet_secret_name,
    redis_secret,
)
from tests.operator.model import expected
from tests.operator.model.conftest import UID
from tests.operator.model.expected import metadata

MASTER_KEY = bytes(range(32))


def test_the_derivation_never_changes():
    # Made with openssl: `openssl kdf -keylen 32 -kdfopt digest:SHA256 -kdfopt hexkey:0001…1f
    # -kdfopt salt:<uid> -kdfopt info:tableforge/fleet/v1 HKDF`. Another result would lock every fleet out.
    derived = derive(MASTER_KEY, UID)
    assert derived.fleet_key == "ef91d260f963643df654a9385dc0db66671ee05dbd6c715596b921083531dcbd"
    assert derived.redis_password == "3fd7cae1af515bf4009b12f6ee26f8f43447004493bb7a8983f94e66a684caed"


def test_clusters_and_purposes_have_secrets_of_their_own():
    one, other = derive(MASTER_KEY, UID), derive(MASTER_KEY, UID.replace("0", "9"))
    assert len({one.fleet_key, one.redis_password, other.fleet_key, other.redis_password}) == 4


def test_a_short_master_key_is_refused():
    with pytest.raises(ValueError, match="at least 32 bytes"):
        derive(b"x" * 31, UID)


def test_secrets_do_not_show(secrets):
    assert secrets.fleet_key not in repr(secrets)
    assert secrets.redis_password not in repr(secrets)


def test_the_redis_secret(cluster, secrets):
    assert redis_secret(cluster(), secrets) == {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata("tables-redis-0d1e2f30-1", expected.REDIS),
        "type": "Opaque",
        "immutable": True,
        "stringData": {"password": "9a" * 32, "auth.conf": f"requirepass {'9a' * 32}\n"},
    }


def test_the_fleet_secret(cluster, secrets):
    assert fleet_secret(cluster(), secrets) == {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata("tables-fleet-0d1e2f30-c30e26fe", expected.DATAPLANE),
        "type": "Opaque",
        "immutable": True,
        "stringData": {"key": "f1" * 32},
    }


def test_another_master_key_gives_the_fleet_secret_another_name(cluster):
    tables = cluster()
    assert fleet_secret_name(tables, derive(MASTER_KEY, UID)) != fleet_secret_name(
        tables, derive(b"k" * 32, UID)
    )
