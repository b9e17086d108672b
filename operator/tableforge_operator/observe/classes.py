"""Which IngressClasses and StorageClasses exist, asked one by one: a user names one, if any."""

import asyncio
from typing import Final

from tableforge_operator.kube import ApiError, ForbiddenError, Kube, NotFoundError, Resource

LASTS_SECONDS: Final = 15.0
"""For how long an answer counts: so often it is asked for a class that may still come."""
REMEMBERED: Final = 1000


class Classes:
    """Those of one kind. Answers from memory where it has asked a moment ago."""

    def __init__(self, kube: Kube, resource: Resource) -> None:
        self._kube = kube
        self._resource = resource
        self._missing: dict[str, tuple[float, bool]] = {}

    async def is_missing(self, name: str) -> bool:
        """Whether a class is known not to exist; where that cannot be known, it is not."""
        now = asyncio.get_running_loop().time()
        asked_at, missing = self._missing.get(name, (now - LASTS_SECONDS, False))
        if now - asked_at < LASTS_SECONDS:
            return missing
        try:
            await self._kube.get(self._resource, None, name)
            missing = False
        except NotFoundError:
            missing = True
        except ForbiddenError:
            missing = False
        except ApiError:
            return missing
        if len(self._missing) >= REMEMBERED:
            self._missing.clear()
        self._missing[name] = (now, missing)
        return missing
