"""The CRD: generated, bounded, documented, and in step with the settings of the data plane."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tableforge_dataplane.contract import settings
from tableforge_operator.api import crd
from tableforge_operator.api.fields import Group, fields_of
from tableforge_operator.api.quantities import Duration
from tableforge_operator.api.schema import group_schema
from tableforge_operator.api.spec import Spec
from tests.operator.model import asserted
from tests.operator.model.conftest import ROOT
from tests.operator.model.fields import (
    FIELDS,
    OTHERWISE,
    PLAIN,
    RAISED_MINIMUM,
    WITHOUT_A_FIELD,
    durations,
)

SCHEMA = crd.crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
SPEC = SCHEMA["properties"]["spec"]
RULES = "x-kubernetes-validations"


def everything(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, below in schema.get("properties", {}).items():
        yield from everything(below, f"{path}.{name}")
    for word in ("items", "additionalProperties"):
        if isinstance(schema.get(word), dict):
            yield from everything(schema[word], f"{path}[]")


def at(path: str) -> dict[str, Any]:
    found = SPEC
    for name in path.split("."):
        found = found["properties"][name]
    return found


def test_the_committed_file_is_what_the_model_says():
    assert crd.FILE.read_text(encoding="utf-8") == crd.rendered()
    assert yaml.safe_load(crd.rendered()) == crd.crd()


def test_check_fails_where_the_file_differs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(crd, "FILE", tmp_path / "crd.yaml")
    monkeypatch.setattr(sys, "argv", ["crd", "--check"])
    assert crd.main() == 1
    assert "run `make crd`" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["crd"])
    assert crd.main() == 0
    monkeypatch.setattr(sys, "argv", ["crd", "--check"])
    assert crd.main() == 0


def test_check_is_a_command():
    done = subprocess.run(
        [sys.executable, "-m", "tableforge_operator.api.crd", "--check"],
        cwd=ROOT,
        capture_output=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_every_setting_has_a_field_or_something_in_its_place():
    unknown = {name for name in settings.specs() if not name.startswith("redis.")} - set(FIELDS)
    assert unknown == set(WITHOUT_A_FIELD)


def test_no_setting_has_two_fields():
    # Redis has two ways to be found by addresses, of which one is given.
    found = [setting for _, setting in fields_of(Spec) if setting not in (None, "redis.addresses")]
    assert len(found) == len(set(found))


@pytest.mark.parametrize("setting", sorted(set(PLAIN) - OTHERWISE))
def test_defaults_and_bounds_are_the_contracts(setting):
    spec, default = settings.specs()[setting]
    schema = at(FIELDS[setting])
    shown = schema.get("default")
    if spec.unit is settings.Unit.MILLISECONDS:
        default = str(Duration.of_seconds(default))
        (rule,) = schema["x-kubernetes-validations"]
        assert f"duration('{Duration(int(spec.minimum))}')" in rule["rule"]
        assert f"duration('{Duration(int(spec.maximum))}')" in rule["rule"]
    elif isinstance(default, bool):
        assert schema["type"] == "boolean"
    elif isinstance(default, int):
        assert schema["minimum"] == RAISED_MINIMUM.get(setting, spec.minimum)
        assert schema["maximum"] == spec.maximum
    else:
        assert default in schema["enum"]
    # what the CRD fills in, or what the data plane does where it fills in nothing
    assert shown in (default, None)
    assert (
        f"Default: {str(default).lower() if isinstance(default, bool) else default}" in schema["description"]
    )


def test_authentication_is_on_unless_said_otherwise():
    assert at("auth.required")["default"] is True


def test_only_the_groups_that_act_are_there():
    assert list(SPEC["properties"]) == [
        "replicas", "image", "websocket", "redis", "scaling", "auth", "loadBalancing", "performance",
        "monitoring", "security", "rooms", "clustering", "routing", "autoscaling", "rollout", "pod",
        "service", "ingress",
    ]  # fmt: skip


def test_everything_is_documented():
    silent = [
        path
        for path, schema in everything(SCHEMA, "")
        if path.startswith((".spec", ".status")) and not path.endswith("[]") and not schema.get("description")
    ]
    assert silent == []


def test_everything_is_bounded():
    for path, schema in everything(SCHEMA, ""):
        if path in (".apiVersion", ".kind"):
            continue
        kind = schema.get("type")
        if kind == "string":
            assert "maxLength" in schema or "enum" in schema, path
        elif kind == "array":
            assert "maxItems" in schema, path
        elif kind == "integer":
            assert {"minimum", "maximum"} <= set(schema), path
        elif "additionalProperties" in schema:
            assert "maxProperties" in schema, path
        elif "x-kubernetes-int-or-string" in schema:
            assert "maxLength" in schema, path


def test_every_refusal_is_tried():
    """By a text that no other rule's message has, unless it has the whole of this one's."""
    messages = {rule["message"] for _, schema in everything(SCHEMA, "") for rule in schema.get(RULES, ())} - {
        message for *_, message in durations()
    }
    texts = asserted.texts()
    untried = [
        message
        for message in messages
        if not any(
            message in text
            or (text in message and all(message in other for other in messages if text in other))
            for text in texts
        )
    ]
    assert len(messages) > 80
    assert untried == []


def test_nothing_accepts_unknown_fields_unseen():
    assert not [
        path for path, schema in everything(SCHEMA, "") if "x-kubernetes-preserve-unknown-fields" in schema
    ]


def test_a_type_without_a_schema_is_an_error():
    class Odd(Group, frozen=True):
        blob: bytes = b""

    with pytest.raises(TypeError, match="no schema"):
        group_schema(Odd)
