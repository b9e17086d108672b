"""The supervisor: one process per cluster that starts its programs, watches them and ends them.

It is a process of its own so that nothing depends on how its owner lives or dies: the owner may block its
event loop, end by `kill -9`, or want the cluster to stay when it leaves. The chain has no gap:

- the owner ends in any way: its pidfd and the pipe to it tell the supervisor, which kills everything;
- the supervisor ends in any way: the kernel kills its children (PR_SET_PDEATHSIG), the agent's among them
theirs;
- a descendant is orphaned: it becomes the supervisor's child (PR_SET_CHILD_SUBREAPER) and ends with the rest;
- the machine pulled the plug on all of them: the next start finds the record without a living lock and
clears it.
"""
