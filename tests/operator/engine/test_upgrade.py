"""What an older operator made is adopted, and its pods go on: `adopted/` holds clusters with their children.

A pod is replaced when its template changes, and only then; so the templates are what is compared. What may
differ stands below with its reason. Whoever adds to it has every fleet rolled by an upgrade.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from devcluster.cluster import Devcluster
from tableforge_operator.decide import resources
from tableforge_operator.kube import CLUSTERS, Kube, Object, resource_of
from tests.operator.engine.clusters import environments
from tests.operator.engine.differences import differences
from tests.operator.engine.mortal import MASTER_KEY, life
from tests.operator.engine.operators import kubectl

pytestmark = pytest.mark.cluster

FOLDER = Path(__file__).parent / "adopted"
NAMESPACE = "adopted"
UID = "00000000-0000-4000-8000-000000000000"
"""The clusters' there."""

INTENDED = {
    r"^~ Deployment .*config-hash": "one of the settings below",
    r"^~ Deployment .*envFrom": "each environment has a ConfigMap of its own, which old pods keep",
    r"^\+ ConfigMap \S+config.TABLEFORGE_REDIS_CLAIM": "two living clusters on one key prefix are refused",
    r"^\+ ConfigMap \S+config.TABLEFORGE_REDIS_MODE": "an external Redis may have sentinels or be a Cluster",
    r"^\+ ConfigMap \S+config.TABLEFORGE_LIVE_SETTINGS_FILE": "settings change without a new pod, by a file",
    r"^\+ Deployment .*\[live-settings\]": "that file",
    r"^\+ ConfigMap \S+config.TABLEFORGE_ROUTING_(MODE|WEIGHT)": "whether rooms have homes, and for how many",
    r"^\+ ConfigMap \S+config.TABLEFORGE_LOAD_BALANCING_STRATEGY": "which instance a new room's home is on",
    r"^\+ Deployment .*labels.tableforge.io/accepting": "the client Service leaves out who is cordoned",
    r"^- ConfigMap \S+config.(LOG_LEVEL|WS_MAX_CONNECTIONS|TABLEFORGE_SECURITY_MAX_\w+):": "they are in it",
    r"Probe.httpGet.port: 'ws' → 'internal'": "the clients' port may ask for TLS or a PROXY header",
    r"\S+REDIS_PASSWORD_FILE|\[redis-password\]": "its password can be replaced",
}
"""Patterns of what differs from what is in `adopted/`, and why.

It comes to one roll of the instances, together with the one for the new image, which every upgrade brings
where the spec names none. A managed Redis is not restarted.
"""


@pytest.fixture
def namespace(installed: Devcluster) -> Iterator[str]:
    """Its name is in what the configuration's hash is of."""
    kubectl(installed.kubeconfig, "create", "namespace", NAMESPACE)
    yield NAMESPACE
    kubectl(installed.kubeconfig, "delete", "namespace", NAMESPACE, most_seconds=240)


async def brought_back(kube: Kube, file: Path) -> list[Object]:
    """The cluster and its children as the older operator left them."""
    cluster, *children = yaml.safe_load_all(file.read_text())
    del cluster["metadata"]["uid"]
    made = await kube.apply(cluster, field_manager="user", force=True)
    uid = made["metadata"]["uid"]
    old, new = resources.derive(MASTER_KEY, UID), resources.derive(MASTER_KEY, uid)
    found = []
    for child in children:
        text = yaml.safe_dump(child).replace(UID, uid).replace(UID[:8], uid[:8])
        text = text.replace(old.fleet_generation, new.fleet_generation)
        found.append(await kube.apply(yaml.safe_load(text), force=True))
    return [made, *found]


def templates(objects: list[Object]) -> dict[str, Any]:
    """The pods' templates, and the configuration that a hash in them, or in its own name, is of."""
    return {
        re.sub(r"-config-[0-9a-f]{8}$", "-config", f"{obj['kind']} {obj['metadata']['name']}"): obj["data"]
        if "data" in obj
        else obj["spec"]["template"]
        for obj in objects
        if obj["kind"] in ("ConfigMap", "Deployment", "StatefulSet")
    }


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.yaml")), ids=lambda file: file.stem)
async def test_an_older_operators_children_are_adopted_and_their_templates_stay(
    kube: Kube, namespace: str, installed: Devcluster, file: Path
) -> None:
    cluster, *children = await brought_back(kube, file)
    before = templates(children)
    async with life(installed.kubeconfig, namespace) as operator:
        await operator.idle()
    after = []
    for child in children:
        metadata = child["metadata"]
        resource = resource_of(child["apiVersion"], child["kind"])
        if metadata["name"] == "tables-config":
            continue  # it goes with the pods that know it by that name
        live = await kube.get(resource, namespace, metadata["name"])
        assert live["metadata"]["uid"] == metadata["uid"], "adopted, not made anew"
        after.append(live)
    after += await environments(kube, namespace)
    found = [
        line
        for line in differences(before, templates(after))
        if not any(re.search(pattern, line) for pattern in INTENDED)
    ]
    assert not found, (
        "\n".join(found) + "\neach of these replaces every pod of every cluster when the operator is upgraded"
    )
    ready = await kube.get(CLUSTERS, namespace, cluster["metadata"]["name"])
    conditions = {found["type"]: found for found in ready["status"]["conditions"]}
    assert "Stalled" not in conditions, conditions
