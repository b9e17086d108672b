"""What the demo prints: chapters, commands as one would type them, and their own output."""

import sys
import time


class DemoError(RuntimeError):
    """What was to be shown did not happen; the message says what did."""


class Screen:
    """Prints in order, flushed, with colour only on a terminal."""

    def __init__(self) -> None:
        self._colour = sys.stdout.isatty()
        self._started = time.monotonic()
        self._chapter = 0

    def chapter(self, title: str) -> None:
        """Begin a chapter, with the seconds since the start."""
        self._chapter += 1
        elapsed = time.monotonic() - self._started
        self._print(f"\n{self._bold(f'{self._chapter}. {title}')}  [{elapsed:.0f} s]")

    def say(self, text: str) -> None:
        """A sentence of explanation."""
        self._print(f"   {text}")

    def command(self, words: list[str]) -> None:
        """A command, as one would type it."""
        self._print(f"   {self._bold('$ ' + ' '.join(words))}")

    def output(self, text: str) -> None:
        """What a command printed, untouched but for the indent and spaces at the end."""
        for line in text.rstrip("\n").splitlines():
            self._print(f"     {line}".rstrip())

    def elapsed_seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._started

    def _bold(self, text: str) -> str:
        return f"\x1b[1m{text}\x1b[0m" if self._colour else text

    @staticmethod
    def _print(text: str) -> None:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
