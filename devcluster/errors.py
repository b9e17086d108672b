"""What can go wrong, in words for the person at the keyboard."""

from __future__ import annotations


class DevclusterError(Exception):
    """Something the user has to know about; its text is complete and says what to do."""


class Unsupported(DevclusterError):  # noqa: N818 -- reads as what happened
    """This machine cannot run a devcluster."""


class ToolchainUnavailable(DevclusterError):  # noqa: N818 -- reads as what happened
    """A control-plane binary is neither here nor can it be built."""


class StartFailed(DevclusterError):  # noqa: N818 -- reads as what happened
    """The cluster did not become ready; the text carries the end of the log that tells why."""


class ComponentDied(DevclusterError):  # noqa: N818 -- reads as what happened
    """A component ended while the cluster was running; the text carries the end of its log."""
