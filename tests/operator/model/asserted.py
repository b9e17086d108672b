"""What the tests of the CRD expect to be told where a spec is refused, by their source."""

import ast
from collections.abc import Iterator
from pathlib import Path


def texts() -> set[str]:
    """Expected parts of refusals: the last of each case, and what is looked for in what kubectl said."""
    files = Path(__file__).parent.glob("test_*.py")
    return {text for file in files for text in _texts(ast.parse(file.read_text(encoding="utf-8")))}


def _texts(module: ast.Module) -> Iterator[str]:
    for node in ast.walk(module):
        match node:
            case ast.Call(func=ast.Attribute(attr="param"), args=[_, *_, ast.Constant(value=str(text))]):
                yield text
            case ast.Tuple(elts=[_, *_, ast.Constant(value=str(text))]):
                yield text
            case ast.Compare(left=ast.Constant(value=str(text)), ops=[ast.In()]):
                yield text
            case ast.Assign(targets=[ast.Name(id="refused")], value=ast.Constant(value=str(text))):
                yield text
