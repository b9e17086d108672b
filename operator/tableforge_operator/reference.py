"""The table of fields in `docs/operator.md`: what each field of a WebSocketCluster changes, at what price.

`python -m tableforge_operator.reference` writes it; with `--check` it only says, by its exit code, whether it
is up to date. Nothing in it is told by hand that can be seen: a field is varied, the objects are rendered
with and without it, and what differs stands in the table.
"""

import argparse
import copy
import dataclasses
import functools
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from tableforge_operator.api import load, names
from tableforge_operator.api.quantities import Duration
from tableforge_operator.api.schema import group_schema
from tableforge_operator.api.spec import Spec
from tableforge_operator.decide import autoscaling
from tableforge_operator.decide.resources import children, derive
from tableforge_operator.decide.resources.floor import Floor
from tableforge_operator.decide.resources.passwords import WINDOW
from tableforge_operator.decide.resources.surroundings import Surroundings

_ROOT: Final = Path(__file__).parents[2]
FILE: Final = _ROOT / "docs" / "operator.md"
TRIED: Final = _ROOT / "tests" / "operator" / "model" / "tried.toml"
"""Which test sees that a field acts. No test is shipped, and neither is what is said of them."""
BEGIN: Final = "<!-- Written by `make docs` from the model: edit that. -->"
END: Final = "<!-- The end of what `make docs` writes. -->"

_NAME: Final = "tables"
_HASHED: Final = re.compile(r"-config-[0-9a-f]{8}$")
_SURROUNDINGS: Final = Surroundings(absent_kinds=frozenset())

_AUTOSCALED: Final = {"autoscaling": {"enabled": True, "maxReplicas": 10}}
_CONNECTIONS: Final = 3000
"""Of a cluster that is autoscaled: four instances of the default, so that what moves the floor shows."""
_EXTERNAL: Final = {"host": "redis.example.com"}
_SENTINEL: Final = {
    "mode": "Sentinel",
    "sentinel": {"masterName": "primary", "addresses": ["sentinel.example.com"]},
}
_CLUSTER: Final = {"mode": "Cluster", "cluster": {"addresses": ["node.example.com"]}}

BESIDE: Final[Mapping[str, dict[str, Any]]] = {
    "auth.jwks.ca": {"auth": {"required": False, "jwks": {"url": "https://id.example.com/keys"}}},
    "autoscaling.": _AUTOSCALED,
    "ingress.": {"ingress": {"host": "tables.example.com"}},
    "monitoring.podMonitor.": {"monitoring": {"podMonitor": {"enabled": True}}},
    "monitoring.prometheusRule.": {"monitoring": {"prometheusRule": {"enabled": True}}},
    "redis.external.": {"redis": {"external": _EXTERNAL}},
    "redis.external.cluster.": {"redis": {"external": _CLUSTER}},
    "redis.external.mode": {"redis": {"external": _SENTINEL}},
    "redis.external.sentinel.": {"redis": {"external": _SENTINEL}},
    "redis.external.tls.": {"redis": {"external": {**_EXTERNAL, "tls": {}}}},
    "routing.": {"routing": {"mode": "Gateway", "gateway": {"parentRefs": [{"name": "public"}]}}},
    "routing.mode": {"routing": {"gateway": {"parentRefs": [{"name": "public"}]}}},
    "service.loadBalancer": {"service": {"type": "LoadBalancer"}},
    "service.externalTrafficPolicy": {"service": {"type": "LoadBalancer"}},
    "service.nodePort": {"service": {"type": "NodePort"}},
    "websocket.tls.minVersion": {"websocket": {"tls": {"secretName": "certificate"}}},
}
"""What a field needs beside it to mean anything, by the beginning of its path; the longest counts."""

EXAMPLES: Final[Mapping[str, Any]] = {
    "monitoring.memoryThreshold": "400Mi",
    "pod.resources.limits": {"cpu": "2"},
    "pod.resources.requests": {"cpu": "200m"},
    "redis.durability": "Memory",
    "redis.external.mode": "Cluster",
    "redis.managed.maxMemory": "300mb",
    "redis.managed.storage.size": "2Gi",
}
"""A value for fields where no word, or none that comes first, would do."""

