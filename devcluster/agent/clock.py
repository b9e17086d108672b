"""Times as the Kubernetes API writes them."""

import datetime as dt


def now() -> dt.datetime:
    """The time, in UTC."""
    return dt.datetime.now(dt.UTC)


def stamp(moment: dt.datetime) -> str:
    """A `metav1.Time`: whole seconds."""
    return moment.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def micro_stamp(moment: dt.datetime) -> str:
    """A `metav1.MicroTime`."""
    return moment.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse(text: str) -> dt.datetime:
    """Read either."""
    return dt.datetime.fromisoformat(text)
