"""The API server: every call the operator makes to it, and nothing else.

Objects are plain dicts as the API server gives them. The transport, its TLS and its credentials are
`kubernetes.aio`'s; its generated methods are not used, because they know neither an apply of any kind of
object nor a watch that yields what was sent. Every call has a deadline, and every failure is one of the types
below.
"""

import asyncio
import contextlib
import contextvars
import dataclasses
import json
import os
import random
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio import client as k8s
from kubernetes.aio import config as k8s_config

from tableforge_operator import metrics
from tableforge_operator.pace import HOLD_LIMIT_SECONDS, Pace

FIELD_MANAGER: Final = "tableforge-operator"
STATUS_FIELD_MANAGER: Final = "tableforge-operator-status"

CALL_TIMEOUT_SECONDS: Final = 10.0
CALLS_PER_SECOND: Final = 100.0
"""What the operator asks of the API server at most, unless told otherwise; twice that at once."""
WATCH_SECONDS: Final = 300
"""How long the API server keeps a watch open; it is then taken up again where it ended."""
WATCH_IDLE_SECONDS: Final = 90.0
"""Bookmarks come about once a minute, but none where nothing of the kind has changed since the list: a watch
that says nothing for longer is on a dead connection, or there is nothing to say. It is taken up again."""
LINE_LIMIT_BYTES: Final = 16 * 1024 * 1024
"""The longest watch event read; etcd refuses objects above 1.5 MB."""

Object = dict[str, Any]


def _nobody_waits() -> bool:
    return False


somebody_waits: Final[contextvars.ContextVar[Callable[[], bool]]] = contextvars.ContextVar(
    "somebody_waits", default=_nobody_waits
)
"""Whether somebody waits for what a task does: its calls then go before the many for which nobody does."""


