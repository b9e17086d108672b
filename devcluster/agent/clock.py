"""Times as the Kubernetes API writes them."""

import datetime


def now() -> datetime.datetime:
    """The time, in UTC."""
    return datetime.datetime.now(datetime.UTC)


def stamp(moment: datetime.datetime) -> str:
    """A `metav1.Time`: whole seconds."""
    return moment.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def micro_stamp(moment: datetime.datetime) -> str:
    """A `metav1.MicroTime`."""
    return moment.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse(text: str) -> datetime.datetime:
    """Read either."""
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))
