"""Whatever spec the API server takes, it takes the children that are made from it.

The specs are drawn from the CRD's own schema, so that a new field is among them from the day it is there. The
real API server judges both by dry runs: what it refuses as a cluster is no case, what it takes must come to
objects that it takes.
"""

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from devcluster.cluster import Devcluster
from tableforge_operator import api
from tableforge_operator.api.crd import FILE
from tableforge_operator.decide import resources
from tableforge_operator.kube import CLUSTERS, ApiError, InvalidError, Kube, _as_yaml, resource_of
from tests.operator.engine.operators import PatientKube

pytestmark = pytest.mark.cluster

NUMBER = 120
"""Specs that are drawn at once. Most break some rule."""
ROUNDS = 6
"""How often at most. What is drawn depends on the modules that were imported before, since Hypothesis takes
constants from them, so that once may leave a group of the spec out.
"""
FEWEST = 40
"""Clusters that there must be among them."""
AT_ONCE = 8
SECRETS = resources.derive(bytes(32), "uid-1")

_CRD = yaml.safe_load(FILE.read_text())
SPEC = _CRD["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]

_QUANTITIES = ("100m", "1", "1500m", "64Mi", "1Gi", "3.5Gi", "1e9", "0.1")
_PLAUSIBLE = (
    "5s", "1m", "250ms", "2h", "30s",
    "64Mi", "1Gi", "1024",
    "tables", "tables-x", "a.example", "https://a.example", "https://*.a.example", "wss://b.example:8443",
    "10.0.0.0/8", "2001:db8::/32", "192.0.2.7:6379", "/ws", "UTC", "HS256", "*", "A_NAME", "key.pem",
    "example.com/pool", "0 3 * * *", "x-forwarded-for", "{{ .Values.x }}", "$(POD_IP)", "%s", "\u202e",
    "x" * 63,
)  # fmt: skip
_WORDS = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40)
_ODD = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)


def _strings(schema: dict[str, Any]) -> st.SearchStrategy[str]:
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    least, most = schema.get("minLength", 0), schema.get("maxLength", 64)
    if "pattern" in schema:
        # `$` of Python lets a newline pass, that of the API server does not.
        pattern = re.compile(re.sub(r"\$$", r"\\Z", schema["pattern"]))
        drawn = st.from_regex(pattern, alphabet=st.characters(min_codepoint=32, max_codepoint=126))
        return drawn.map(lambda text: text[:most]).filter(lambda text: len(text) >= least)
    # What a text is for stands in a CEL rule: most of these fit some rule, the last two nearly none.
    fitting = [text for text in _PLAUSIBLE if least <= len(text) <= most]
    if not fitting:
        return st.just("x" * least)
    return st.one_of(*[st.sampled_from(fitting)] * 8, _WORDS, _ODD)


