"""All tests, as `make test` runs them: two files at a time, and then, alone, what failed beside others.

Tests here use real servers, clusters and clocks, on machines that others use too. What fails beside others
and passes alone is named at the end: the test is unsteady, or what it tests is, and wants mending. A defect
fails twice. Where more than `MOST_AGAIN` failed it was not the machine, and nothing is run again.

    python -m tests [arguments of pytest]
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import pytest

MOST_AGAIN: Final = 3
BESIDE_OTHERS: Final = ("-n", "2", "--durations=20", "--dist", "loadfile", "--no-loadscope-reorder")
ALONE: Final = ("--last-failed", "--last-failed-no-failures", "none")


def main(arguments: list[str]) -> int:
    """The exit code: pytest's."""
    with tempfile.TemporaryDirectory(prefix="tableforge-tests-") as cache:
        code = _pytest(cache, *BESIDE_OTHERS, *arguments)
        if code != pytest.ExitCode.TESTS_FAILED:
            return code
        failed = sorted(json.loads((Path(cache) / "v/cache/lastfailed").read_text()))
        if not 0 < len(failed) <= MOST_AGAIN:
            return code
        names = "".join(f"\n  {name}" for name in failed)
        print(f"\n{len(failed)} failed beside others. Once more, alone:{names}\n", flush=True)
        code = _pytest(cache, *ALONE, *arguments)
        if code == pytest.ExitCode.OK:
            print(f"\nUnsteady, to be mended: failed beside others, and passed alone:{names}")
        return code


def _pytest(cache: str, *arguments: str) -> int:
    command = [sys.executable, "-m", "pytest", "-o", f"cache_dir={cache}", *arguments]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
