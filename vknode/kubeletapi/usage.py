"""What a node and its Pods use, as the kubelet API tells it, and who measures it.

Times are nanoseconds since the Unix epoch, CPU is nanoseconds of one core, memory and storage are
bytes. None: unknown, and then left out of every answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

ProbeType = Literal["Startup", "Readiness", "Liveness"]


@dataclass(frozen=True, slots=True)
class Usage:
    """Counters and gauges of one control group at one moment; CPU counts since its start."""

    at: int
    cpu: int
    working_set: int
    memory: int | None = None
    rss: int | None = None
    page_faults: int | None = None
    major_page_faults: int | None = None
    processes: int | None = None


@dataclass(frozen=True, slots=True)
class ContainerUsage:
    """One running container; its counters began with the instance, at `started`."""

    name: str
    usage: Usage
    started: int | None = None
    memory_limit: int | None = None
    root_bytes: int | None = None
    log_bytes: int | None = None
    root_inodes: int | None = None
    log_inodes: int | None = None


@dataclass(frozen=True, slots=True)
class VolumeUsage:
    """One volume as it was at `at`, and the size of the file system that holds it. `local`:
    it counts as the Pod's ephemeral storage."""

    name: str
    at: int
    local: bool = False
    used: int | None = None
    inodes_used: int | None = None
    capacity: int | None = None
    available: int | None = None
    inodes: int | None = None
    inodes_free: int | None = None


@dataclass(frozen=True, slots=True)
class ProbeCount:
    """Answers of one probe of one container. `buckets`: how many answers took at most as long as
    each of `PROBE_BOUNDS`, each counted once, and how many longer; `seconds` is their sum."""

    container: str
    type: ProbeType
    successful: int
    failed: int
    unknown: int
    buckets: Sequence[int]
    seconds: float


# Seconds; those of a kubelet's prober_probe_duration_seconds.
PROBE_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, slots=True)
class PodUsage:
    """One Pod. `usage` is that of the whole sandbox, None where only its containers are known.
    `files_bytes` and `files_inodes` are what is kept for it on disk beside logs and volumes."""

    namespace: str
    name: str
    uid: str
    containers: Sequence[ContainerUsage] = ()
    started: int | None = None
    usage: Usage | None = None
    memory_limit: int | None = None
    received: int | None = None
    sent: int | None = None
    probes: Sequence[ProbeCount] = ()
    volumes: Sequence[VolumeUsage] = ()
    files_bytes: int | None = None
    files_inodes: int | None = None


@dataclass(frozen=True, slots=True)
class NodeUsage:
    """One measurement of all Pods of a node. `living` are the UIDs of all its Pods, also of those
    that were not measured; the capacities are the cell's."""

    node: str
    at: int
    pods: Sequence[PodUsage] = ()
    living: frozenset[str] = frozenset()
    memory_capacity: int | None = None
    storage_capacity: int | None = None


@dataclass(frozen=True, slots=True)
class RunningPod:
    """A Pod that the pool has: its running containers by name, with their images, and how many of
    its containers have ended."""

    namespace: str
    name: str
    uid: str
    images: Mapping[str, str]
    exited: int = 0


class NodeBackend(Protocol):
    """What is asked about a node as a whole; the composition root has it."""

    def nodes(self) -> Sequence[str]:
        """Our nodes, in the order of their names."""

    def has_node(self, node: str) -> bool:
        """Whether it is one of them."""

    async def measure(self, node: str) -> NodeUsage:
        """One question to the node's pool. Raises `BackendError`."""

    def desired_pods(self, node: str) -> int:
        """Pods that are bound to the node."""

    def running_pods(self, node: str) -> Sequence[RunningPod]:
        """Those whose sandbox the pool has and that have not ended, from memory."""

    def kubelet_configuration(self, node: str) -> Mapping[str, Any]:
        """What of a KubeletConfiguration (kubelet.config.k8s.io/v1beta1) applies to the node.
        Raises `BackendError` if there is no such node (any more)."""
