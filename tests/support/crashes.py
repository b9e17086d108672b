"""A pytest plugin: a run in which a worker process crashed is no run, whatever was counted in it.

What the worker still had to do may never have been done, and what it crashed in may have passed in another.
"""

from typing import Any

import pytest

_crashed: list[str] = []


@pytest.hookimpl(optionalhook=True)
def pytest_handlecrashitem(crashitem: str, report: Any, sched: Any) -> None:
    """From xdist, where a worker has ended in the middle of a test."""
    _crashed.append(crashitem)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _crashed:
        print(f"\nA worker crashed in: {', '.join(_crashed)}")
        session.exitstatus = pytest.ExitCode.INTERNAL_ERROR
