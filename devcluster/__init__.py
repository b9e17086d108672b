"""A Kubernetes cluster on a laptop without containers.

The real `etcd`, `kube-apiserver` and `kube-controller-manager`, and a node agent that runs pods as local
processes: real API semantics, real controllers, in seconds, as an ordinary user. It knows nothing of what is
run on it: a table says which local program stands for which image.

    async with Devcluster(images={"busybox": {"command": ["/bin/sh"]}}) as cluster:
        ... KUBECONFIG=cluster.kubeconfig ...

or from a shell, `python -m devcluster --help`. `Devcluster(agent=False)` is the API and its controllers
alone.
"""

from .cluster import Devcluster
from .errors import ComponentDied, DevclusterError, StartFailed, ToolchainUnavailable, Unsupported
from .network import Network

__all__ = [
    "ComponentDied",
    "Devcluster",
    "DevclusterError",
    "Network",
    "StartFailed",
    "ToolchainUnavailable",
    "Unsupported",
]
