"""From our structs to the structural OpenAPI schema of a CRD.

Structural schemas know neither `$ref` nor a null beside a type, so groups are written out where they stand,
and `X | None` becomes a property that need not be there.
"""

from collections.abc import Mapping
from typing import Any, Final, cast

import msgspec
from msgspec import inspect

from tableforge_operator.api.fields import Group
from tableforge_operator.api.quantities import Duration

Schema = dict[str, Any]

_BOUNDS: Final = {
    "ge": "minimum",
    "le": "maximum",
    "min_length": "minLength",
    "max_length": "maxLength",
    "pattern": "pattern",
}
_ITEM_BOUNDS: Final[Mapping[Any, dict[str, str]]] = {
    inspect.ListType: {"min_length": "minItems", "max_length": "maxItems"},
    inspect.DictType: {"min_length": "minProperties", "max_length": "maxProperties"},
}


def group_schema(group: type[Group], *, defaults: bool = True) -> Schema:
    """The schema of an object. Without `defaults` the API server fills nothing in."""
    info = cast("inspect.StructType", inspect.type_info(group))
    properties: dict[str, Schema] = {}
    for field in info.fields:
        schema = _schema(field.type, defaults=defaults)
        if defaults and (default := _default(field)) is not None:
            schema["default"] = default
        properties[field.encode_name] = _described_first(schema)
    found: Schema = {
        "description": _text(group.__doc__),
        "type": "object",
        "properties": properties,
    }
    if required := [field.encode_name for field in info.fields if field.required]:
        found["required"] = required
    if group.rules:
        found["x-kubernetes-validations"] = [rule.schema() for rule in group.rules]
    return found


def _schema(kind: inspect.Type, *, defaults: bool) -> Schema:
    match kind:
        case inspect.Metadata(type=inner, extra_json_schema=more):
            found = _schema(inner, defaults=defaults)
            more = dict(more or {})
            rules = found.pop("x-kubernetes-validations", []) + more.pop("x-kubernetes-validations", [])
            found |= more
            if rules:
                found["x-kubernetes-validations"] = rules
            if found.pop("x-kubernetes-int-or-string", False):
                found = {"x-kubernetes-int-or-string": True, **found}
            return found
        case inspect.UnionType(types=types):
            kinds = [each for each in types if not isinstance(each, inspect.NoneType)]
            # `int | str` says what it is by x-kubernetes-int-or-string
            return _schema(kinds[0], defaults=defaults) if len(kinds) == 1 else {}
        case inspect.StructType(cls=cls):
            return group_schema(cast("type[Group]", cls), defaults=defaults)
        case inspect.ListType(item_type=item):
            return {"type": "array", "items": _schema(item, defaults=defaults), **_bounds(kind)}
        case inspect.DictType(value_type=value):
            return {
                "type": "object",
                "additionalProperties": _schema(value, defaults=defaults),
                **_bounds(kind),
            }
        case inspect.LiteralType(values=values):
            return {"type": "string", "enum": list(values)}
        case inspect.BoolType():
            return {"type": "boolean"}
        case inspect.IntType():
            return {"type": "integer", "format": "int64", **_bounds(kind)}
        case inspect.FloatType():
            return {"type": "number", **_bounds(kind)}
        case inspect.StrType():
            return {"type": "string", **_bounds(kind)}
        case inspect.CustomType(cls=cls) if cls is Duration:
            return {"type": "string"}
    raise TypeError(f"no schema for {kind}")


def _described_first(schema: Schema) -> Schema:
    """As people read it, a plain default told in words: `kubectl explain` shows only the description."""
    text: str = schema.pop("description")
    default = schema.get("default")
    if isinstance(default, bool):
        text += f" Default: {str(default).lower()}."
    elif isinstance(default, int | float | str):
        text += f" Default: {default}."
    return {"description": text, **schema}


def _bounds(kind: Any) -> Schema:
    words = _ITEM_BOUNDS.get(type(kind), _BOUNDS)
    return {word: value for name, word in words.items() if (value := getattr(kind, name, None)) is not None}


def _default(field: inspect.Field) -> Any:
    """As it stands in the CRD; None where the field has none, or has nothing as its default."""
    if field.default_factory is not msgspec.NODEFAULT or field.default is msgspec.NODEFAULT:
        return None
    # Written out, though the fields of a group have defaults of their own: the API server holds a default
    # against the group's rules before it fills in what is below.
    return _without_blanks(msgspec.to_builtins(field.default, enc_hook=_encode))


def _without_blanks(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    kept = {name: _without_blanks(each) for name, each in value.items() if each is not None}
    return {name: each for name, each in kept.items() if each not in ([], {})}


def _encode(value: Any) -> Any:
    if isinstance(value, Duration):
        return str(value)
    raise TypeError(f"no default can be a {type(value).__name__}")


def _text(docstring: str | None) -> str:
    return " ".join((docstring or "").split())
