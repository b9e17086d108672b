"""A wall clock that a test sets, for processes of its own: their monotonic clock goes on as ever."""

from pathlib import Path

from tests import support
from tests.support.c_compiler import shared_library


class Clock:
    """`environ` is for the processes whose clock it is."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        library = directory / "clock.so"
        shared_library(Path(support.__file__).with_name("clock.c"), library)
        self._shift = directory / "shift"
        self.environ = {"LD_PRELOAD": str(library), "CLOCK_SHIFT": str(self._shift)}

    def jump(self, seconds: int) -> None:
        """From now on the clock is so far from the real one."""
        fresh = self._shift.with_suffix(".new")
        fresh.write_text(str(seconds))
        fresh.replace(self._shift)