DECIDED: Final[Mapping[str, str]] = {
    "clustering.enableLoadRebalancing": "which clients are made to move, and when",
    "clustering.maxMovesPerCycle": "which clients are made to move, and when",
    "clustering.moveCooldown": "which clients are made to move, and when",
    "clustering.rebalanceInterval": "which clients are made to move, and when",
    "clustering.rebalanceThreshold": "which clients are made to move, and when",
    "loadBalancing.scaleUpCooldown": "HorizontalPodAutoscaler `<name>`, as connections come",
    "redis.managed.passwordGeneration": "Secret `<name>-redis-…`, then Redis and the instances in turn",
    "rollout.strategy": "how the next change of the pods is carried out",
}
"""What fields change that act in the course of things, where the same spec renders the same objects."""

PRICES: Final[Mapping[str, str]] = {
    "redis.managed.passwordGeneration": "Redis restarts twice; new pods at generations "
    f"{', '.join(str(1 + WINDOW * times) for times in (1, 2, 3))} …"
}
"""What that means to pods that run, where it means something."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Field:
    """A row of the table."""

    path: str
    default: str
    changes: tuple[str, ...]
    """Objects, as they are written."""
    autoscaled: tuple[str, ...]
    """Those that it changes besides where the cluster is autoscaled."""
    price: str
    """What it means to pods that run."""
    test: str
    """Which test sees that it acts: file and name, as pytest takes them."""


def fields() -> list[Field]:
    """Every field, in the order of the spec. Raises ValueError for one that acts on nothing."""
    return [_field(path, schema) for path, schema in _leaves(group_schema(Spec), "")]


def _leaves(schema: Mapping[str, Any], path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, below in schema["properties"].items():
        here = f"{path}{name}"
        # A reference is one thing: a name without a key means nothing.
        if below.get("properties") and not name.endswith("Ref"):
            yield from _leaves(below, f"{here}.")
        else:
            yield here, below


def _field(path: str, schema: Mapping[str, Any]) -> Field:
    beside = max((prefix for prefix in BESIDE if path.startswith(prefix)), key=len, default="")
    before: dict[str, Any] = {"auth": {"required": False}, **copy.deepcopy(BESIDE.get(beside, {}))}
    after = copy.deepcopy(before)
    *groups, name = path.split(".")
    place = after
    for group in groups:
        place = place.setdefault(group, {})
    place[name] = EXAMPLES.get(path) or _other(schema, place.get(name, schema.get("default")))
    changed = _changes(_rendered(before), _rendered(after))
    objects, autoscaled = changed.objects, _autoscaled(before, after, changed)
    if (told := DECIDED.get(path)) is not None:
        if objects or autoscaled:
            raise ValueError(f"{path} changes {objects + autoscaled}: it need not be told in DECIDED")
        objects = (told,)
    elif not objects and not autoscaled:
        raise ValueError(
            f"{path} changes no object: give it in BESIDE what it needs, or tell in DECIDED what it does"
        )
    return Field(
        path=path,
        default=_default(schema),
        changes=objects,
        autoscaled=autoscaled,
        price=PRICES.get(path, changed.price),
        test=_test(path),
    )


def _autoscaled(before: dict[str, Any], after: dict[str, Any], changed: "_Changes") -> tuple[str, ...]:
    """What a change is to the objects of a cluster that is autoscaled, and to no other's."""
    if "autoscaling" in after:
        return ()
    found = _changes(_rendered({**before, **_AUTOSCALED}), _rendered({**after, **_AUTOSCALED}))
    return tuple(obj for obj in found.objects if obj not in changed.objects)


@functools.cache
def tried() -> Mapping[str, str]:
    """Tests by the beginning of the paths of the fields that they try."""
    return tomllib.loads(TRIED.read_text(encoding="utf-8"))


def _test(path: str) -> str:
    prefix = max((prefix for prefix in tried() if path.startswith(prefix)), key=len, default=None)
    if prefix is None:
        raise ValueError(f"nobody tries {path}: tell in {TRIED.name} which test sees that it acts")
    return tried()[prefix]


def _other(schema: Mapping[str, Any], than: Any) -> Any:
    """A value of the field that isn't `than`."""
    if "enum" in schema:
        return next(word for word in schema["enum"] if word != than)
    if schema.get("x-kubernetes-int-or-string"):
        return "1"
    match schema.get("type"):
        case "boolean":
            return not than
        case "integer" | "number":
            return schema["minimum"] if than != schema["minimum"] else schema["maximum"]
        case "array":
            return [_other(schema["items"], None)]
        case "object" if "properties" in schema:
            wanted = schema.get("required") or list(schema["properties"])[:1]
            return {name: _other(schema["properties"][name], None) for name in wanted}
        case "object":
            return {"example": _other(schema["additionalProperties"], None)}
    return _other_text(schema)


