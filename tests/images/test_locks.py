"""What the images install: the versions that are tested, by hash, and nothing else."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def pins(path: Path) -> dict[str, str]:
    return dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", path.read_text(), flags=re.MULTILINE))


@pytest.mark.parametrize("name", ["operator", "dataplane", "build"])
def test_images_install_the_versions_that_are_tested(name: str) -> None:
    everything = pins(ROOT / "requirements.lock")
    found = pins(ROOT / f"requirements-{name}.lock")
    assert found
    assert found.items() <= everything.items()


@pytest.mark.parametrize("name", ["operator", "dataplane", "build"])
def test_locks_have_hashes_and_no_addresses(name: str) -> None:
    text = (ROOT / f"requirements-{name}.lock").read_text()
    entries = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE)[1:]
    assert all("--hash=sha256:" in entry for entry in entries)
    assert "://" not in text


def test_each_image_installs_only_what_it_needs() -> None:
    assert {"kopf", "kubernetes", "cryptography"} <= set(pins(ROOT / "requirements-operator.lock"))
    assert not {"redis", "uvloop", "pytest", "mypy"} & set(pins(ROOT / "requirements-operator.lock"))
    assert not {"kopf", "kubernetes", "pytest", "mypy"} & set(pins(ROOT / "requirements-dataplane.lock"))
