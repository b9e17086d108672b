"""Why a StatefulSet gets no pod: its controller says so in Events alone."""

import asyncio
from typing import Final

from tableforge_operator.kube import EVENTS, ApiError, Kube

LASTS_SECONDS: Final = 10.0
"""For how long an answer counts."""
REMEMBERED: Final = 1000


class PodRefusals:
    """Answers from memory where it has asked a moment ago."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        self._known: dict[str, tuple[float, str]] = {}

    async def of_stateful_set(self, namespace: str, uid: str) -> str:
        """The last refusal of a pod, in the API server's words; empty where none is known."""
        now = asyncio.get_running_loop().time()
        asked_at, words = self._known.get(uid, (now - LASTS_SECONDS, ""))
        if now - asked_at < LASTS_SECONDS:
            return words
        selector = f"involvedObject.kind=StatefulSet,involvedObject.uid={uid}"
        try:
            events, _ = await self._kube.list(EVENTS, namespace, field_selector=selector)
        except ApiError:
            events = []  # an operator of the next version under the rights of the last
        # Of claims there are such Events, too. Where the last pod could be made, what was before is over.
        said = [
            (event.get("lastTimestamp") or event["metadata"]["creationTimestamp"], event.get("message") or "")
            for event in events
            if (event.get("message") or "").lower().startswith("create pod ")
        ]
        words = max(said, default=("", ""))[1].partition(" failed error: ")[2]
        if len(self._known) >= REMEMBERED:
            self._known.clear()
        self._known[uid] = (now, words)
        return words
