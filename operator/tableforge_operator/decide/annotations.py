"""What people write on pods and on the WebSocketCluster, and what of it cannot be meant."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from tableforge_operator.api import WebSocketCluster, names
from tableforge_operator.decide.findings import legible
from tableforge_operator.decide.rebalancing.cycle import is_request
from tableforge_operator.decide.snapshot import Object

LEAST_WEIGHT: Final = 0.01
MOST_WEIGHT: Final = 1_000_000.0
SHOWN: Final = 40
"""Characters of a value that is shown: anybody may have written it, at any length."""

_FLAGS: Final = {"true": True, "false": False}
_OF_PODS: Final = frozenset(
    {
        names.CONFIG_HASH_ANNOTATION,
        names.CORDON_ANNOTATION,
        names.SHEDDING_ANNOTATION,
        names.WEIGHT_ANNOTATION,
    }
)
_OF_CLUSTERS: Final = frozenset({names.PAUSED_ANNOTATION, names.REBALANCE_ANNOTATION})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wishes:
    """What a person asks of one instance."""

    cordoned: bool = False
    weight: float | None = None
    """None: as the spec has it."""
    problems: tuple[str, ...] = ()
    """A sentence for each annotation that says nothing of use, and is passed over."""


def of_pod(pod: Object) -> Wishes:
    """What stands on an instance's pod."""
    given: Mapping[str, Any] = pod["metadata"].get("annotations") or {}
    mine = {name: str(value) for name, value in given.items() if name.startswith(f"{names.GROUP}/")}
    if mine.keys() <= {names.CONFIG_HASH_ANNOTATION, names.SHEDDING_ANNOTATION}:
        return _NONE
    where, problems = f"pod {pod['metadata']['name']}", []
    cordoned, text = False, mine.get(names.CORDON_ANNOTATION)
    if text is not None:
        cordoned = _FLAGS.get(text, False)
        if text not in _FLAGS:
            problems.append(_wrong(names.CORDON_ANNOTATION, where, text, 'write "true" or "false"'))
    weight, text = None, mine.get(names.WEIGHT_ANNOTATION)
    if text is not None and (weight := _weight(text)) is None:
        right = f"write a number from {LEAST_WEIGHT:g} to {MOST_WEIGHT:.0f}, such as 150"
        problems.append(_wrong(names.WEIGHT_ANNOTATION, where, text, right))
    problems += _unknown(mine, _OF_PODS, where)
    return Wishes(cordoned=cordoned, weight=weight, problems=tuple(problems))


def of_cluster(cluster: WebSocketCluster) -> tuple[str | None, tuple[str, ...]]:
    """The request to rebalance, where there is one, and what cannot be meant."""
    mine = {name: value for name, value in cluster.annotations.items() if name.startswith(f"{names.GROUP}/")}
    where, problems = f"WebSocketCluster {cluster.name}", []
    paused, request = mine.get(names.PAUSED_ANNOTATION), mine.get(names.REBALANCE_ANNOTATION)
    if paused is not None and paused not in _FLAGS:
        problems.append(_wrong(names.PAUSED_ANNOTATION, where, paused, 'write "true" or "false"'))
    if request is not None and not is_request(request):
        right = "write now, or now- and a word that wasn't there before, such as now-2"
        problems.append(_wrong(names.REBALANCE_ANNOTATION, where, request, right))
        request = None
    problems += _unknown(mine, _OF_CLUSTERS, where)
    return request, tuple(problems)


_NONE: Final = Wishes()


def _weight(text: str) -> float | None:
    if re.fullmatch(r"[0-9]{1,7}(\.[0-9]{1,6})?", text) is None:
        return None
    weight = float(text)
    return weight if LEAST_WEIGHT <= weight <= MOST_WEIGHT else None


def _wrong(annotation: str, where: str, value: str, right: str) -> str:
    shown = legible(value[: SHOWN + 1])
    shown = shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}…"
    return f'Annotation {annotation} of {where} is "{shown}", which is passed over: {right}.'


def _unknown(mine: Mapping[str, str], known: frozenset[str], where: str) -> Iterator[str]:
    right = ", ".join(sorted(known - {names.CONFIG_HASH_ANNOTATION, names.SHEDDING_ANNOTATION}))
    for name in sorted(mine.keys() - known):
        yield (
            f"Annotation {legible(name[: 2 * SHOWN])} of {where} is not known, and passed over: "
            f"remove it, or write one of {right}."
        )
