"""A pool's runtime over CRI v1: containerd 1.6 and later, CRI-O.

`CriRuntime` (runtime.py) is what the pool server uses. The modules around it each do
one thing: `client` the gRPC calls, `sandboxconfig` and `containerconfig` the pure
translation, `volumes` the files on disk, `events` who ended, `logformat` and `logfile`
logs, `spdy_client` and `sessions` exec, attach and port-forward.

What newer runtimes change: containerd 2.x and CRI-O answer GetContainerEvents, so
`events` needs nothing of containerd's own; they list handlers and their features in
Status, know stop signals (containerd 2.2, CRI-O 1.33) and read-only recursion. CRI-O
writes its logs and streams the same way; its sockets and cgroup driver differ only in
configuration.
"""
