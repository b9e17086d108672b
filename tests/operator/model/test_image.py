"""What the operator's image is built from."""

import re
from pathlib import Path

import pytest

from tests.operator.model.conftest import ROOT


def pins(path: Path) -> dict[str, str]:
    return dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", path.read_text(), flags=re.MULTILINE))


@pytest.mark.parametrize("name", ["operator", "dataplane", "build"])
def test_images_install_the_versions_that_are_tested(name):
    everything = pins(ROOT / "requirements.lock")
    found = pins(ROOT / f"requirements-{name}.lock")
    assert found
    assert found.items() <= everything.items()


@pytest.mark.parametrize("name", ["operator", "dataplane", "build"])
def test_locks_have_hashes_and_no_addresses(name):
    text = (ROOT / f"requirements-{name}.lock").read_text()
    entries = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE)[1:]
    assert all("--hash=sha256:" in entry for entry in entries)
    assert "://" not in text


def test_each_image_installs_only_what_it_needs():
    assert {"kopf", "kubernetes", "cryptography"} <= set(pins(ROOT / "requirements-operator.lock"))
    assert not {"redis", "uvloop", "pytest", "mypy"} & set(pins(ROOT / "requirements-operator.lock"))
    assert not {"kopf", "kubernetes", "pytest", "mypy"} & set(pins(ROOT / "requirements-dataplane.lock"))


def test_the_operator_image_runs_unprivileged_and_without_a_shell():
    lines = (ROOT / "Dockerfile.operator").read_text().splitlines()
    final = lines[max(i for i, line in enumerate(lines) if line.startswith("FROM ")) :]
    text = "\n".join(final)
    assert re.search(r"^USER [1-9][0-9]*:[1-9][0-9]*$", text, flags=re.MULTILINE)
    assert re.search(r'^ENTRYPOINT \["tableforge-operator"\]$', text, flags=re.MULTILINE)
    assert re.search(r'^CMD \["run"\]$', text, flags=re.MULTILINE)
    assert 'CMD ["tableforge-operator", "healthcheck"]' in text
    assert not [line for line in final if line.startswith("RUN ")]
