"""A secret that may come late and may change: a mounted file is read again when it is replaced."""

import time
from collections.abc import Callable

from tableforge_dataplane.contract.settings import Secret

CHECK_INTERVAL_SECONDS = 1.0
"""How often a file is looked at, at most: a flood of tokens costs one `stat` a second."""


class WatchedSecret:
    """What a `Secret` holds now.

    Kubernetes replaces a mounted Secret by swapping a symbolic link, so the file behind the path is another
    one afterwards: inode, size and modification time of what the path leads to are what is compared.
    """

    def __init__(
        self, secret: Secret, *, variable: str, purpose: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`variable` is the setting's environment name; `purpose` completes "create the Secret that …"."""
        self._secret = secret
        self._variable = variable
        self._purpose = purpose
        self._clock = clock
        self._checked_at: float | None = None
        self._seen: tuple[int, int, int] | None = None
        self._value: str | None = secret.value or None
        self._problem: str | None = None
        if not secret.configured:
            self._problem = f"{variable} is not set: {purpose}"

    def current(self) -> str | None:
        """The secret as it is now, or None; `problem` then says why."""
        self._look()
        return self._value

    @property
    def problem(self) -> str | None:
        """One sentence about what is missing and what to create; None where the secret is there."""
        self._look()
        return self._problem

    def _look(self) -> None:
        file = self._secret.file
        if file is None:
            return
        now = self._clock()
        if self._checked_at is not None and now - self._checked_at < CHECK_INTERVAL_SECONDS:
            return
        self._checked_at = now
        try:
            status = file.stat()
            seen = (status.st_ino, status.st_mtime_ns, status.st_size)
            if seen == self._seen and self._problem is None:
                return
            value = self._secret.read()
        except FileNotFoundError:
            self._lose(f"{self._variable}_FILE={file} does not exist: {self._purpose}")
        except (OSError, UnicodeDecodeError) as error:
            what = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            self._lose(f"{self._variable}_FILE={file} cannot be read ({what}): {self._purpose}")
        else:
            if value is None:
                self._lose(f"{self._variable}_FILE={file} is empty: {self._purpose}")
            else:
                self._seen, self._value, self._problem = seen, value, None

    def _lose(self, problem: str) -> None:
        self._seen, self._value, self._problem = None, None, problem
