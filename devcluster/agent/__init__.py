"""The node agent: runs the pods of a devcluster as local processes.

It stands for what a node has in a real cluster, kubelet, container runtime and kube-proxy, and for the
scheduler, since there is one node. It is a way to run pods without containers, not a container runtime:
images, network policies, resource limits and user ids are for a real cluster, nothing of them is enforced.
Every container runs on the host's own programs (an image table says which), in mount, PID and UTS namespaces
of its own, on its pod's own loopback address.

Not offered: exec and attach, port-forwarding over SPDY (pods are reachable directly), gRPC probes, UDP,
ephemeral containers. An ordinary user cannot serve a Service's port below 1024 (an Event says so).
"""
