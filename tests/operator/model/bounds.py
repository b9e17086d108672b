"""For each bound of the CRD's schema a value just outside of it, and what the API server says to that."""

import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Any

NO_BOUNDS = frozenset(
    {
        "additionalProperties",
        "anyOf",
        "default",
        "description",
        "format",
        "items",
        "properties",
        "type",
        "x-kubernetes-int-or-string",
        "x-kubernetes-list-map-keys",
        "x-kubernetes-list-type",
        "x-kubernetes-validations",
    }
)
"""Words of the schema that bound nothing by themselves. CEL rules have tests of their own."""
KEY = "cpu"
"""A key that every map of the spec takes."""

Schema = dict[str, Any]
Put = Callable[[Any], dict[str, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outside:
    """A WebSocketCluster with one value that is outside of one bound."""

    word: str
    """The bound's: `maxLength`."""
    path: str
    """The field, as the API server names it."""
    said: str
    """What it says behind that, in part."""
    obj: dict[str, Any]
    """Its `spec` or `status`."""


def outside(schema: Schema, part: str) -> Iterator[Outside]:
    """For each bound of a part, `spec` or `status`, of the CRD's schema."""
    yield from _outside(schema["properties"][part], part, lambda value: {part: value})


def _outside(schema: Schema, path: str, put: Put) -> Iterator[Outside]:
    for word in schema:
        for where, said, value in _beyond(schema, word):
            yield Outside(word=word, path=f"{path}{where}", said=said, obj=put(value))
    for name, below in schema.get("properties", {}).items():
        yield from _outside(below, f"{path}.{name}", _in_object(schema, name, put))
    if "items" in schema:
        yield from _outside(schema["items"], f"{path}[0]", lambda value: put([value]))
    if "additionalProperties" in schema:
        yield from _outside(schema["additionalProperties"], f"{path}.{KEY}", lambda value: put({KEY: value}))


def _in_object(schema: Schema, name: str, put: Put) -> Put:
    return lambda value: put({**_least(schema), name: value})


def _beyond(schema: Schema, word: str) -> Iterator[tuple[str, str, Any]]:
    """Where below the field, what is said of it, and the value."""
    bound = schema[word]
    match word:
        case "enum":
            yield "", "Unsupported value", "nonsense"
        case "minimum":
            yield "", f"should be greater than or equal to {bound}", bound - 1
        case "maximum":
            yield "", f"should be less than or equal to {bound}", bound + 1
        case "minLength":
            yield "", f"should be at least {bound} chars long", "a" * (bound - 1)
        case "maxLength":
            yield "", f"may not be more than {bound} bytes", "a" * (bound + 1)
        case "pattern":
            values = (text for text in (" ", "a b", "-") if not re.search(bound, text))
            yield "", "should match", next(values)
        case "minItems":
            yield "", f"should have at least {bound} items", [_least(schema["items"])] * (bound - 1)
        case "maxItems":
            items = [_least(schema["items"], number) for number in range(bound + 1)]
            yield "", f"must have at most {bound} items", items
        case "maxProperties":
            keys = [f"{KEY}{number}" for number in range(bound + 1)]
            yield (
                "",
                f"must have at most {bound} items",
                {key: _least(schema["additionalProperties"]) for key in keys},
            )
        case "required":
            whole = _least(schema)
            for name in bound:
                yield (
                    f".{name}",
                    "Required value",
                    {key: value for key, value in whole.items() if key != name},
                )
        case _ if word not in NO_BOUNDS:
            raise ValueError(f"{word} bounds something, and nothing is known to be outside of it")


def _least(schema: Schema, number: int = 0) -> Any:
    """A value of a type with what it must have; another one for another number, where it is a text."""
    if "enum" in schema:
        return schema["enum"][0]
    match schema.get("type"):
        case "object":
            return {name: _least(schema["properties"][name], number) for name in schema.get("required", ())}
        case "array":
            return [_least(schema["items"])] * schema.get("minItems", 0)
        case "integer" | "number":
            return schema["minimum"]
        case "boolean":
            return False
    return "2026-01-01T00:00:00Z" if schema.get("format") == "date-time" else f"a{number}"
