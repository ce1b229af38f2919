"""Requests and limits as CRI's Linux resources; QoS and OOM score. Pure.

The numbers are the kubelet's (pkg/kubelet/cm/helpers_linux.go, pkg/kubelet/qos).
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vknode.pool import quantity
from vknode.pool.runtimes.cri.wire import cri_pb2
from vknode.pool.v1 import spec_pb2

CPU_PERIOD = 100_000  # microseconds
_MIN_SHARES, _MAX_SHARES = 2, 262_144
_MIN_QUOTA = 1_000
_GUARANTEED_OOM = -997
_BEST_EFFORT_OOM = 1_000
# Priority from which Kubernetes' own classes count as node-critical.
_NODE_CRITICAL = 2_000_001_000


class Qos(enum.Enum):
    GUARANTEED = "Guaranteed"
    BURSTABLE = "Burstable"
    BEST_EFFORT = "BestEffort"


def qos(spec: spec_pb2.SandboxSpec) -> Qos:
    """The Pod's class: only cpu and memory count, init containers too."""
    guaranteed, anything = True, False
    sources = [spec.resources] if pod_level(spec) else []
    if not sources:
        sources = [c.resources for c in (*spec.init_containers, *spec.containers)]
    for resources in sources:
        for name in ("cpu", "memory"):
            limit = _milli(resources.limits, name)
            request = _milli(resources.requests, name) or limit
            anything = anything or bool(limit or request)
            guaranteed = guaranteed and limit > 0 and request == limit
    if not anything:
        return Qos.BEST_EFFORT
    return Qos.GUARANTEED if guaranteed else Qos.BURSTABLE