@dataclasses.dataclass(frozen=True, slots=True)
class Resource:
    """A kind of object and where the API server keeps it."""

    api_version: str
    kind: str
    plural: str

    def path(self, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
        """The URL path; `namespace` None means all namespaces (lists and watches) or no namespace."""
        root = "/api/" if "/" not in self.api_version else "/apis/"
        parts = [root + self.api_version]
        if namespace is not None:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        if name is not None:
            parts.append(name)
        if subresource is not None:
            parts.append(subresource)
        return "/".join(parts)


CLUSTERS: Final = Resource("tableforge.io/v1alpha1", "WebSocketCluster", "websocketclusters")
PODS: Final = Resource("v1", "Pod", "pods")
SECRETS: Final = Resource("v1", "Secret", "secrets")
CLAIMS: Final = Resource("v1", "PersistentVolumeClaim", "persistentvolumeclaims")
REPLICA_SETS: Final = Resource("apps/v1", "ReplicaSet", "replicasets")
EVENTS: Final = Resource("v1", "Event", "events")
INGRESS_CLASSES: Final = Resource("networking.k8s.io/v1", "IngressClass", "ingressclasses")
STORAGE_CLASSES: Final = Resource("storage.k8s.io/v1", "StorageClass", "storageclasses")
LEASES: Final = Resource("coordination.k8s.io/v1", "Lease", "leases")

_RESOURCES: Final = (
    CLUSTERS,
    PODS,
    SECRETS,
    CLAIMS,
    EVENTS,
    LEASES,
    Resource("v1", "Service", "services"),
    Resource("v1", "ConfigMap", "configmaps"),
    Resource("v1", "ServiceAccount", "serviceaccounts"),
    Resource("apps/v1", "Deployment", "deployments"),
    REPLICA_SETS,
    Resource("apps/v1", "StatefulSet", "statefulsets"),
    Resource("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets"),
    Resource("autoscaling/v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers"),
    Resource("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies"),
    Resource("networking.k8s.io/v1", "Ingress", "ingresses"),
    Resource("gateway.networking.k8s.io/v1", "HTTPRoute", "httproutes"),
    Resource("monitoring.coreos.com/v1", "PodMonitor", "podmonitors"),
    Resource("monitoring.coreos.com/v1", "PrometheusRule", "prometheusrules"),
)
_BY_KIND: Final[Mapping[tuple[str, str], Resource]] = {(r.api_version, r.kind): r for r in _RESOURCES}


def resource_of(api_version: str, kind: str) -> Resource:
    """The resource of a kind. Raises KeyError for a kind the operator doesn't deal in."""
    return _BY_KIND[api_version, kind]


@dataclasses.dataclass(frozen=True, slots=True)
class WatchEvent:
    """One line of a watch: ADDED, MODIFIED, DELETED or BOOKMARK, and the object."""

    type: str
    object: Object


class ApiError(Exception):
    """The API server refused a call or did not answer. `status` is 0 where no answer came."""

    def __init__(self, message: str, *, status: int = 0, reason: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.reason = reason


class UnreachableError(ApiError):
    """No answer: the connection failed, broke, or the deadline passed."""


class NotFoundError(ApiError):
    """404: the object, or the whole kind, does not exist."""


class ConflictError(ApiError):
    """409: a precondition (uid, resourceVersion, field ownership) did not hold."""


class AlreadyExistsError(ConflictError):
    """409 on a create: something has the name."""


class UnauthorizedError(ApiError):
    """401: the credentials are not accepted."""


class ForbiddenError(ApiError):
    """403: RBAC, a quota or an admission policy says no."""


class NamespaceTerminatingError(ForbiddenError):
    """403 because the namespace is being deleted: nothing can be created in it any more."""


class GoneError(ApiError):
    """410: the resource version is too old; list anew."""


class InvalidError(ApiError):
    """400 or 422: the API server does not accept the object. The message names the field."""


class TooManyRequestsError(ApiError):
    """429, or 503 with Retry-After: come back in `retry_after_seconds`."""

    def __init__(self, message: str, *, status: int, reason: str, retry_after_seconds: float) -> None:
        super().__init__(message, status=status, reason=reason)
        self.retry_after_seconds = retry_after_seconds


class ServerError(ApiError):
    """Any other failure of the API server; a retry may help."""


class Kube:
    """One API server. Use it as an async context manager, or `close` it."""

    def __init__(
        self, configuration: k8s.Configuration, *, calls_per_second: float = CALLS_PER_SECOND
    ) -> None:
        # Watches hold a connection each for minutes; a limit would let them starve every other call.
        configuration.connection_pool_maxsize = 0
        configuration.retries = None
        self.configuration = configuration
        self._pace = Pace(per_second=calls_per_second, burst=max(1, round(2 * calls_per_second)))
        self._client = k8s.ApiClient(configuration)
        self._client.user_agent = f"tableforge-operator/{version('tableforge')}"

    @classmethod
    async def connect(
        cls, kubeconfig: Path | None = None, *, calls_per_second: float = CALLS_PER_SECOND
    ) -> Self:
        """Read the credentials: of `kubeconfig`, or of the pod this process runs in.

        Raises `ConfigException` of `kubernetes.aio` or OSError where there are none that can be used.
        """
        configuration = k8s.Configuration()
        if kubeconfig is not None:
            _must_exist(kubeconfig)
            await k8s_config.load_kube_config(config_file=str(kubeconfig), client_configuration=configuration)
        else:
            # Reads the token again every minute: kubelets replace it before it expires.
            k8s_config.load_incluster_config(client_configuration=configuration)
        return cls(configuration, calls_per_second=calls_per_second)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every connection."""
        await self._client.close()

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Object:
        """Read one object, as it is now. `namespace` is None for a kind that has none."""
        return await self._call("get", resource, resource.path(namespace, name))

    async def list(
        self,
        resource: Resource,
        namespace: str | None,
        *,
        label_selector: str = "",
        field_selector: str = "",
        timeout_seconds: float = 60.0,
        one_page: bool = False,
    ) -> tuple[list[Object], str]:
        """All objects, and the resource version from which a watch goes on. Reads page by page.

        With `one_page` the first 500 at most.
        """
        items: list[Object] = []
        query = {"limit": "500"}
        if label_selector:
            query["labelSelector"] = label_selector
        if field_selector:
            query["fieldSelector"] = field_selector
        async with _deadline(timeout_seconds):
            while True:
                page = await self._call("list", resource, resource.path(namespace), query=query)
                # Items of a list come without their kind.
                kind = {"apiVersion": resource.api_version, "kind": resource.kind}
                items += [{**kind, **item} for item in page.get("items") or ()]
                token = page["metadata"].get("continue")
                if not token or one_page:
                    return items, page["metadata"].get("resourceVersion", "")
                query["continue"] = token

    async def watch(
        self,
        resource: Resource,
        namespace: str | None,
        *,
        resource_version: str,
        label_selector: str = "",
    ) -> AsyncIterator[WatchEvent]:
        """What changes after `resource_version`, until the API server ends the watch or is silent for long.

        Raises GoneError where the version is too old, UnreachableError where the connection breaks.
        """
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(int(WATCH_SECONDS * random.uniform(0.8, 1.2))),  # noqa: S311
        }
        if label_selector:
            query["labelSelector"] = label_selector
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=CALL_TIMEOUT_SECONDS, sock_read=WATCH_IDLE_SECONDS
        )
        response = await self._send("watch", resource, "GET", resource.path(namespace), query, None, timeout)
        try:
            if response.status != 200:
                raise self._refusal(response, await _body(response))
            async for line in _lines(response):
                yield _watch_event(line)
        except aiohttp.SocketTimeoutError:
            return
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UnreachableError(f"the watch of {resource.plural} broke: {_describe(error)}") from error
        finally:
            response.close()

    async def apply(
        self,
        obj: Object,
        *,
        field_manager: str = FIELD_MANAGER,
        force: bool,
        subresource: str | None = None,
    ) -> Object:
        """Server-side apply with strict field validation; the object as it is afterwards.

        With `metadata.uid` in `obj` it applies to exactly that object and creates none (else ConflictError).
        """
        resource = resource_of(obj["apiVersion"], obj["kind"])
        metadata = obj["metadata"]
        query = {
            "fieldManager": field_manager,
            "force": "true" if force else "false",
            "fieldValidation": "Strict",
        }
        path = resource.path(metadata["namespace"], metadata["name"], subresource)
        content_type = "application/apply-patch+yaml; charset=utf-8"
        return await self._call(
            "apply", resource, path, query=query, body=_as_yaml(obj), content_type=content_type
        )

    async def merge(
        self, resource: Resource, namespace: str, name: str, patch: Object, *, field_manager: str
    ) -> Object:
        """JSON merge patch: maps are merged, lists are replaced as a whole.

        Raises ConflictError where `metadata.uid` or `metadata.resourceVersion` in it are others.
        """
        query = {"fieldManager": field_manager, "fieldValidation": "Strict"}
        path = resource.path(namespace, name)
        content_type = "application/merge-patch+json"
        return await self._call("patch", resource, path, query=query, body=patch, content_type=content_type)

    async def create(self, obj: Object) -> Object:
        """Create an object. Raises AlreadyExistsError where the name is taken."""
        resource = resource_of(obj["apiVersion"], obj["kind"])
        query = {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict"}
        path = resource.path(obj["metadata"]["namespace"])
        return await self._call("create", resource, path, query=query, body=obj)

    async def replace(self, obj: Object, *, timeout_seconds: float = CALL_TIMEOUT_SECONDS) -> Object:
        """Replace an object. Raises ConflictError where `metadata.resourceVersion` is not the current one."""
        resource = resource_of(obj["apiVersion"], obj["kind"])
        metadata = obj["metadata"]
        path = resource.path(metadata["namespace"], metadata["name"])
        query = {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict"}
        return await self._call(
            "update", resource, path, query=query, body=obj, timeout_seconds=timeout_seconds
        )

    async def delete(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        *,
        uid: str,
        resource_version: str | None = None,
    ) -> None:
        """Delete exactly the object with this uid, its dependents in the background after it.

        Raises ConflictError where it is another one by now, or is not as it was at `resource_version`.
        """
        preconditions = {"uid": uid}
        if resource_version is not None:
            preconditions["resourceVersion"] = resource_version
        body = {"propagationPolicy": "Background", "preconditions": preconditions}
        await self._call("delete", resource, resource.path(namespace, name), body=body)

    async def authorization(self) -> str | None:
        """The current `Authorization` header, for a client that brings its own transport."""
        settings = await self.configuration.auth_settings()
        bearer = settings.get("BearerToken")
        return None if bearer is None else str(bearer["value"])

    async def _call(
        self,
        verb: str,
        resource: Resource,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Object | str | None = None,
        content_type: str = "application/json",
        timeout_seconds: float = CALL_TIMEOUT_SECONDS,
    ) -> Object:
        method = _METHODS[verb]
        timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        response = await self._send(verb, resource, method, path, query or {}, body, timeout, content_type)
        try:
            text = await _body(response)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UnreachableError(f"{verb} {path}: the answer broke off: {_describe(error)}") from error
        finally:
            response.release()
        if response.status >= 400:
            raise self._refusal(response, text)
        answer: Object = json.loads(text)
        return answer

    async def _send(
        self,
        verb: str,
        resource: Resource,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Object | str | None,
        timeout: aiohttp.ClientTimeout,
        content_type: str = "application/json",
    ) -> aiohttp.ClientResponse:
        url = self.configuration.host + path + ("?" + urlencode(query) if query else "")
        headers = {
            "Accept": "application/json",
            "Content-Type": content_type,
            "User-Agent": self._client.user_agent,
        }
        # A lease that expires because we save calls costs more than it saves.
        if resource is not LEASES:
            metrics.API_WAIT_SECONDS.inc(await self._pace.wait(urgent=somebody_waits.get()()))
        code = 0
        started = time.monotonic()
        try:
            await self._client.update_params_for_auth(
                headers, [], ["BearerToken"], path, method, None, request_auth=None
            )
            answer = await self._client.rest_client.request(
                method, url, headers=headers, body=body, _request_timeout=timeout
            )
            response: aiohttp.ClientResponse = answer.response
            code = response.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UnreachableError(f"{verb} {path}: {_describe(error)}") from error
        finally:
            metrics.API_CALLS.labels(verb, resource.plural, str(code)).inc()
            if verb in _WRITES:
                metrics.API_WRITES.labels(verb, resource.plural, str(code)).inc()
            metrics.API_SECONDS.labels(verb).observe(time.monotonic() - started)
        return response

    def _refusal(self, response: aiohttp.ClientResponse, text: bytes) -> ApiError:
        error = _error(response, text)
        if isinstance(error, TooManyRequestsError):
            # It counts all that comes from us: going on with something else would only prolong it.
            self._pace.hold(error.retry_after_seconds)
        return error


def _must_exist(kubeconfig: Path) -> None:
    # It may name several files, as $KUBECONFIG does; the loader says nothing of those that are missing.
    if not any(Path(part).is_file() for part in str(kubeconfig).split(os.pathsep)):
        raise FileNotFoundError(f"there is no kubeconfig {kubeconfig}")


def _as_yaml(obj: Object) -> str:
    """JSON that is YAML too, which knows no pairs of surrogates: what JSON writes as one stands as it is."""
    text = json.dumps(obj, ensure_ascii=False)
    return _NOT_ASCII.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


_NOT_ASCII: Final = re.compile("[\x7f-\uffff]")
"""Some of them end a line of YAML, some it does not take at all; as an escape it takes each."""


_METHODS: Final[Mapping[str, str]] = {
    "get": "GET",
    "list": "GET",
    "apply": "PATCH",
    "patch": "PATCH",
    "create": "POST",
    "update": "PUT",
    "delete": "DELETE",
}
_WRITES: Final = frozenset({"apply", "patch", "create", "update", "delete"})


@contextlib.asynccontextmanager
async def _deadline(seconds: float) -> AsyncIterator[None]:
    """`asyncio.timeout`, with UnreachableError for what it raises."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise UnreachableError(f"not done after {seconds:g} s") from error


async def _body(response: aiohttp.ClientResponse) -> bytes:
    return await response.read()


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    # Not readline(): its limit is the stream buffer's, which a large ConfigMap passes.
    pending = bytearray()
    async for chunk in response.content.iter_any():
        pending += chunk
        while (end := pending.find(b"\n")) >= 0:
            line = bytes(pending[:end])
            del pending[: end + 1]
            if line:
                yield line
        if len(pending) > LINE_LIMIT_BYTES:
            raise UnreachableError(f"a watch event is longer than {LINE_LIMIT_BYTES} bytes")


def _watch_event(line: bytes) -> WatchEvent:
    event = json.loads(line)
    obj: Object = event["object"]
    if event["type"] == "ERROR":
        status = int(obj.get("code", 500))
        kind = GoneError if status == 410 else ServerError
        raise kind(str(obj.get("message", "")), status=status, reason=str(obj.get("reason", "")))
    return WatchEvent(event["type"], obj)


def _error(response: aiohttp.ClientResponse, text: bytes) -> ApiError:
    status = response.status
    message, reason = text[:512].decode("utf-8", "replace"), response.reason or ""
    causes: tuple[Mapping[str, Any], ...] = ()
    try:
        answer = json.loads(text)
    except ValueError:
        answer = None
    if isinstance(answer, dict) and answer.get("kind") == "Status":
        message, reason = str(answer.get("message", "")), str(answer.get("reason", ""))
        causes = tuple((answer.get("details") or {}).get("causes") or ())
    if status == 429 or (status == 503 and "Retry-After" in response.headers):
        return TooManyRequestsError(
            message,
            status=status,
            reason=reason,
            retry_after_seconds=_seconds(response.headers.get("Retry-After")),
        )
    if status == 403 and any(cause.get("reason") == "NamespaceTerminating" for cause in causes):
        return NamespaceTerminatingError(message, status=status, reason=reason)
    if reason == "AlreadyExists":
        return AlreadyExistsError(message, status=status, reason=reason)
    if status == 422 and any(cause.get("field") == "metadata.uid" for cause in causes):
        # The precondition that the object is still the one it was.
        return ConflictError(message, status=status, reason=reason)
    # A strict apply with an unknown field is a 500 whose message says so.
    if status == 500 and ("field not declared in schema" in message or "typed patch object" in message):
        return InvalidError(message, status=status, reason=reason)
    kind = _KINDS.get(status, ServerError)
    return kind(message, status=status, reason=reason)


_KINDS: Final[Mapping[int, type[ApiError]]] = {
    400: InvalidError,
    401: UnauthorizedError,
    403: ForbiddenError,
    404: NotFoundError,
    409: ConflictError,
    410: GoneError,
    413: InvalidError,
    422: InvalidError,
}


def _seconds(text: str | None) -> float:
    if text is None or not (text.isascii() and text.isdecimal()):
        return 1.0
    return min(float(text[:9]), HOLD_LIMIT_SECONDS)


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
