"""The table of fields in docs/operator.md: seen, not told, and up to date."""

import subprocess
import sys

import pytest

from tableforge_dataplane.contract import settings
from tableforge_operator import reference
from tableforge_operator.api.fields import fields_of
from tableforge_operator.api.spec import Spec
from tests.operator.model.conftest import ROOT

FIELDS = {field.path: field for field in reference.fields()}
LIVE = "none: running pods take it on"


def test_the_committed_table_is_what_the_model_says():
    page = reference.FILE.read_text(encoding="utf-8")
    assert reference.written(page) == page


def test_check_is_a_command():
    done = subprocess.run(
        [sys.executable, "-m", "tableforge_operator.reference", "--check"],
        cwd=ROOT,
        capture_output=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_check_fails_where_the_table_differs(tmp_path, monkeypatch, capsys):
    page = tmp_path / "operator.md"
    page.write_text(f"# Ours\n\n{reference.BEGIN}\nold\n{reference.END}\nMore of ours.\n")
    monkeypatch.setattr(reference, "FILE", page)
    monkeypatch.setattr(sys, "argv", ["reference", "--check"])
    assert reference.main() == 1
    assert "run `make docs`" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["reference"])
    assert reference.main() == 0
    text = page.read_text()
    assert text.startswith("# Ours\n")
    assert text.endswith("More of ours.\n")
    assert "| `websocket.pingInterval` | `30s` |" in text
    monkeypatch.setattr(sys, "argv", ["reference", "--check"])
    assert reference.main() == 0


def test_a_page_without_marks_is_left_alone():
    with pytest.raises(ValueError, match="marks"):
        reference.written("# Ours\n")


def test_every_field_of_the_model_has_a_row():
    told = tuple(FIELDS)
    for path, _ in fields_of(Spec):
        assert any(path == row or path.startswith(f"{row}.") or row.startswith(f"{path}.") for row in told), (
            path
        )


@pytest.mark.parametrize(
    ("path", "changes", "price"),
    [
        ("monitoring.logLevel", "ConfigMap `<name>-live`", LIVE),
        ("websocket.pingInterval", "ConfigMap `<name>-config-…`", "new pods"),
        ("image", "Deployment `<name>-a`", "new pods"),
        ("replicas", "Deployment `<name>-a`", ""),
        ("service.type", "Service `<name>`", ""),
        ("redis.managed.image", "StatefulSet `<name>-redis`", "Redis restarts"),
        ("rollout.progressDeadline", "Deployment `<name>-a`", ""),
    ],
)
def test_what_a_field_costs_is_seen(path, changes, price):
    assert changes in FIELDS[path].changes
    assert FIELDS[path].price == price


def test_what_is_live_in_the_contract_costs_nothing_and_everything_else_does():
    for path, setting in fields_of(Spec):
        if setting is None or path not in FIELDS:
            continue
        live = settings.specs()[setting][0].live
        assert FIELDS[path].price == (LIVE if live else "new pods"), path


