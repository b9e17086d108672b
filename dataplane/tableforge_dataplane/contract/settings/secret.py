"""A secret, by value or by file."""

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Secret:
    """A secret by value or by file, where the file wins. Its text never shows in `repr`.

    A file that is a folder holds several, by number. The highest counts, so that a new one can be put beside
    the old one before anybody asks for it.
    """

    value: str | None = dataclasses.field(default=None, repr=False)
    file: Path | None = None

    @property
    def configured(self) -> bool:
        """Whether a value or a file was named; the file need not exist yet."""
        return self.file is not None or self.value is not None

    def read(self) -> str | None:
        """The secret as it is now, less trailing newlines; None where it isn't there (yet) or is empty.

        Raises OSError where the file exists and cannot be read.
        """
        if self.file is None:
            return self.value or None
        try:
            file = self.file / str(self.number()) if self.file.is_dir() else self.file
            return file.read_text(encoding="utf-8").rstrip("\r\n") or None
        except FileNotFoundError:
            return None

    def number(self) -> int:
        """Which one of several counts now; 0 where there is none, or only one without a number."""
        if self.file is None or not self.file.is_dir():
            return 0
        return max((int(one.name) for one in self.file.iterdir() if one.name.isdecimal()), default=0)
