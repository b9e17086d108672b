"""A secret from a file, or from a folder that holds several by number."""

from pathlib import Path

import pytest

from tableforge_dataplane.contract.settings import Secret


def test_a_file_is_one_secret(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("word\n")
    found = Secret(file=tmp_path / "password")
    assert (found.read(), found.number()) == ("word", 0)


def test_of_a_folder_the_highest_number_counts_as_soon_as_it_is_there(tmp_path: Path) -> None:
    found = Secret(file=tmp_path)
    assert (found.read(), found.number()) == (None, 0)
    (tmp_path / "9").write_text("ninth")
    assert (found.read(), found.number()) == ("ninth", 9)
    (tmp_path / "10").write_text("tenth")
    assert (found.read(), found.number()) == ("tenth", 10)


def test_what_is_no_number_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "..data").mkdir()
    (tmp_path / "..data" / "3").write_text("third")
    # as a kubelet projects it
    (tmp_path / "3").symlink_to("..data/3")
    (tmp_path / "notes.txt").write_text("no password")
    assert Secret(file=tmp_path).read() == "third"


def test_an_empty_one_is_none(tmp_path: Path) -> None:
    (tmp_path / "2").write_text("\n")
    assert Secret(file=tmp_path).read() is None


@pytest.mark.parametrize("name", ["missing", "missing/deeper"])
def test_a_place_that_is_not_there_yet(tmp_path: Path, name: str) -> None:
    found = Secret(file=tmp_path / name)
    assert (found.read(), found.number()) == (None, 0)
