"""The table of fields in docs/operator.md: seen, not told, and up to date."""

import subprocess
import sys

import pytest

from tableforge_dataplane.contract import settings
from tableforge_operator import reference
from tableforge_operator.api.fields import fields_of
from tableforge_operator.api.spec import Spec
from tableforge_operator.decide.resources import template_of
from tableforge_operator.decide.resources.passwords import Passwords
from tests.operator.model import test_config_map, uses
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
        timeout=120,
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


def test_another_password_costs_new_pods_where_their_template_changes(cluster, secrets):
    templates = [
        template_of(cluster(), secrets=secrets, passwords=Passwords.settled(generation))
        for generation in range(1, 15)
    ]
    rolls = [number for number in range(2, 15) if templates[number - 1] != templates[number - 2]]
    assert FIELDS["redis.managed.passwordGeneration"].price == (
        f"Redis restarts twice; new pods at generations {', '.join(map(str, rolls))} …"
    )


def test_what_moves_the_autoscaler_is_seen():
    moved = {path for path, field in FIELDS.items() if "HorizontalPodAutoscaler `<name>`" in field.autoscaled}
    assert moved == {
        "replicas",
        "websocket.maxConnections",
        "loadBalancing.connectionThreshold",
        "loadBalancing.maxConnectionsPerInstance",
        "loadBalancing.scaleDownCooldown",
        "rollout.drainTimeout",
    }


def test_what_is_live_in_the_contract_costs_nothing_and_everything_else_does():
    for path, setting in fields_of(Spec):
        if setting is None or path not in FIELDS:
            continue
        live = settings.specs()[setting][0].live
        assert FIELDS[path].price == (LIVE if live else "new pods"), path


ALL_AT_ONCE = {
    "tests/operator/model/test_config_map.py::test_the_data_plane_takes_whatever_the_crd_lets_through": set(
        test_config_map.TRIED.values()
    )
}
"""Tests that write no field down, but go through many."""


def tries(test, path):
    """What is amiss with a test that is said to try a field; None where nothing is."""
    file, _, name = test.partition("::")
    if not uses.is_test(ROOT / file, name):
        return f"there is no test {test}"
    if path in ALL_AT_ONCE.get(test, ()) or uses.writes(ROOT / file, name, path):
        return None
    return f"{test} does not set {path}"


@pytest.mark.parametrize("path", list(FIELDS))
def test_that_each_field_acts_is_tried_by_the_test_that_the_table_names(path):
    assert tries(FIELDS[path].test, path) is None


def test_no_test_is_named_for_nothing():
    assert set(reference.tried().values()) == {field.test for field in FIELDS.values()}


MODEL = "tests/operator/model"


@pytest.mark.parametrize(
    ("test", "path"),
    [
        (f"{MODEL}/test_ingress.py::test_nothing_of_the_kind", "ingress.host"),
        (f"{MODEL}/test_nothing.py::test_every_field_acts", "ingress.host"),
        (f"{MODEL}/test_ingress.py::rule", "ingress.host"),
        (f"{MODEL}/test_ingress.py", "ingress.host"),
        (f"{MODEL}/test_ingress.py::test_a_host_is_enough", "ingress.tlsSecretName"),
        # it has a port, a type and a service, but of other things
        (f"{MODEL}/test_services.py::test_the_client_service_is_what_the_user_asks_for", "service.port"),
        (
            f"{MODEL}/test_config_map.py::test_the_data_plane_takes_whatever_the_crd_lets_through",
            "redis.managed.image",
        ),
    ],
)
def test_a_test_that_does_not_try_a_field_is_noticed(test, path):
    assert tries(test, path) is not None


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("test_ingress.py::test_every_field_acts", "ingress.tlsSecretName"),
        ("test_network_policies.py::test_clients_can_be_limited_to_addresses_and_pods",
         "security.networkPolicy.clients"),
        ("test_external_redis.py::test_how_the_instances_deal_with_redis", "redis.connectTimeout"),
    ],
)  # fmt: skip
def test_what_a_helper_or_a_fixture_puts_around_a_field_counts(name, path):
    assert tries(f"{MODEL}/{name}", path) is None


def test_a_field_without_a_test_is_an_error(monkeypatch):
    told = {prefix: test for prefix, test in reference.tried().items() if prefix != "image"}
    monkeypatch.setattr(reference, "tried", lambda: told)
    with pytest.raises(ValueError, match=r"nobody tries image: tell in tried\.toml"):
        reference.fields()


def test_a_field_that_acts_on_nothing_is_an_error(monkeypatch):
    told = {path: what for path, what in reference.DECIDED.items() if path != "rollout.strategy"}
    monkeypatch.setattr(reference, "DECIDED", told)
    with pytest.raises(ValueError, match=r"rollout\.strategy changes no object"):
        reference.fields()


def test_what_can_be_seen_must_not_be_told(monkeypatch):
    monkeypatch.setattr(reference, "DECIDED", {**reference.DECIDED, "image": "something"})
    with pytest.raises(ValueError, match="need not be told"):
        reference.fields()
