"""All tests, as `make test` runs them: two files at a time, and then, alone, what failed beside others.

Tests here use real servers, clusters and clocks, on machines that others use too. What fails beside others
and passes alone is named at the end: the test is unsteady, or what it tests is, and wants mending before the
next change. What fails twice is red, as is a run in which more than `MOST_AGAIN` failed: nothing is run again
then. What needs the company of others to fail, or fails now and then, is told here and nowhere else.

    python -m tests [arguments of pytest]
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

import pytest

MOST_AGAIN: Final = 5
BESIDE_OTHERS: Final = ("-n", "2", "--durations=20", "--dist", "loadfile", "--no-loadscope-reorder")
ALONE: Final = ("--last-failed", "--last-failed-no-failures", "none")


def main(arguments: list[str]) -> int:
    """The exit code: pytest's."""
    with tempfile.TemporaryDirectory(prefix="tableforge-tests-") as folder:
        common = ("-p", "tests.support.crashes", "-o", f"cache_dir={folder}", *arguments)
        code = _pytest(*BESIDE_OTHERS, *common)
        record = Path(folder) / "v/cache/lastfailed"
        if code != pytest.ExitCode.TESTS_FAILED or not record.exists():
            return code
        failed = sorted(json.loads(record.read_text()))
        if not 0 < len(failed) <= MOST_AGAIN:
            return code
        names = "".join(f"\n  {name}" for name in failed)
        print(f"\n{len(failed)} failed beside others. Once more, alone:{names}\n", flush=True)
        report = Path(folder) / "report.xml"
        code = _pytest(*ALONE, *common, f"--junitxml={report}")
        if code == pytest.ExitCode.OK:
            counted = ET.parse(report).getroot()[0]
            if (counted.get("tests"), counted.get("skipped")) != (str(len(failed)), "0"):
                print("\nWhat failed beside others was not run alone, or skipped: that is no pass.")
                return pytest.ExitCode.TESTS_FAILED
            print(f"\nUnsteady, to be mended: failed beside others, and passed alone:{names}")
        return code


def _pytest(*arguments: str) -> int:
    with subprocess.Popen([sys.executable, "-m", "pytest", *arguments]) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue  # pytest has heard it, too, and cleans up


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
