"""What an operator can set for a CRI runtime."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class CriOptions:
    """Everything a `CriRuntime` needs to know.

    `endpoint` is the runtime's socket ("/run/containerd/containerd.sock" or
    "unix:///…"). `state_dir` holds volumes, logs and small files of the sandboxes,
    keyed by UID; it must be the same path for the runtime and survive a restart of the
    pool. `pool` marks what is ours in a runtime that others use too (a label value).
    """

    endpoint: str
    state_dir: Path
    pool: str
    # Host paths that Pods may mount, themselves and everything below.
    host_path_prefixes: tuple[str, ...] = ()
    # Kernel parameters beyond the kubelet's safe set; a "*" at the end is a prefix.
    unsafe_sysctls: tuple[str, ...] = ()
    # Names of tenant networks this runtime's CNI configuration serves.
    networks: tuple[str, ...] = ()
    allow_privileged: bool = False
    allow_host_namespaces: bool = False
    # Needs the portmap plugin in the CNI configuration.
    allow_host_ports: bool = False
    # For sandboxes and containers; empty: the runtime's own default.
    cgroup_parent: str = ""
    # Where memory-backed volumes live. None: `state_dir`/memory, a tmpfs of ours.
    memory_dir: Path | None = None
    # Seconds between health checks while nothing happens.
    status_interval: float = 10.0
    # Seconds between lists where the runtime tells no events at all.
    list_interval: float = 5.0
