"""What failed beside others is run once more, alone; a defect fails twice."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.__main__ import MOST_AGAIN

ROOT = Path(__file__).parents[2]

ONCE = """
from pathlib import Path

import pytest

@pytest.mark.parametrize("number", range({count}))
def test_only_the_second_time(number):
    there = Path(__file__).with_name(f"been here {{number}}")
    before, _ = there.exists(), there.touch()
    assert before
"""
NEVER = """
def test_never():
    assert False
"""
TORN = """
from pathlib import Path

import pytest

@pytest.fixture
def taken():
    yield
    there = Path(__file__).with_name("torn")
    before, _ = there.exists(), there.touch()
    assert before

def test_what_it_takes_does_not_go_the_first_time(taken):
    pass
"""
SKIPPED = """
from pathlib import Path

import pytest

def test_there_is_nothing_to_test_the_second_time():
    there = Path(__file__).with_name("been here")
    before, _ = there.exists(), there.touch()
    if before:
        pytest.skip("nothing to test")
    assert False
"""
CRASHED = """
import os
from pathlib import Path

def test_the_worker_dies_the_first_time():
    there = Path(__file__).with_name("died")
    before, _ = there.exists(), there.touch()
    if not before:
        os._exit(1)
"""
FINE = """
def test_fine():
    pass
"""


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("files", "code", "runs", "unsteady"),
    [
        pytest.param([FINE, ONCE.format(count=MOST_AGAIN)], 0, 2, MOST_AGAIN, id="passes alone"),
        pytest.param([ONCE.format(count=MOST_AGAIN + 1)], 1, 1, 0, id="too many"),
        pytest.param([TORN], 0, 2, 1, id="an error after the test"),
        pytest.param([ONCE.format(count=1), NEVER], 1, 2, 0, id="a defect, and one that passes alone"),
        pytest.param([SKIPPED], 1, 2, 0, id="skipped alone"),
        pytest.param([CRASHED, ONCE.format(count=1)], 3, 1, 0, id="a worker that crashed"),
        pytest.param([], 5, 1, 0, id="no tests"),
    ],
)
def test_what_failed_is_run_once_more(
    tmp_path: Path, files: list[str], code: int, runs: int, unsteady: int
) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    for number, text in enumerate(files):
        (tmp_path / f"test_{number}.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "tests", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == code, done.stdout
    assert done.stdout.count("test session starts") == runs, done.stdout
    _, _, named = done.stdout.partition("Unsteady, to be mended")
    assert sum("::" in line for line in named.splitlines()) == unsteady, named
