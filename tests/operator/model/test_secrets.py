"""Secrets are derived, stay the same, and differ from cluster to cluster."""

import dataclasses
import re

import pytest

from tableforge_operator.decide.resources.passwords import (
    FIRST,
    Passwords,
    hashes_of,
    hashes_text,
    passwords_in,
    taken_secret_name,
    window,
)
from tableforge_operator.decide.resources.secrets import (
    derive,
    fleet_secret,
    fleet_secret_name,
    redis_secrets,
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
    assert derived.redis_password(1) == "3fd7cae1af515bf4009b12f6ee26f8f43447004493bb7a8983f94e66a684caed"


def test_clusters_and_purposes_have_secrets_of_their_own():
    one, other = derive(MASTER_KEY, UID), derive(MASTER_KEY, UID.replace("0", "9"))
    assert len({one.fleet_key, one.redis_password(1), other.fleet_key, other.redis_password(1)}) == 4


def test_a_short_master_key_is_refused():
    with pytest.raises(ValueError, match="at least 32 bytes"):
        derive(b"x" * 31, UID)


def test_secrets_do_not_show(secrets):
    assert secrets.fleet_key not in repr(secrets)
    assert secrets.redis_password(1) not in repr(secrets)


def test_the_redis_secret(cluster, secrets):
    (made,) = redis_secrets(cluster(), secrets, FIRST)
    assert made == {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata("tables-redis-0d1e2f30-1", expected.REDIS),
        "type": "Opaque",
        "immutable": True,
        "stringData": {"password": "91" * 32, "auth.conf": f"requirepass {'91' * 32}\n"},
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


def test_while_the_password_changes_redis_takes_both_and_instances_are_given_one(cluster, secrets):
    one, two, three = ("1" * 64, "2" * 64, "3" * 64)
    passwords = Passwords(taken=(1, 2), given=1, hashes={1: (one,), 2: (two, three)})
    both, given = redis_secrets(cluster(), secrets, passwords)
    name = both["metadata"]["name"]
    assert re.fullmatch(r"tables-redis-0d1e2f30-1-2-[0-9a-f]{8}", name)
    assert both["stringData"] == {"auth.conf": f"user default on #{one} #{two} #{three} ~* &* +@all\n"}
    assert passwords_in(cluster(), name) == (1, 2)
    others = dataclasses.replace(passwords, hashes={1: (one,), 2: (two,)})
    assert taken_secret_name(cluster(), others) != name, "the name says what is in it"
    assert given["metadata"]["name"] == "tables-redis-0d1e2f30-1"
    assert given["stringData"]["password"] == "91" * 32


def test_each_generation_has_a_password_of_its_own():
    derived = derive(MASTER_KEY, UID)
    assert len({derived.redis_password(generation) for generation in range(1, 20)}) == 19


def test_a_secrets_name_tells_its_generations(cluster):
    tables = cluster()
    assert passwords_in(tables, "tables-redis-0d1e2f30-7") == (7,)
    assert passwords_in(tables, "tables-redis-0d1e2f30-7-12") == (7, 12)
    for other in (
        "",
        "tables-redis-ffffffff-7",
        "tables-redis-0d1e2f30-",
        "tables-redis-0d1e2f30-1-2-3",
        "x",
    ):
        assert passwords_in(tables, other) == ()


def test_an_instance_is_mounted_the_passwords_to_come():
    assert [list(window(generation)) for generation in (1, 4, 5)] == [
        [1, 2, 3, 4],
        [1, 2, 3, 4],
        [5, 6, 7, 8],
    ]


def test_hashes_are_read_as_they_are_written_and_nothing_else_is():
    hashes = {1: ("a" * 64,), 12: ("b" * 64, "c" * 64)}

    def workload(text: str) -> dict[str, object]:
        return {"metadata": {"annotations": {"tableforge.io/password-hashes": text}}}

    assert hashes_of(workload(hashes_text(hashes))) == hashes
    for nonsense in ("", "1", "1=", "=a", "0=" + "a" * 64, "1=" + "A" * 64, "1=" + "a" * 63, "x=" + "a" * 64):
        assert hashes_of(workload(nonsense)) == {}
    assert hashes_of({"metadata": {}}) == {}
