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
    return _meta(name, description or _SETTINGS[name][0].doc, extra={"setting": name}, ge=ge)


def bounded(name: str) -> msgspec.Meta:
    """A field with the meaning and the bounds of the setting `name`, in a group that is written as JSON."""
    return _meta(name, _SETTINGS[name][0].doc)


def _meta(
    name: str, description: str, *, extra: dict[str, Any] | None = None, ge: int | None = None
) -> msgspec.Meta:
    spec, default = _SETTINGS[name]
    if spec.unit is settings.Unit.MILLISECONDS:
        low, high = _bounds(spec, ge)
        rules = _duration_rules(Duration(low), Duration(high))
        return msgspec.Meta(
            description=description,
            extra=extra,
            extra_json_schema={
                "maxLength": DURATION_MAX_LENGTH,
                "x-kubernetes-validations": [rule.schema() for rule in rules],
            },
        )
    if isinstance(default, int) and not isinstance(default, bool):
        low, high = _bounds(spec, ge)
        return msgspec.Meta(description=description, extra=extra, ge=low, le=high)
    return msgspec.Meta(description=description, extra=extra)


def optional_setting(name: str, description: str | None = None) -> msgspec.Meta:
    """A number, flag, choice or duration that may be left out: `Annotated[int, optional_setting(…)] | None`.

    The CRD fills nothing in, so that an object shows what its author decided. The data plane's default holds,
    and stands in the description.
    """
    default = default_of(name)
    shown = str(default).lower() if isinstance(default, bool) else default
    return setting(name, f"{description or _SETTINGS[name][0].doc} Default: {shown}.")


def written_setting(
    name: str, description: str, *rules: Rule, schema: dict[str, Any] | None = None, **bounds: Any
) -> msgspec.Meta:
    """A field that the data plane takes as a text: one, a list, or groups that are written as JSON.

    `rules`, `schema` and `bounds` are those of `field`; they must let through no more than the setting does.
    """
    extra = dict(schema or {})
    if rules:
        extra["x-kubernetes-validations"] = [rule.schema() for rule in rules]
    return msgspec.Meta(description=description, extra={"setting": name}, extra_json_schema=extra, **bounds)


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
    fields = msgspec.inspect.type_info(group).fields  # type: ignore[attr-defined]
    return tuple((info.name, _setting_of(info.type)) for info in fields)


def _setting_of(kind: msgspec.inspect.Type) -> str | None:
    if isinstance(kind, msgspec.inspect.UnionType):
        return next((found for each in kind.types if (found := _setting_of(each)) is not None), None)
    return (kind.extra or {}).get("setting") if isinstance(kind, msgspec.inspect.Metadata) else None


def fields_of(group: type[msgspec.Struct], path: str = "") -> Iterator[tuple[str, str | None]]:
    """Every field of `group` and of the groups below, as it is written (`websocket.port`), with its setting.

    A field that holds a list of groups is one field.
    """
    for info in msgspec.inspect.type_info(group).fields:  # type: ignore[attr-defined]
        name, setting = f"{path}{info.encode_name}", _setting_of(info.type)
        below = _group_in(info.type)
        if setting is None and below is not None:
            yield from fields_of(below, f"{name}.")
        else:
            yield name, setting


def _group_in(kind: msgspec.inspect.Type) -> type[msgspec.Struct] | None:
    if isinstance(kind, msgspec.inspect.Metadata):
        return _group_in(kind.type)
    if isinstance(kind, msgspec.inspect.UnionType):
        return next((found for each in kind.types if (found := _group_in(each)) is not None), None)
    return kind.cls if isinstance(kind, msgspec.inspect.StructType) else None


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