SETTINGS_ACT = (
    "operator/model/test_settings_on_a_cluster.py::test_what_the_api_server_takes_the_data_plane_takes"
)
NUMBERS_ACT = "operator/model/test_config_map.py::test_the_data_plane_takes_whatever_the_crd_lets_through"
LISTS_ACT = (
    "operator/model/test_config_map.py::test_lists_and_groups_are_written_as_the_data_plane_reads_them"
)
FILES_ACT = "operator/model/test_deployment.py::test_whatever_the_instances_read_from_files_is_mounted"
EXTERNAL_ACT = "operator/model/test_external_redis.py"
TRIED = {
    "replicas": "operator/model/test_deployment.py::test_every_field_of_the_pod_acts",
    "image": "operator/model/test_deployment.py::test_every_field_of_the_pod_acts",
    "websocket.": NUMBERS_ACT,
    "websocket.tls.": "e2e/test_settings.py::"
    "test_limits_change_under_connected_clients_and_the_rest_makes_new_pods",
    "redis.": f"{EXTERNAL_ACT}::test_how_the_instances_deal_with_redis",
    "redis.keyPrefix": "operator/model/test_config_map.py::test_every_field_arrives_at_the_data_plane",
    "redis.durability": "operator/model/test_config_map.py::test_every_field_arrives_at_the_data_plane",
    "redis.managed.": "operator/model/test_managed_redis.py::test_every_field_of_the_managed_redis_acts",
    "redis.managed.passwordGeneration": "e2e/test_managed_redis.py",
    "redis.external.": f"{EXTERNAL_ACT}::test_a_single_server",
    "redis.external.mode": f"{EXTERNAL_ACT}::test_a_primary_behind_sentinels",
    "redis.external.sentinel.": f"{EXTERNAL_ACT}::test_a_primary_behind_sentinels",
    "redis.external.cluster.": f"{EXTERNAL_ACT}::test_a_redis_cluster_over_tls",
    "redis.external.tls.": f"{EXTERNAL_ACT}::test_tls_with_an_authority_in_a_secret_or_a_public_one",
    "scaling.": NUMBERS_ACT,
    "auth.": SETTINGS_ACT,
    "auth.jwtSecretRef": FILES_ACT,
    "auth.previousJwtSecretRef": FILES_ACT,
    "auth.publicKeys.": FILES_ACT,
    "auth.jwks.": FILES_ACT,
    "auth.apiKeySecretRef": FILES_ACT,
    "auth.defaultRights.": LISTS_ACT,
    "loadBalancing.": "operator/engine/test_autoscaling.py",
    "loadBalancing.scaleDownCooldown": "operator/engine/test_autoscaling.py::"
    "test_the_floor_goes_down_once_fewer_were_enough_for_a_whole_cooldown",
    "loadBalancing.scaleUpCooldown": "operator/engine/test_autoscaling.py::"
    "test_the_floor_goes_up_at_once_and_then_not_before_the_cooldown_is_over",
    "loadBalancing.maxConnectionsPerInstance": NUMBERS_ACT,
    "loadBalancing.strategy": "operator/engine/test_balance.py::test_the_spec_decides",
    "performance.": NUMBERS_ACT,
    "monitoring.": NUMBERS_ACT,
    "monitoring.podMonitor.": "operator/model/test_monitoring.py",
    "monitoring.prometheusRule.": "operator/model/test_monitoring.py",
    "security.": NUMBERS_ACT,
    "security.trustedProxies": LISTS_ACT,
    "security.allowedOrigins": LISTS_ACT,
    "security.networkPolicy.": "operator/model/test_network_policies.py",
    "rooms.": NUMBERS_ACT,
    "rooms.options": LISTS_ACT,
    "clustering.": "operator/engine/test_balance.py",
    "clustering.failoverTimeout": NUMBERS_ACT,
    "routing.": "operator/model/test_routing.py",
    "autoscaling.": "operator/model/test_autoscaler.py",
    "rollout.": "operator/engine/test_rollout.py",
    "pod.": "operator/model/test_pod_overrides.py",
    "service.": "operator/model/test_service_options.py",
    "service.annotations": "operator/model/test_services.py::"
    "test_the_client_service_is_what_the_user_asks_for",
    "ingress.": "operator/model/test_ingress.py",
}
"""Where it is tried that a field acts, by the beginning of its path; the longest counts."""


@pytest.mark.parametrize("path", list(FIELDS))
def test_that_each_field_acts_is_tried_somewhere(path):
    where = max((prefix for prefix in TRIED if path.startswith(prefix)), key=len, default=None)
    assert where is not None, "tell in TRIED which test sees that this field acts"
    file, _, name = TRIED[where].partition("::")
    text = (ROOT / "tests" / file).read_text(encoding="utf-8")
    assert f"def {name}(" in text if name else path.rpartition(".")[2] in text


def test_a_field_that_acts_on_nothing_is_an_error(monkeypatch):
    told = {path: what for path, what in reference.DECIDED.items() if path != "rollout.strategy"}
    monkeypatch.setattr(reference, "DECIDED", told)
    with pytest.raises(ValueError, match=r"rollout\.strategy changes no object"):
        reference.fields()


def test_what_can_be_seen_must_not_be_told(monkeypatch):
    monkeypatch.setattr(reference, "DECIDED", {**reference.DECIDED, "image": "something"})
    with pytest.raises(ValueError, match="need not be told"):
        reference.fields()
