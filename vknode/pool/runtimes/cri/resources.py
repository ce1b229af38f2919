"""Requests and limits as CRI's Linux resources; QoS and OOM score. Pure.

The numbers are the kubelet's (pkg/kubelet/cm/helpers_linux.go, pkg/kubelet/qos).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

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
    sources = [spec.resources] if spec.HasField("resources") else []
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
            score = 1000 - 1000 * _memory_request(container) // max(memory_capacity, 1)
            sidecar = container.restart_policy == spec_pb2.RESTART_POLICY_ALWAYS and any(
                c.name == container.name for c in spec.init_containers
            )
            if sidecar and spec.containers:
                least = min(_memory_request(c) for c in spec.containers)
                score = min(score, 1000 - 1000 * least // max(memory_capacity, 1))
            return min(max(score, 1000 + _GUARANTEED_OOM), _BEST_EFFORT_OOM - 1)


def linux_resources(
    spec: spec_pb2.SandboxSpec, container: spec_pb2.Container, memory_capacity: int
) -> cri_pb2.LinuxContainerResources:
    """What the runtime is told for one container."""
    cpu_limit = _milli(container.resources.limits, "cpu")
    if "cpu" in container.resources.requests:
        cpu_request = _milli(container.resources.requests, "cpu")
    else:
        cpu_request = cpu_limit
    memory = container.resources.limits.get("memory", "")
    result = cri_pb2.LinuxContainerResources(
        cpu_period=CPU_PERIOD,
        cpu_shares=min(max(cpu_request * 1024 // 1000, _MIN_SHARES), _MAX_SHARES),
        oom_score_adj=oom_score_adj(spec, container, memory_capacity),
    )
    if cpu_limit:
        result.cpu_quota = max(cpu_limit * CPU_PERIOD // 1000, _MIN_QUOTA)
    if memory:
        result.memory_limit_in_bytes = quantity.value(memory)
    return result


def _milli(amounts: Mapping[str, str], name: str) -> int:
    text = amounts.get(name, "")
    return quantity.milli(text) if text else 0


def _memory_request(container: spec_pb2.Container) -> int:
    text = container.resources.requests.get("memory", "") or container.resources.limits.get(
        "memory", ""
    )
    return quantity.value(text) if text else 0
