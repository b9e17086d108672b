"""What the agent says about itself: one line per event, a name and fields, on standard error."""

import logging
import sys

_logger = logging.getLogger("devcluster.agent")


def set_up() -> None:
    """Send the agent's events to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    _logger.addHandler(handler)
    _logger.setLevel(logging.INFO)
    _logger.propagate = False


def _line(event: str, fields: dict[str, object]) -> str:
    return " ".join([event, *(f"{name}={value!r}" for name, value in fields.items())])


def info(event: str, **fields: object) -> None:
    """Something happened."""
    _logger.info("%s", _line(event, fields))


def warning(event: str, **fields: object) -> None:
    """Something went wrong and will be tried again or left out."""
    _logger.warning("%s", _line(event, fields))
