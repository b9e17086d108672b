"""How a field of the WebSocketCluster is declared: documentation, bounds, rules, the setting behind it.

Default, bounds and meaning of a field that stands for a setting of the data plane come from the contract, so
that CRD and data plane cannot drift apart.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, ClassVar, Final, Literal

import msgspec

from tableforge_dataplane.contract import settings
from tableforge_operator.api.quantities import DURATION_MAX_LENGTH, DURATION_PATTERN, Duration

_SETTINGS: Final = settings.specs()


@dataclasses.dataclass(frozen=True)
class Rule:
    """A CEL rule of the CRD. The message says what to change."""

    rule: str
    message: str
    field_path: str | None = None
    """Where in the object the API server points to, such as `.jwtSecretRef`; the object itself where None."""
    reason: Literal["FieldValueRequired", "FieldValueForbidden", "FieldValueInvalid"] = "FieldValueInvalid"

    def schema(self) -> dict[str, Any]:
        found = {"rule": self.rule, "message": self.message, "reason": self.reason}
        return found if self.field_path is None else {**found, "fieldPath": self.field_path}


class Group(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """A part of the WebSocketCluster: attributes in Python's spelling, camelCase on the wire."""

    rules: ClassVar[tuple[Rule, ...]] = ()


def field(
    description: str, *rules: Rule, schema: dict[str, Any] | None = None, **bounds: Any
) -> msgspec.Meta:
    """A field of its own. `bounds` are msgspec's; `schema` adds keywords it has no word for."""
    extra = dict(schema or {})
    if rules:
        extra["x-kubernetes-validations"] = [rule.schema() for rule in rules]
    return msgspec.Meta(description=description, extra_json_schema=extra, **bounds)


def duration(description: str, *, low: Duration, high: Duration) -> msgspec.Meta:
    """A field that holds a Duration from `low` to `high`."""
    return field(description, *_duration_rules(low, high), schema={"maxLength": DURATION_MAX_LENGTH})


def setting(name: str, description: str | None = None, *, ge: int | None = None) -> msgspec.Meta:
    """A field that stands for the setting `name` (`group.field`) of the data plane.

    `ge` raises the lower bound where Kubernetes asks for more than the data plane does.
    """
    spec, default = _SETTINGS[name]
    text = description or spec.doc
    extra = {"setting": name}
    if spec.unit is settings.Unit.MILLISECONDS:
        low, high = _bounds(spec, ge)
        rules = _duration_rules(Duration(low), Duration(high))
        return msgspec.Meta(
            description=text,
            extra=extra,
            extra_json_schema={
                "maxLength": DURATION_MAX_LENGTH,
                "x-kubernetes-validations": [rule.schema() for rule in rules],
            },
        )
    if isinstance(default, int) and not isinstance(default, bool):
        low, high = _bounds(spec, ge)
        return msgspec.Meta(description=text, extra=extra, ge=low, le=high)
    return msgspec.Meta(description=text, extra=extra)


def default_of(name: str) -> Any:
    """The contract's default of the setting `name`, as the CR's field holds it."""
    spec, default = _SETTINGS[name]
    return Duration.of_seconds(default) if spec.unit is settings.Unit.MILLISECONDS else default


def settings_in(group: msgspec.Struct) -> Iterator[tuple[str, Any]]:
    """Every setting that `group` and what is below it hold: (name, value), values that are unset left out."""
    for name, setting in _settings_of(type(group)):
        value = getattr(group, name)
        if setting is not None and value is not None:
            yield setting, value
        elif isinstance(value, Group):
            yield from settings_in(value)


@functools.cache
def _settings_of(group: type[msgspec.Struct]) -> tuple[tuple[str, str | None], ...]:
    """Each field of `group` and the setting it stands for. Inspection took 80 % of a no-op reconcile."""
    found: list[tuple[str, str | None]] = []
    for info in msgspec.inspect.type_info(group).fields:  # type: ignore[attr-defined]
        extra = info.type.extra if isinstance(info.type, msgspec.inspect.Metadata) else None
        found.append((info.name, (extra or {}).get("setting")))
    return tuple(found)


def _bounds(spec: settings.Spec, ge: int | None) -> tuple[int, int]:
    if spec.minimum is None or spec.maximum is None:
        raise TypeError(f"{spec.env} has no bounds: give it some in the contract")
    return int(spec.minimum) if ge is None else ge, int(spec.maximum)


def _duration_rules(low: Duration, high: Duration) -> tuple[Rule, ...]:
    # One rule with one readable message: a failing `pattern` would answer with the regular expression.
    return (
        Rule(
            f"self.matches('^{DURATION_PATTERN}$') && duration(self) >= duration('{low}') "
            f"&& duration(self) <= duration('{high}')",
            f"must be a duration from {low} to {high}, written like 500ms, 30s, 2m or 1h30m",
        ),
    )
