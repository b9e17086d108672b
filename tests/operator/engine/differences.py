"""Where two objects differ, path by path."""

from collections.abc import Iterator
from typing import Any


def differences(before: Any, after: Any, path: str = "") -> Iterator[str]:
    """The paths of what was added (+), taken away (-) or changed (~), with the values."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in sorted(before.keys() | after.keys()):
            yield from _item(before, after, name, f"{path}.{name}" if path else str(name))
    elif isinstance(before, list) and isinstance(after, list):
        # Lists of Kubernetes objects are known by their elements' names where they have any.
        left, right = _named(before), _named(after)
        for name in sorted(left.keys() | right.keys()):
            yield from _item(left, right, name, f"{path}[{name}]")
    elif before != after:
        yield f"~ {path}: {before!r} → {after!r}"


def _item(before: dict[str, Any], after: dict[str, Any], name: str, path: str) -> Iterator[str]:
    if name not in before:
        yield f"+ {path}: {after[name]!r}"
    elif name not in after:
        yield f"- {path}: {before[name]!r}"
    else:
        yield from differences(before[name], after[name], path)


def _named(items: list[Any]) -> dict[str, Any]:
    if all(isinstance(item, dict) and "name" in item for item in items):
        return {str(item["name"]): item for item in items}
    return {str(index): item for index, item in enumerate(items)}
