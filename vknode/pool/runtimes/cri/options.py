"""What an operator can set for a CRI runtime."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from vknode.pool.runtimes.cri.rotation import LogPolicy


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
    # Seconds that a start waits for such a path to be looked at: its file system may be dead.
    host_path_timeout: float = 30.0
    # Kernel parameters beyond the kubelet's safe set; a "*" at the end is a prefix.
    unsafe_sysctls: tuple[str, ...] = ()
    # Names of tenant networks this runtime's CNI configuration serves.
    networks: tuple[str, ...] = ()
    allow_privileged: bool = False
    allow_host_namespaces: bool = False
    # As with every kubelet. Where the CNI configuration maps no ports they are refused.
    allow_host_ports: bool = True
    # Folder of the seccomp profiles that Pods may name (Localhost). None: they may not.
    seccomp_dir: Path | None = None
    # The resolver configuration that the runtime gives to sandboxes of its own accord.
    resolv_conf: Path = Path("/etc/resolv.conf")
    # Below it each Pod gets a control group; empty: "/vknode/" and the pool's name. Where
    # the runtime leaves control groups to systemd, a slice; empty then: the runtime's own.
    cgroup_parent: str = ""
    # False, or where the machine does not let us: Pods have no control group of their own.
    pod_cgroups: bool = True
    # Bytes of memory that each cell has, by which OOM scores and the size of volumes in
    # memory are reckoned. 0: what the machine has.
    cell_memory: int = 0
    # Where memory-backed volumes live. None: `state_dir`/memory, a tmpfs of ours.
    memory_dir: Path | None = None
    # Seconds between health checks while nothing happens.
    status_interval: float = 10.0
    # Seconds between two measurements of a sandbox whose storage is limited.
    storage_interval: float = 10.0
    # Seconds that what a volume holds is told without being measured again.
    volume_age: float = 60.0
    # When container logs are rotated.
    logs: LogPolicy = field(default_factory=LogPolicy)
    # Seconds between lists where the runtime tells no events at all.
    list_interval: float = 5.0
