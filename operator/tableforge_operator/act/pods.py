"""Writes labels and annotations of pods: whether new clients come to them, and which of them go first."""

import asyncio
import dataclasses
import logging
from collections.abc import Iterable, Sequence

from tableforge_operator.act.memory import Memory
from tableforge_operator.decide.cordons import Marking
from tableforge_operator.decide.deletion_costs import ANNOTATION, Cost
from tableforge_operator.decide.findings import legible
from tableforge_operator.kube import (
    FIELD_MANAGER,
    PODS,
    ConflictError,
    ForbiddenError,
    InvalidError,
    Kube,
    NamespaceTerminatingError,
    NotFoundError,
    ServerError,
)
from tableforge_operator.observe.store import Store

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Written:
    """What became of some markings."""

    any: bool
    refused: str
    """Why the first that was refused was; empty where none was. Those after it are not tried."""


async def write_costs(kube: Kube, store: Store, costs: Sequence[Cost], *, memory: Memory) -> None:
    """Write what deletions cost. What is refused is remembered, not raised: the fleet may shrink without.

    Raises like `Children.apply`.
    """
    marked = (Marking(pod=cost.pod, annotations={ANNOTATION: str(cost.value)}) for cost in costs)
    written = await _write(kube, store, marked)
    now = asyncio.get_running_loop().time()
    if written.any:
        memory.costs_written_at = now
    if written.refused:
        memory.costs_failed_at = now


async def write_markings(kube: Kube, store: Store, markings: Sequence[Marking], *, memory: Memory) -> None:
    """Write markings. What is refused is remembered, not raised: clients are served all the same.

    Raises like `Children.apply`.
    """
    written = await _write(kube, store, markings)
    if written.any or written.refused:
        memory.markings_refused = written.refused
    if written.refused:
        memory.markings_failed_at = asyncio.get_running_loop().time()


async def _write(kube: Kube, store: Store, markings: Iterable[Marking]) -> _Written:
    """Write each, in one call."""
    any_written = False
    for marking in markings:
        metadata = marking.pod["metadata"]
        patch = {
            "metadata": {
                "uid": metadata["uid"],
                **({"labels": dict(marking.labels)} if marking.labels else {}),
                **({"annotations": dict(marking.annotations)} if marking.annotations else {}),
            }
        }
        try:
            after = await kube.merge(
                PODS, metadata["namespace"], metadata["name"], patch, field_manager=FIELD_MANAGER
            )
        except NotFoundError:
            # The watch will tell, and may be behind; until then there is nothing more to do about it.
            store.remove(marking.pod, notify=False)
            continue
        except ConflictError:
            continue  # somebody was faster, or it is another one by now: the next pass sees
        except (ForbiddenError, InvalidError, ServerError) as error:
            if isinstance(error, NamespaceTerminatingError):
                raise
            log.warning(
                "pod not written to",
                extra={"pod": f"{metadata['namespace']}/{metadata['name']}", "error": error.message},
            )
            return _Written(any=any_written, refused=legible(error.message).rstrip(".") or "no reason given")
        any_written = True
        store.put(after, notify=False)
    return _Written(any=any_written, refused="")
