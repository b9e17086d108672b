"""What can go wrong, in words for the person at the keyboard."""

from __future__ import annotations


class DevclusterError(Exception):
    """Something the user has to know about; its text is complete and says what to do."""


class Unsupported(DevclusterError):
    """This machine cannot run a devcluster."""


class ToolchainUnavailable(DevclusterError):
    """A control-plane binary is neither here nor can it be built."""


class StartFailed(DevclusterError):
    """The cluster did not become ready; the text carries the end of the log that tells why."""


class ComponentDied(DevclusterError):
    """A component ended while the cluster was running; the text carries the end of its log."""
