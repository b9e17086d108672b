"""Writes labels and annotations of pods."""

import asyncio
import logging
from collections.abc import Sequence

from tableforge_operator.act.memory import Memory
from tableforge_operator.decide.cordons import Marking
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


async def write(kube: Kube, store: Store, markings: Sequence[Marking], *, memory: Memory) -> None:
    """Write each, in one call. What is refused is remembered, not raised: clients are served all the same.

    Raises like `Children.apply`.
    """
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
            memory.markings_failed_at = asyncio.get_running_loop().time()
            memory.markings_refused = legible(error.message).rstrip(".")
            log.warning(
                "pod not labelled",
                extra={"pod": f"{metadata['namespace']}/{metadata['name']}", "error": error.message},
            )
            return
        memory.markings_refused = ""
        store.put(after, notify=False)
