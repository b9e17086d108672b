"""Where the programs of the control plane come from.

Each of `etcd`, `kube-apiserver` and `kube-controller-manager` is looked for in `$KUBEBUILDER_ASSETS`, then
in the per-user cache, and what is still missing is built once from `go.mod` in this folder, into the cache.
"""

from .locate import PROGRAMS, Binaries, cache_folder, find, obtain

__all__ = ["PROGRAMS", "Binaries", "cache_folder", "find", "obtain"]
