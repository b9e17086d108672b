"""Child processes that do not outlive their parent."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


def die_with(parent: int) -> Callable[[], None]:
    """For `preexec_fn`: the child gets SIGTERM when `parent` (our pid) ends, however that happens.

    Linux only; elsewhere a killed parent leaves the child behind.
    """
    library = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None

    def prepare() -> None:
        if library is None:
            return
        library.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)  # it ended before we asked to be told

    return prepare