def _other_text(schema: Mapping[str, Any]) -> str:
    for rule in schema.get("x-kubernetes-validations", ()):
        if (
            bounds := re.search(r"duration\('(\w+)'\) && .* <= duration\('(\w+)'\)", rule["rule"])
        ) is not None:
            low, high = (Duration.parse(text) for text in bounds.groups())
            low = Duration(low.milliseconds + 1) if str(low) == schema.get("default") else low
            return str(min(low, high))
    return "example"


def _rendered(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    metadata = {"name": _NAME, "namespace": "games", "uid": "0d1e2f30-4152-6374-8596-a7b8c9dae0f1"}
    cluster = load({"metadata": metadata, "spec": spec})
    found = children(
        cluster,
        secrets=derive(b"k" * 32, cluster.uid),
        surroundings=_SURROUNDINGS,
        floor=Floor(replicas=autoscaling.limits(cluster).needed(_CONNECTIONS)),
    )
    return {
        f"{obj['kind']} `{_general(obj['metadata']['name'])}`": obj
        for obj in (*found.secrets, *found.applied)
    }


def _general(name: str) -> str:
    """A child's name, whatever the cluster is called and the environment contains."""
    return _HASHED.sub("-config-…", name.replace(_NAME, "<name>", 1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Changes:
    objects: tuple[str, ...]
    price: str


def _changes(before: dict[str, dict[str, Any]], after: dict[str, dict[str, Any]]) -> _Changes:
    differing = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    prices: list[str] = []
    objects: list[str] = []
    for key in differing:
        kind, one, other = key.split()[0], before.get(key), after.get(key)
        if kind in ("Deployment", "StatefulSet") and one is not None and other is not None:
            if _template(one) != _template(other):
                prices.append("new pods" if kind == "Deployment" else "Redis restarts")
            if _without_hashes(one) == _without_hashes(other):
                continue  # it only follows another object that says so itself
        objects.append(key)
    if not prices and any(key.endswith("-live`") for key in differing):
        prices.append("none: running pods take it on")
    return _Changes(objects=tuple(objects), price=", ".join(prices))


def _template(workload: dict[str, Any]) -> Any:
    return workload["spec"]["template"]


def _without_hashes(workload: dict[str, Any]) -> dict[str, Any]:
    bare = copy.deepcopy(workload)
    for metadata in (bare["metadata"], _template(bare)["metadata"]):
        for hashed in (names.CONFIG_HASH_ANNOTATION, names.TEMPLATE_HASH_ANNOTATION):
            metadata.get("annotations", {}).pop(hashed, None)
    for container in _template(bare)["spec"]["containers"]:
        container.pop("envFrom", None)
    return bare


def _default(schema: Mapping[str, Any]) -> str:
    """As the description tells it, which knows what holds where the CRD fills in nothing."""
    if isinstance(value := schema.get("default"), bool | int | float | str):
        return f"`{str(value).lower() if isinstance(value, bool) else value}`"
    found = re.search(r"Default: (.+?)\.(?: |$)", schema.get("description", ""))
    if found is None:
        return ""
    text = found[1]
    return f"`{text}`" if re.fullmatch(r"[^\s`]+", text) else text


def table() -> str:
    """The table, in Markdown."""
    lines = ["| field | default | what it changes | price | test |", "|---|---|---|---|---|"]
    lines += [f"| {' | '.join(map(_cell, _row(field)))} |" for field in fields()]
    return "\n".join(lines)


def _row(field: Field) -> tuple[str, ...]:
    return f"`{field.path}`", field.default, _what(field), field.price, f"`{field.test}`"


def _what(field: Field) -> str:
    changes = [", ".join(field.changes)] if field.changes else []
    changes += [f"where autoscaled: {', '.join(field.autoscaled)}"] if field.autoscaled else []
    return "; ".join(changes)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def written(page: str) -> str:
    """`page` with the table of now between its marks. Raises ValueError where it has none."""
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f"the marks of the table are missing: {BEGIN} and {END}")
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n\n{table()}\n\n{END}{tail}"


def main() -> int:
    """0 where the file was written or is up to date, 1 where it isn't."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the file differs")
    check = parser.parse_args().check
    page = FILE.read_text(encoding="utf-8")
    wanted = written(page)
    if page == wanted:
        return 0
    if check:
        sys.stderr.write(f"docs/{FILE.name} is not what the model says: run `make docs`.\n")
        return 1
    FILE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
