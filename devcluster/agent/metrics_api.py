"""The resource metrics API (`metrics.k8s.io/v1beta1`): what `kubectl top` shows and autoscalers go by.

An aggregated API: the API server checks who asks and passes the question on, to the Service that the
APIService names. That one is an ExternalName with the node's address, where this server listens.
"""

import ssl
from collections.abc import Iterable, Iterator
from typing import Any

from aiohttp import web

from devcluster.agent import clock, selectors
from devcluster.agent.api import Api, ApiError, Object, path_of
from devcluster.agent.settings import AgentSettings
from devcluster.agent.usage import ContainerUsage, Usage, UsageSampler

GROUP = "metrics.k8s.io"
VERSION = "v1beta1"
API_VERSION = f"{GROUP}/{VERSION}"
ROOT = f"/apis/{API_VERSION}"
SERVICE_NAMESPACE = "kube-system"
SERVICE = "metrics"
SERVER_NAME = f"{SERVICE}.{SERVICE_NAMESPACE}.svc"
"""What the API server expects the certificate to be for."""
API_SERVICES = "/apis/apiregistration.k8s.io/v1/apiservices"


class MetricsServer:
    """Serves the API to the API server, which is known by its front proxy's certificate."""

    def __init__(self, settings: AgentSettings, sampler: UsageSampler) -> None:
        self._settings = settings
        self._sampler = sampler
        app = web.Application()
        app.router.add_get(ROOT, self._resources)
        app.router.add_get(f"{ROOT}/nodes", self._nodes)
        app.router.add_get(f"{ROOT}/nodes/{{name}}", self._node)
        app.router.add_get(f"{ROOT}/pods", self._pods)
        app.router.add_get(f"{ROOT}/namespaces/{{namespace}}/pods", self._pods)
        app.router.add_get(f"{ROOT}/namespaces/{{namespace}}/pods/{{name}}", self._pod)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5, handler_cancellation=True)

    async def start(self) -> int:
        """Listen on any port of the node's address; the port. Raises OSError."""
        settings = self._settings
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(settings.tls_cert, settings.tls_key)
        context.load_verify_locations(settings.front_proxy_ca)
        context.verify_mode = ssl.CERT_REQUIRED
        await self._runner.setup()
        await web.TCPSite(self._runner, settings.node_ip, 0, ssl_context=context).start()
        port: int = self._runner.addresses[0][1]
        return port

    async def stop(self) -> None:
        """Stop listening."""
        await self._runner.cleanup()

    async def _resources(self, _: web.Request) -> web.Response:
        def resource(name: str, kind: str, *, namespaced: bool) -> Object:
            return {
                "name": name,
                "singularName": "",
                "namespaced": namespaced,
                "kind": kind,
                "verbs": ["get", "list"],
            }

        return web.json_response(
            {
                "kind": "APIResourceList",
                "apiVersion": "v1",
                "groupVersion": API_VERSION,
                "resources": [
                    resource("nodes", "NodeMetrics", namespaced=False),
                    resource("pods", "PodMetrics", namespaced=True),
                ],
            }
        )

    async def _nodes(self, _: web.Request) -> web.Response:
        usage = self._sampler.latest
        nodes = [] if usage is None else [node_metrics(self._settings.node_name, usage)]
        return _answer("NodeMetricsList", nodes)

    async def _node(self, request: web.Request) -> web.Response:
        name, usage = request.match_info["name"], self._sampler.latest
        if usage is None or name != self._settings.node_name:
            return _not_found("nodes", name)
        return web.json_response(node_metrics(name, usage))

    async def _pods(self, request: web.Request) -> web.Response:
        try:
            selects = selectors.parse(request.query.get("labelSelector", ""))
        except ValueError as error:
            return _failure(400, "BadRequest", str(error))
        namespace = request.match_info.get("namespace")
        found = [
            metrics
            for metrics in pod_metrics(self._sampler.latest)
            if namespace in (None, metrics["metadata"]["namespace"])
            and selects(metrics["metadata"]["labels"])
        ]
        return _answer("PodMetricsList", found)

    async def _pod(self, request: web.Request) -> web.Response:
        namespace, name = request.match_info["namespace"], request.match_info["name"]
        for metrics in pod_metrics(self._sampler.latest):
            if (metrics["metadata"]["namespace"], metrics["metadata"]["name"]) == (namespace, name):
                return web.json_response(metrics)
        return _not_found("pods", f"{namespace}/{name}")


