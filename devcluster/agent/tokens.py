"""Service account tokens for pods: minted by the API server, renewed before they end."""

import dataclasses
import datetime as dt

from devcluster.agent import clock
from devcluster.agent.api import Api, ApiError, Object, path_of
from devcluster.agent.env import ConfigError

RENEW_AT = 0.8
"""The part of its lifetime after which a token is renewed, as a kubelet does."""
RENEW_AFTER = dt.timedelta(hours=24)


@dataclasses.dataclass(frozen=True)
class _Token:
    text: str = dataclasses.field(repr=False)
    renew_at: dt.datetime


class PodTokens:
    """The tokens of one pod, one per audience and lifetime."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._tokens: dict[tuple[str, int], _Token] = {}

    async def get(self, pod: Object, *, audience: str, lifetime_seconds: int) -> str:
        """A token bound to the pod that is good for a while yet. Raises ConfigError."""
        key = (audience, lifetime_seconds)
        known = self._tokens.get(key)
        if known is None or clock.now() >= known.renew_at:
            known = self._tokens[key] = await self._mint(pod, audience, lifetime_seconds)
        return known.text

    async def _mint(self, pod: Object, audience: str, lifetime_seconds: int) -> _Token:
        metadata = pod["metadata"]
        account = pod["spec"].get("serviceAccountName") or "default"
        spec: Object = {
            "expirationSeconds": lifetime_seconds,
            "boundObjectRef": {
                "apiVersion": "v1",
                "kind": "Pod",
                "name": metadata["name"],
                "uid": metadata["uid"],
            },
        }
        if audience:
            spec["audiences"] = [audience]
        try:
            answer = await self._api.create(
                path_of("serviceaccounts", metadata["namespace"], account, "token"),
                {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec},
            )
        except ApiError as error:
            raise ConfigError(f"failed to fetch token for service account {account!r}: {error}") from error
        now, expires = clock.now(), clock.parse(answer["status"]["expirationTimestamp"])
        return _Token(answer["status"]["token"], now + min((expires - now) * RENEW_AT, RENEW_AFTER))