def values(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Anything that a schema allows, its CEL rules apart."""
    if schema.get("x-kubernetes-int-or-string"):
        return st.sampled_from(_QUANTITIES) | st.integers(1, 4)
    kind = schema.get("type")
    if kind == "string":
        return _strings(schema)
    if kind == "boolean":
        return st.booleans()
    if kind == "integer":
        low, high = schema.get("minimum", -(2**31)), schema.get("maximum", 2**31 - 1)
        return st.sampled_from([low, high]) | st.integers(low, high)
    if kind == "number":
        return st.floats(schema.get("minimum", 0), schema.get("maximum", 1e6), allow_nan=False)
    if kind == "array":
        most = min(schema.get("maxItems", 3), 3)
        return st.lists(values(schema["items"]), min_size=min(schema.get("minItems", 0), most), max_size=most)
    if kind == "object" and "additionalProperties" in schema:
        keys = st.from_regex(r"\A[a-z]([-a-z0-9]{0,8}[a-z0-9])?\Z")
        return st.dictionaries(keys, values(schema["additionalProperties"]), max_size=3)
    if kind == "object":
        return _groups(schema)
    raise AssertionError(f"no way to draw from {schema}")


@st.composite
def _groups(draw: st.DrawFn, schema: dict[str, Any]) -> dict[str, Any]:
    required = set(schema.get("required", ()))
    properties = schema.get("properties", {})
    optional = sorted(properties.keys() - required)
    # Few at a time: rules about fields that must not stand together would leave nothing of many.
    chosen = draw(st.lists(st.sampled_from(optional), max_size=2, unique=True)) if optional else []
    spec = {name: draw(values(properties[name])) for name in (*sorted(required), *chosen)}
    if schema is SPEC:
        # Else nearly every case would be the one that there is no key to check tokens with.
        spec["auth"] = {"required": False, **spec.get("auth", {})}
    return spec


def drawn(number: int, begin: int) -> list[dict[str, Any]]:
    """That many specs; others for another `begin`."""
    found: list[dict[str, Any]] = []

    @seed(begin)
    @settings(
        max_examples=number,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(values(SPEC))
    def draw(spec: dict[str, Any]) -> None:
        found.append(spec)

    draw()
    return found


@pytest.fixture
async def kube(installed: Devcluster) -> AsyncIterator[Kube]:
    async with await PatientKube.connect(installed.kubeconfig, calls_per_second=10_000) as kube:
        yield kube


async def dry_run(kube: Kube, verb: str, obj: dict[str, Any]) -> dict[str, Any]:
    """What the API server would make of an object. Raises what it would refuse it with."""
    resource = resource_of(obj["apiVersion"], obj["kind"])
    metadata = obj["metadata"]
    path = resource.path(metadata["namespace"], metadata["name"] if verb == "apply" else None)
    query = {"dryRun": "All", "fieldManager": "tableforge-operator", "fieldValidation": "Strict"}
    if verb == "create":
        return await kube._call(verb, resource, path, query=query, body=obj)
    query["force"] = "true"
    content_type = "application/apply-patch+yaml; charset=utf-8"
    return await kube._call(verb, resource, path, query=query, body=_as_yaml(obj), content_type=content_type)


async def test_what_is_taken_as_a_cluster_comes_to_children_that_are_taken(
    kube: Kube, namespace: str
) -> None:
    turn = asyncio.Semaphore(AT_ONCE)
    taken: list[dict[str, Any]] = []
    faults: list[str] = []
    refusals: list[str] = []

    async def judge(spec: dict[str, Any]) -> None:
        obj = {
            "apiVersion": CLUSTERS.api_version,
            "kind": CLUSTERS.kind,
            "metadata": {"name": "tables", "namespace": namespace},
            "spec": spec,
        }
        async with turn:
            try:
                cluster = await dry_run(kube, "create", obj)
            except InvalidError as error:
                refusals.append(str(error))
                return
            taken.append(spec)
            typed = api.load(cluster)
            children = resources.children(typed, secrets=SECRETS)
            for child in children.applied:
                if child["kind"] in resources.OPTIONAL_KINDS:
                    continue  # their CRDs are not there
                try:
                    await dry_run(kube, "apply", child)
                except ApiError as error:
                    faults.append(f"{child['kind']} {child['metadata']['name']} of {spec}: {error}")
            for secret in children.secrets:
                await dry_run(kube, "create", secret)
            again = resources.children(api.load(cluster), secrets=SECRETS)
            assert again == children, "the same cluster gives the same objects"

    fields: set[str] = set()
    for number in range(ROUNDS):
        async with asyncio.TaskGroup() as tasks:
            for spec in drawn(NUMBER, number):
                tasks.create_task(judge(spec))
        fields = {name for spec in taken for name in spec}
        if len(taken) >= FEWEST and fields >= SPEC["properties"].keys():
            break
    assert not faults, f"{len(faults)} of {len(taken)}: " + "\n".join(faults)
    print(f"{len(taken)} of {len(taken) + len(refusals)} are clusters")
    assert len(taken) >= FEWEST, f"too few to mean anything: {refusals}"
    assert fields >= SPEC["properties"].keys(), "every group was among them"