def pod_metrics(usage: Usage | None) -> Iterator[Object]:
    """A PodMetrics for each pod that something is known of."""
    by_pod: dict[str, list[ContainerUsage]] = {}
    for one in () if usage is None else usage.containers:
        by_pod.setdefault(one.pod["metadata"]["uid"], []).append(one)
    for containers in by_pod.values():
        assert usage is not None  # noqa: S101 -- where containers are from
        metadata = containers[0].pod["metadata"]
        yield {
            "kind": "PodMetrics",
            "apiVersion": API_VERSION,
            "metadata": {
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "creationTimestamp": clock.stamp(usage.at),
                "labels": metadata.get("labels") or {},
            },
            **_when(usage),
            "containers": [{"name": one.container, "usage": _amounts([one])} for one in containers],
        }


def node_metrics(name: str, usage: Usage) -> Object:
    """The NodeMetrics of the only node: what its pods use."""
    return {
        "kind": "NodeMetrics",
        "apiVersion": API_VERSION,
        "metadata": {"name": name, "creationTimestamp": clock.stamp(usage.at)},
        **_when(usage),
        "usage": _amounts(usage.containers),
    }


def _when(usage: Usage) -> dict[str, Any]:
    return {"timestamp": clock.stamp(usage.at), "window": f"{usage.window_seconds:.3f}s"}


def _amounts(containers: Iterable[ContainerUsage]) -> dict[str, str]:
    containers = list(containers)
    return {
        "cpu": f"{round(sum(one.cpu_cores for one in containers) * 1e9)}n",
        "memory": f"{sum(one.memory_bytes for one in containers) // 1024}Ki",
    }


def _answer(kind: str, items: list[Object]) -> web.Response:
    return web.json_response({"kind": kind, "apiVersion": API_VERSION, "metadata": {}, "items": items})


def _failure(code: int, reason: str, message: str) -> web.Response:
    body = {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "code": code,
        "reason": reason,
        "message": message,
    }
    return web.json_response(body, status=code)


def _not_found(resource: str, name: str) -> web.Response:
    return _failure(404, "NotFound", f'{resource}.{GROUP} "{name}" not found')


async def register(api: Api, *, node_ip: str, port: int) -> None:
    """Tell the API server where the metrics are. Raises ApiError.

    Not before the server listens: while an API that is registered does not answer, no namespace can be
    deleted, since nobody knows what is in it.
    """
    await _put(
        api,
        path_of("services", SERVICE_NAMESPACE),
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": SERVICE},
            # The API server looks at no endpoints for one of this type; those refuse loopback addresses.
            "spec": {"type": "ExternalName", "externalName": node_ip},
        },
    )
    await _put(
        api,
        API_SERVICES,
        {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": f"{VERSION}.{GROUP}"},
            "spec": {
                "group": GROUP,
                "version": VERSION,
                "groupPriorityMinimum": 100,
                "versionPriority": 100,
                "service": {"namespace": SERVICE_NAMESPACE, "name": SERVICE, "port": port},
                "caBundle": api.authority,
            },
        },
    )


async def _put(api: Api, path: str, body: Object) -> None:
    """Create an object, or make the one that is there like it."""
    try:
        await api.create(path, body)
    except ApiError as error:
        if error.status != 409:
            raise
        live = f"{path}/{body['metadata']['name']}"
        version = (await api.get(live))["metadata"]["resourceVersion"]
        metadata = {**body["metadata"], "resourceVersion": version}
        await api.replace(live, {**body, "metadata": metadata})