def oom_score_adj(
    spec: spec_pb2.SandboxSpec, container: spec_pb2.Container, memory_capacity: int
) -> int:
    """Who is killed first when the cell's memory (`memory_capacity`, bytes) runs out."""
    if spec.priority >= _NODE_CRITICAL:
        return _GUARANTEED_OOM
    match qos(spec):
        case Qos.GUARANTEED:
            return _GUARANTEED_OOM
        case Qos.BEST_EFFORT:
            return _BEST_EFFORT_OOM
        case Qos.BURSTABLE:
            share = _rest_of_pod_memory(spec)
            request = _memory_request(container) + share
            score = 1000 - 1000 * request // max(memory_capacity, 1)
            sidecar = container.restart_policy == spec_pb2.RESTART_POLICY_ALWAYS and any(
                c.name == container.name for c in spec.init_containers
            )
            if sidecar and spec.containers:
                least = min(_memory_request(c) for c in spec.containers) + share
                score = min(score, 1000 - 1000 * least // max(memory_capacity, 1))
            return min(max(score, 1000 + _GUARANTEED_OOM), _BEST_EFFORT_OOM - 1)


def linux_resources(
    spec: spec_pb2.SandboxSpec, container: spec_pb2.Container, memory_capacity: int
) -> cri_pb2.LinuxContainerResources:
    """What the runtime is told for one container. Where it has no limit of its own, the
    whole Pod's is its limit, too."""
    pod = spec.resources.limits if pod_level(spec) else {}
    cpu_limit = _milli(container.resources.limits, "cpu") or _milli(pod, "cpu")
    if "cpu" in container.resources.requests:
        cpu_request = _milli(container.resources.requests, "cpu")
    else:
        cpu_request = cpu_limit
    memory = _value(container.resources.limits, "memory") or _value(pod, "memory")
    result = cri_pb2.LinuxContainerResources(
        cpu_period=CPU_PERIOD,
        cpu_shares=_shares(cpu_request),
        oom_score_adj=oom_score_adj(spec, container, memory_capacity),
    )
    if cpu_limit:
        result.cpu_quota = _quota(cpu_limit)
    if memory:
        result.memory_limit_in_bytes = memory
    return result


def resized(
    spec: spec_pb2.SandboxSpec, container: spec_pb2.Container, memory_capacity: int
) -> cri_pb2.LinuxContainerResources:
    """As `linux_resources`, for a running container: a limit that is gone is lifted, where
    0 would leave it as it was."""
    result = linux_resources(spec, container, memory_capacity)
    result.cpu_quota = result.cpu_quota or -1
    result.memory_limit_in_bytes = result.memory_limit_in_bytes or -1
    return result


@dataclass(frozen=True, slots=True)
class PodLimits:
    """What holds for a whole Pod. Shares as in cgroup v1, the quota in µs of each
    `CPU_PERIOD`, memory in bytes; None: not limited."""

    cpu_shares: int
    cpu_quota: int | None = None
    memory: int | None = None


def pod_limits(spec: spec_pb2.SandboxSpec) -> PodLimits:
    """What a kubelet gives the Pod's own cgroup (ResourceConfigForPod): its own limits where
    it has some, else the containers' together where each has one; overhead on top."""
    match qos(spec):
        case Qos.BEST_EFFORT:
            return PodLimits(_MIN_SHARES)
        case Qos.GUARANTEED:
            limited = {"cpu", "memory"}
        case Qos.BURSTABLE:
            everybody = (*spec.init_containers, *spec.containers)
            own = spec.resources.limits
            limited = {
                name
                for name in ("cpu", "memory")
                if _milli(own, name) or all(_milli(c.resources.limits, name) for c in everybody)
            }
    cpu = _of_pod(spec, "limits", "cpu", _milli) if "cpu" in limited else 0
    memory = _of_pod(spec, "limits", "memory", _value) if "memory" in limited else 0
    return PodLimits(
        cpu_shares=_shares(_of_pod(spec, "requests", "cpu", _milli)),
        cpu_quota=_quota(cpu) if cpu else None,
        memory=memory or None,
    )


def sandbox_resources(spec: spec_pb2.SandboxSpec) -> cri_pb2.LinuxContainerResources:
    """The Pod's resources for runtimes that size a sandbox by them (virtual machines);
    without the overhead, which CRI tells apart."""
    cpu_request = _sum(spec, "requests", "cpu", _milli)
    cpu_limit = _sum(spec, "limits", "cpu", _milli)
    result = cri_pb2.LinuxContainerResources(
        cpu_period=CPU_PERIOD,
        cpu_shares=_shares(cpu_request or cpu_limit),
        memory_limit_in_bytes=_sum(spec, "limits", "memory", _value),
    )
    if cpu_limit:
        result.cpu_quota = _quota(cpu_limit)
    return result


def overhead_resources(spec: spec_pb2.SandboxSpec) -> cri_pb2.LinuxContainerResources:
    """Requests and limits at once."""
    result = cri_pb2.LinuxContainerResources()
    if spec.overhead:
        cpu = _milli(spec.overhead, "cpu")
        result.cpu_period, result.cpu_shares = CPU_PERIOD, _shares(cpu)
        result.memory_limit_in_bytes = _value(spec.overhead, "memory")
        if cpu:
            result.cpu_quota = _quota(cpu)
    return result


def pod_level(spec: spec_pb2.SandboxSpec) -> bool:
    """Whether the Pod has resources of its own, beside its containers'."""
    return bool(spec.resources.requests or spec.resources.limits)


_Read = Callable[[Mapping[str, str], str], int]


def _of_pod(spec: spec_pb2.SandboxSpec, kind: str, name: str, read: _Read) -> int:
    """With the overhead."""
    amount = _sum(spec, kind, name, read)
    return amount + read(spec.overhead, name) if amount or kind == "requests" else 0


def _sum(spec: spec_pb2.SandboxSpec, kind: str, name: str, read: _Read) -> int:
    """The Pod's own where it says something, else its containers': those that run together,
    or more where an init container (beside the sidecars before it) needs it."""
    own = getattr(spec.resources, kind)
    if name in own:
        return read(own, name)
    return of_containers(spec, kind, name, read)


def of_containers(spec: spec_pb2.SandboxSpec, kind: str, name: str, read: _Read) -> int:
    """`kind` is "requests" or "limits"; containers without count as nothing."""
    running = sum(read(getattr(c.resources, kind), name) for c in spec.containers)
    sidecars = most = 0
    for container in spec.init_containers:
        amount = read(getattr(container.resources, kind), name)
        if container.restart_policy == spec_pb2.RESTART_POLICY_ALWAYS:
            running += amount
            sidecars += amount
            most = max(most, sidecars)
        else:
            most = max(most, sidecars + amount)
    return max(running, most)


def _rest_of_pod_memory(spec: spec_pb2.SandboxSpec) -> int:
    """Each container's share of what the Pod requests beyond its containers."""
    whole = _value(spec.resources.requests, "memory")
    if not whole:
        return 0
    rest = max(whole - of_containers(spec, "requests", "memory", _value), 0)
    return rest // (len(spec.containers) + len(spec.init_containers))


def _shares(milli: int) -> int:
    return min(max(milli * 1024 // 1000, _MIN_SHARES), _MAX_SHARES)


def _quota(milli: int) -> int:
    return max(milli * CPU_PERIOD // 1000, _MIN_QUOTA)


def _value(amounts: Mapping[str, str], name: str) -> int:
    text = amounts.get(name, "")
    return quantity.value(text) if text else 0


def _milli(amounts: Mapping[str, str], name: str) -> int:
    text = amounts.get(name, "")
    return quantity.milli(text) if text else 0


def _memory_request(container: spec_pb2.Container) -> int:
    text = container.resources.requests.get("memory", "") or container.resources.limits.get(
        "memory", ""
    )
    return quantity.value(text) if text else 0
