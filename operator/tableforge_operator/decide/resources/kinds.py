"""The kinds of objects that a WebSocketCluster can own."""

import dataclasses
from typing import Final


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of object, as the API server addresses it. All are namespaced."""

    api_version: str
    kind: str
    plural: str

    @property
    def group(self) -> str:
        """Empty for the core group."""
        return self.api_version.rpartition("/")[0]

    @property
    def version(self) -> str:
        return self.api_version.rpartition("/")[2]


AUTOSCALER: Final = Kind("autoscaling/v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers")
CONFIG_MAP: Final = Kind("v1", "ConfigMap", "configmaps")
DEPLOYMENT: Final = Kind("apps/v1", "Deployment", "deployments")
DISRUPTION_BUDGET: Final = Kind("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets")
HTTP_ROUTE: Final = Kind("gateway.networking.k8s.io/v1", "HTTPRoute", "httproutes")
INGRESS: Final = Kind("networking.k8s.io/v1", "Ingress", "ingresses")
NETWORK_POLICY: Final = Kind("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies")
POD_MONITOR: Final = Kind("monitoring.coreos.com/v1", "PodMonitor", "podmonitors")
PROMETHEUS_RULE: Final = Kind("monitoring.coreos.com/v1", "PrometheusRule", "prometheusrules")
REPLICA_SET: Final = Kind("apps/v1", "ReplicaSet", "replicasets")
SECRET: Final = Kind("v1", "Secret", "secrets")
SERVICE: Final = Kind("v1", "Service", "services")
SERVICE_ACCOUNT: Final = Kind("v1", "ServiceAccount", "serviceaccounts")
STATEFUL_SET: Final = Kind("apps/v1", "StatefulSet", "statefulsets")
VOLUME_CLAIM: Final = Kind("v1", "PersistentVolumeClaim", "persistentvolumeclaims")

OWNED_KINDS: Final[tuple[Kind, ...]] = (
    AUTOSCALER,
    CONFIG_MAP,
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    HTTP_ROUTE,
    INGRESS,
    NETWORK_POLICY,
    POD_MONITOR,
    PROMETHEUS_RULE,
    SERVICE,
    SERVICE_ACCOUNT,
    STATEFUL_SET,
)
"""Every kind that is listed, watched and applied. Secrets are not among them: they are only ever created."""

OPTIONAL_KINDS: Final = frozenset({HTTP_ROUTE.kind, POD_MONITOR.kind, PROMETHEUS_RULE.kind})
"""Kinds of others' CRDs: where one is not installed, its objects are not made."""

WITHDRAWN_KINDS: Final = frozenset(
    {
        AUTOSCALER.kind,
        HTTP_ROUTE.kind,
        INGRESS.kind,
        NETWORK_POLICY.kind,
        POD_MONITOR.kind,
        PROMETHEUS_RULE.kind,
    }
)
"""Kinds whose objects are deleted when the spec no longer asks for them. All others go with the cluster."""
