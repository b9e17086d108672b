"""What every pod of every cluster is started with, as `templates/` holds it: a difference rolls whole fleets.

Whoever means it to be different says so in docs/operator.md under "An upgrade" and writes the files anew:

    python -m tests.operator.engine.test_templates
"""

import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from tableforge_operator.decide.snapshot import Snapshot
from tests.operator.engine.differences import differences
from tests.operator.engine.operators import REPOSITORY
from tests.operator.engine.snapshots import at, settled

SAMPLES = sorted((REPOSITORY / "manifests" / "samples").glob("*.yaml"))
FOLDER = Path(__file__).parent / "templates"


def made_of(sample: Path) -> dict[str, Any]:
    """The pods' templates, and the configuration that they name by its hash; the version left out."""
    cluster = next(obj for obj in yaml.safe_load_all(sample.read_text()) if obj["kind"] == "WebSocketCluster")
    cluster["metadata"] |= {"namespace": "ns", "uid": "uid-1", "generation": 1}
    found = settled(Snapshot(cluster=cluster), now=at(0))
    parts = {
        f"{kind} {name}": obj["data"] if kind == "ConfigMap" else obj["spec"]["template"]
        for (kind, name), obj in sorted(found.children.items())
        if kind in ("Deployment", "StatefulSet") or (kind == "ConfigMap" and "-config-" in name)
    }
    text = re.sub(rf"(?<=:){re.escape(version('tableforge'))}\b", "VERSION", yaml.safe_dump(parts))
    made: dict[str, Any] = yaml.safe_load(text)
    return made


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.stem)
def test_pods_are_started_with_what_they_were_started_with(sample: Path) -> None:
    before = yaml.safe_load((FOLDER / sample.name).read_text())
    assert any(name.startswith("Deployment ") for name in before)
    assert any(name.startswith("ConfigMap ") for name in before)
    found = list(differences(before, made_of(sample)))
    assert not found, "\n".join(found) + "\neach of these replaces every pod when the operator is upgraded"


def test_there_is_no_template_of_a_sample_that_is_gone() -> None:
    assert {file.name for file in FOLDER.iterdir()} == {sample.name for sample in SAMPLES}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for file in SAMPLES:
        (FOLDER / file.name).write_text(yaml.safe_dump(made_of(file), sort_keys=True, width=110))
