"""Writes the pods' deletion costs."""

import asyncio
import logging
from collections.abc import Sequence

from tableforge_operator.act.memory import Memory
from tableforge_operator.decide.deletion_costs import ANNOTATION, Cost
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


async def write(kube: Kube, store: Store, costs: Sequence[Cost], *, memory: Memory) -> None:
    """Write each, in one call. What is refused is remembered, not raised: the fleet may shrink without.

    Raises like `Children.apply`.
    """
    for cost in costs:
        metadata = cost.pod["metadata"]
        patch = {"metadata": {"uid": metadata["uid"], "annotations": {ANNOTATION: str(cost.value)}}}
        try:
            after = await kube.merge(
                PODS, metadata["namespace"], metadata["name"], patch, field_manager=FIELD_MANAGER
            )
        except (NotFoundError, ConflictError):
            continue  # it has gone, which the watch will tell
        except (ForbiddenError, InvalidError, ServerError) as error:
            if isinstance(error, NamespaceTerminatingError):
                raise
            memory.costs_failed_at = asyncio.get_running_loop().time()
            log.warning(
                "deletion cost not written",
                extra={"pod": f"{metadata['namespace']}/{metadata['name']}", "error": error.message},
            )
            return
        memory.costs_written_at = asyncio.get_running_loop().time()
        store.put(after, notify=False)
