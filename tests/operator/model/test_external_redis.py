"""An external Redis: what the instances are told of it, and which of the user's objects they get as files."""

from pathlib import Path

import pytest

from tableforge_dataplane.contract import environment
from tableforge_operator.decide.resources.config_map import config_map
from tableforge_operator.decide.resources.deployment import deployment
from tableforge_operator.decide.resources.secrets import MadeSecrets
from tests.operator.model import expected


def told(made):
    """The settings that an instance reads from what is rendered for the cluster."""
    return environment.read(expected.environ(made)).redis


def volumes(made):
    template = deployment(made, config_hash="c0ffee", secrets=MadeSecrets(fleet="fleet"))["spec"]["template"][
        "spec"
    ]
    mounts = {mount["name"]: mount["mountPath"] for mount in template["containers"][0]["volumeMounts"]}
    return {volume["name"]: (mounts[volume["name"]], volume) for volume in template["volumes"]}


def test_a_single_server(cluster):
    found = told(cluster({"redis": {"external": {"host": "redis.example.com", "database": 4}}}))
    assert (found.mode, found.host, found.port, found.database) == (
        "Standalone",
        "redis.example.com",
        6379,
        4,
    )
    assert (found.durability, found.tls, found.password.configured) == ("Memory", False, False)


def test_a_primary_behind_sentinels(cluster):
    made = cluster(
        {
            "redis": {
                "durability": "Disk+Replica",
                "external": {
                    "mode": "Sentinel",
                    "sentinel": {
                        "masterName": "tables",
                        "addresses": ["one.example.com", "two.example.com:26380", "[fd00::3]:26379"],
                        "username": "watcher",
                        "passwordSecretRef": {"name": "sentinel-login", "key": "word"},
                    },
                    "username": "tables",
                    "passwordSecretRef": {"name": "login"},
                },
            }
        }
    )
    found = told(made)
    assert (found.mode, found.sentinel_master_name) == ("Sentinel", "tables")
    assert found.addresses == "one.example.com,two.example.com:26380,[fd00::3]:26379"
    assert (found.username, found.sentinel_username) == ("tables", "watcher")
    assert found.durability == "Disk+Replica"
    for setting, volume, secret, key in (
        (found.password, "redis-password", "login", "password"),
        (found.sentinel_password, "sentinel-password", "sentinel-login", "word"),
    ):
        place, mounted = volumes(made)[volume]
        assert mounted["secret"]["secretName"] == secret
        assert mounted["secret"]["optional"] is True
        (item,) = mounted["secret"]["items"]
        assert (item["key"], Path(place, item["path"])) == (key, setting.file)


def test_a_redis_cluster_over_tls(cluster):
    made = cluster(
        {
            "redis": {
                "external": {
                    "mode": "Cluster",
                    "cluster": {"addresses": ["one:7000", "two:7000"]},
                    "tls": {
                        "caConfigMapRef": {"name": "authorities"},
                        "clientCertificateSecretRef": {"name": "our-certificate"},
                        "serverName": "redis.example.com",
                    },
                }
            }
        }
    )
    found = told(made)
    assert (found.mode, found.addresses, found.tls) == ("Cluster", "one:7000,two:7000", True)
    assert found.tls_server_name == "redis.example.com"
    place, mounted = volumes(made)["redis-ca"]
    assert mounted["configMap"]["name"] == "authorities"
    assert Path(place, mounted["configMap"]["items"][0]["path"]) == Path(found.tls_ca_file)
    place, mounted = volumes(made)["redis-tls"]
    assert mounted["secret"]["secretName"] == "our-certificate"
    paths = {item["key"]: str(Path(place, item["path"])) for item in mounted["secret"]["items"]}
    assert paths == {"tls.crt": found.tls_cert_file, "tls.key": found.tls_key_file}


def test_tls_with_an_authority_in_a_secret_or_a_public_one(cluster):
    def external(tls):
        return cluster({"redis": {"external": {"host": "r", "tls": tls}}})

    private = external({"caSecretRef": {"name": "authorities", "key": "bundle.pem"}})
    assert volumes(private)["redis-ca"][1]["secret"]["items"] == [{"key": "bundle.pem", "path": "ca.crt"}]
    public = told(external({}))
    assert (public.tls, public.tls_ca_file) == (True, "")


@pytest.mark.parametrize("where", [{}, {"external": {"host": "r"}}])
def test_how_the_instances_deal_with_redis(cluster, where):
    given = {
        "connectTimeout": "750ms",
        "maxRetriesPerRequest": 7,
        "retryDelayOnFailover": "300ms",
        "memoryGuardPercent": 55,
    }
    found = told(cluster({"redis": {**where, **given}}))
    assert (found.connect_timeout_seconds, found.retry_delay_on_failover_seconds) == (0.75, 0.3)
    assert (found.max_retries_per_request, found.memory_guard_percent) == (7, 55)


def test_what_is_left_out_is_left_to_the_data_plane(cluster):
    data = config_map(cluster())["data"]
    assert not {name for name in data if name.startswith("TABLEFORGE_REDIS_") and "TIMEOUT" in name}


def test_each_cluster_claims_its_prefix(cluster):
    made = cluster({"redis": {"external": {"host": "r"}, "keyPrefix": "shared"}})
    assert told(made).claim == f"games/tables/{made.uid}"


def test_a_port_that_was_filled_in_once_is_nothing_to_sentinels(cluster):
    sentinel = {"masterName": "tables", "addresses": ["one.example.com"]}
    external = {"mode": "Sentinel", "sentinel": sentinel}
    assert config_map(cluster({"redis": {"external": {**external, "port": 6379}}})) == config_map(
        cluster({"redis": {"external": external}})
    )
