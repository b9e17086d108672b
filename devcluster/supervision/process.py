"""Processes that do not outlive the one that started them, and how to recognise one after the fact."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def die_with_parent(parent: int) -> Callable[[], None]:
    """What a child runs before its program: it will get SIGKILL when the *thread* that forked it ends.

    So fork from a thread that lasts as long as the process, the main thread.
    """

    def before_exec() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        # The parent may have died before the line above.
        if os.getppid() != parent:
            os._exit(1)

    return before_exec


def become_subreaper() -> None:
    """Orphans among this process's descendants become its children, so that none can slip away."""
    if _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def _stat_fields(pid: int) -> list[str]:
    # The second field is the program's name in parentheses and may hold anything, spaces and parentheses
    # included.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def start_time(pid: int) -> int | None:
    """In clock ticks since boot. With the pid it names a process for good: pids are used again."""
    try:
        fields = _stat_fields(pid)
    except (FileNotFoundError, ProcessLookupError):
        return None
    # A zombie is as good as gone.
    return None if fields[0] in "ZX" else int(fields[19])


def children(parent: int) -> list[int]:
    """The direct children, zombies included."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = _stat_fields(int(entry.name))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            # Gone since, or another user's on a machine that hides those.
            continue
        if int(fields[1]) == parent:
            found.append(int(entry.name))
    return found
