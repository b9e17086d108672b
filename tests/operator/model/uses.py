"""Which fields of a spec a test sets, by its source: none is said to try what it never sets."""

import ast
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path


@functools.cache
def _definitions(file: Path) -> Mapping[str, ast.stmt]:
    """What stands at the top level of a module, by name."""
    found: dict[str, ast.stmt] = {}
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                found[node.name] = node
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                found[name] = node
    return found


def is_test(file: Path, name: str) -> bool:
    """Whether the file has a test of that name."""
    found = _definitions(file).get(name) if file.is_file() else None
    return name.startswith("test_") and isinstance(found, ast.FunctionDef | ast.AsyncFunctionDef)


def writes(file: Path, test: str, path: str) -> bool:
    """Whether the test, with what it uses of its own module, writes the path of a field down.

    As keys of a dict or names of arguments, one in the other. Where what a key holds is not written out in
    its place, as in `{"security": {"networkPolicy": fields}}`, the rest may stand elsewhere, as in
    `policy(clients=…)`.
    """
    pieces = _pieces(file, test)
    words = tuple(path.split("."))
    begins = {0}
    for begin in range(len(words)):
        if begin in begins:
            if words[begin:] in pieces:
                return True
            begins |= {end for end in range(begin + 1, len(words)) if pieces.get(words[begin:end])}
    return False


@functools.cache
def _pieces(file: Path, test: str) -> Mapping[tuple[str, ...], bool]:
    """The paths of keys that are written down, and whether something of what the last one holds is not."""
    known = _definitions(file)
    found: dict[tuple[str, ...], bool] = {}
    seen: set[str] = set()
    due = [test]
    while due:
        name = due.pop()
        if name in seen or name not in known:
            continue
        seen.add(name)
        for node in ast.walk(known[name]):
            for path, is_open in _written(node):
                found[path] = found.get(path, False) or is_open
            if isinstance(node, ast.Name | ast.arg):
                due.append(node.id if isinstance(node, ast.Name) else node.arg)
    return found


def _written(node: ast.AST) -> Iterator[tuple[tuple[str, ...], bool]]:
    match node:
        case ast.Dict():
            yield from _entries(node)
        case ast.keyword(arg=str(key), value=value):
            yield from _entry(key, value)


def _entries(node: ast.Dict) -> Iterator[tuple[tuple[str, ...], bool]]:
    for key, value in zip(node.keys, node.values, strict=True):
        if key is None and isinstance(value, ast.Dict):
            yield from _entries(value)
        elif isinstance(key, ast.Constant) and isinstance(key.value, str):
            yield from _entry(key.value, value)


def _entry(key: str, value: ast.expr) -> Iterator[tuple[tuple[str, ...], bool]]:
    yield (key,), _is_open(value)
    if isinstance(value, ast.Dict):
        yield from (((key, *path), is_open) for path, is_open in _entries(value))


def _is_open(value: ast.expr) -> bool:
    if not isinstance(value, ast.Dict):
        return not isinstance(value, ast.Constant)
    return any(key is None and _is_open(inner) for key, inner in zip(value.keys, value.values, strict=True))
