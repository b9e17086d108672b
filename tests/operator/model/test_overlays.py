"""Every kustomization builds; the one for production does what it says, and the API server takes it."""

from importlib.metadata import version
from typing import Any

import pytest
import yaml

from tests.operator.model.conftest import ROOT, Kubectl

MANIFESTS = ROOT / "manifests"
FOLDERS = sorted(
    path.parent
    for path in MANIFESTS.rglob("kustomization.yaml")
    if yaml.safe_load(path.read_text())["kind"] == "Kustomization"
)
COMPONENTS = sorted((MANIFESTS / "components").glob("*/kustomization.yaml"))
PRODUCTION = MANIFESTS / "overlays" / "production"


def kustomize(folder: Any) -> dict[tuple[str, str], dict[str, Any]]:
    """What it builds, by kind and name."""
    kubectl = Kubectl(ROOT / "nowhere" / "kubeconfig", "none")
    built = list(yaml.safe_load_all(kubectl.ok("kustomize", str(folder), namespaced=False)))
    found = {(obj["kind"], obj["metadata"]["name"]): obj for obj in built}
    assert built
    return found


def selects(selector: dict[str, Any], pod: dict[str, Any]) -> bool:
    assert selector.keys() == {"matchLabels"}
    return bool(selector["matchLabels"].items() <= pod["metadata"]["labels"].items())


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_it_builds(folder):
    assert all(obj["apiVersion"] for obj in kustomize(folder).values())


def test_every_component_is_part_of_an_overlay():
    used = {
        (path.parent / component).resolve()
        for path in MANIFESTS.rglob("overlays/*/kustomization.yaml")
        for component in yaml.safe_load(path.read_text()).get("components", ())
    }
    assert used == {path.parent for path in COMPONENTS}


def test_production_is_the_base_with_more_operators_and_a_guard_around_them():
    base, production = kustomize(MANIFESTS), kustomize(PRODUCTION)
    name = "tableforge-operator"
    assert production.keys() - base.keys() == {("PodDisruptionBudget", name), ("NetworkPolicy", name)}
    assert {key for key in base if base[key] != production[key]} == {("Deployment", name)}
    deployment = production["Deployment", name]
    assert deployment["spec"]["replicas"] == 2
    pod = deployment["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    (of_base,) = base["Deployment", name]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == f"tableforge/operator:{version('tableforge')}"
    assert {**container, "resources": None} == {**of_base, "resources": None}
    assert selects(production["PodDisruptionBudget", name]["spec"]["selector"], pod)
    assert selects(production["NetworkPolicy", name]["spec"]["podSelector"], pod)
    (spread,) = pod["spec"]["topologySpreadConstraints"]
    assert selects(spread["labelSelector"], pod)
    (rule,) = production["NetworkPolicy", name]["spec"]["ingress"]
    assert {port["port"] for port in rule["ports"]} <= {port["name"] for port in container["ports"]}


@pytest.mark.cluster
def test_production_is_taken_by_the_api_server(crd_installed):
    kubectl = Kubectl(crd_installed.kubeconfig, "tableforge-system")
    # its namespace must be there for a dry run of the rest
    kubectl.ok("apply", "-k", str(MANIFESTS), namespaced=False)
    dry = ("apply", "--dry-run=server", "--validate=strict", "-k", str(PRODUCTION))
    said = kubectl(*dry, namespaced=False)
    assert (said.code, said.err) == (0, ""), said
    assert len(said.out.splitlines()) == len(kustomize(PRODUCTION))
