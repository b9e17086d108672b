"""Why a StatefulSet gets no pod: its controller says so in Events alone."""

import asyncio
import re
from typing import Final

from tableforge_operator.kube import EVENTS, ApiError, ForbiddenError, Kube

LASTS_SECONDS: Final = 30.0
"""For how long a refusal counts: the controller tries again ever more rarely."""
NONE_LASTS_SECONDS: Final = 5.0
"""For how long it counts that there was none."""
PATIENCE_SECONDS: Final = 2.0
REMEMBERED: Final = 1000
MOST_CHARACTERS: Final = 1000
"""Of what was said: whoever may write Events may say anything."""

# Of claims that were made there are Events, too. Many that are alike come as one, with words in front.
_SAID: Final = re.compile(r"(?is)create Pod \S+ in StatefulSet \S+ (?:successful|failed error: (.*))")


class PodRefusals:
    """Answers from memory where it has asked a moment ago."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        self._known: dict[str, tuple[float, str]] = {}
        """Until when it is not asked again, and what was said, by uid."""

    async def of_stateful_set(self, namespace: str, uid: str) -> str:
        """The last refusal of a pod, in the API server's words; empty where none is known."""
        loop = asyncio.get_running_loop()
        until, words = self._known.get(uid, (0.0, ""))
        if loop.time() < until:
            return words
        selector = f"involvedObject.kind=StatefulSet,involvedObject.uid={uid}"
        try:
            events, _ = await self._kube.list(
                EVENTS, namespace, field_selector=selector, timeout_seconds=PATIENCE_SECONDS, one_page=True
            )
        except ForbiddenError:
            words = ""  # an operator of the next version under the rights of the last
        except ApiError:
            pass
        else:
            said = [
                (event.get("lastTimestamp") or event["metadata"]["creationTimestamp"], match[1] or "")
                for event in events
                if (match := _SAID.search(event.get("message") or "")) is not None
            ]
            # Where the last pod could be made, what was before is over.
            words = max(said, default=("", ""))[1][:MOST_CHARACTERS]
        if len(self._known) >= REMEMBERED:
            self._known.clear()
        self._known[uid] = (loop.time() + (LASTS_SECONDS if words else NONE_LASTS_SECONDS), words)
        return words
