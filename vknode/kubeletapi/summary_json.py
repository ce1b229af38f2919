"""A measurement as the Summary of k8s.io/kubelet pkg/apis/stats/v1alpha1 (types.go). Pure.

Left out is what a pool does not know, as the types allow: swap, pressure (PSI), the image file
system. `availableBytes` of memory is the limit less the working set, for the node its capacity.
The node's own numbers are sums over its Pods, since nothing else runs on it. What is a Pod's
`ephemeral-storage` is decided as by calcEphemeralStorage (pkg/kubelet/stats/helper.go).
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from vknode.kubeletapi.usage import ContainerUsage, NodeUsage, PodUsage, Usage, VolumeUsage
from vknode.kubeletapi.usage_history import SECOND, Cpu, Report

Json = dict[str, Any]
_INTERFACE = "eth0"  # the name of a Pod's one interface in its own network


def summary(report: Report, *, only_cpu_and_memory: bool = False) -> Json:
    """The whole answer of /stats/summary."""
    whole = not only_cpu_and_memory
    usage = report.usage
    pods = [pod for pod in usage.pods if pod.uid in report.pods]
    node: Json = {
        "nodeName": usage.node,
        "startTime": _time(report.since),
        "cpu": _cpu(report.node),
        "memory": _node_memory(usage, pods, report.node.at),
    }
    if whole:
        node |= _node_extras(usage, pods, report.node.at)
    return {"node": node, "pods": [_pod(pod, report, whole=whole) for pod in pods]}


def _time(nanoseconds: int) -> str:
    """As metav1.Time: whole seconds, UTC."""
    moment = datetime.fromtimestamp(nanoseconds // SECOND, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _known(**values: int | None) -> Json:
    return {name: value for name, value in values.items() if value is not None}


def _sum(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _left(limit: int | None, used: int) -> int | None:
    return None if limit is None else max(0, limit - used)


def _cpu(cpu: Cpu) -> Json:
    return {
        "time": _time(cpu.at),
        **_known(usageNanoCores=cpu.nano_cores, usageCoreNanoSeconds=cpu.total),
    }


def _memory(usage: Usage, limit: int | None) -> Json:
    return {
        "time": _time(usage.at),
        **_known(
            availableBytes=_left(limit, usage.working_set),
            usageBytes=usage.memory,
            workingSetBytes=usage.working_set,
            rssBytes=usage.rss,
            pageFaults=usage.page_faults,
            majorPageFaults=usage.major_page_faults,
        ),
    }


def memory_of(pod: PodUsage) -> Usage | None:
    """The whole Pod's, added up from its containers where the pool does not tell it."""
    if pod.usage is not None:
        return pod.usage
    parts = [one.usage for one in pod.containers]
    if not parts:
        return None
    return Usage(
        at=max(one.at for one in parts),
        cpu=sum(one.cpu for one in parts),
        working_set=sum(one.working_set for one in parts),
        memory=_sum(one.memory for one in parts),
        rss=_sum(one.rss for one in parts),
        page_faults=_sum(one.page_faults for one in parts),
        major_page_faults=_sum(one.major_page_faults for one in parts),
        processes=_sum(one.processes for one in parts),
    )


def node_working_set(usage: NodeUsage) -> int:
    return sum(memory.working_set for pod in usage.pods if (memory := memory_of(pod)) is not None)


def _node_memory(usage: NodeUsage, pods: list[PodUsage], at: int) -> Json:
    parts = [memory for pod in pods if (memory := memory_of(pod)) is not None]
    total = Usage(
        at=at,
        cpu=0,
        working_set=sum(one.working_set for one in parts),
        memory=_sum(one.memory for one in parts),
        rss=_sum(one.rss for one in parts),
        page_faults=_sum(one.page_faults for one in parts),
        major_page_faults=_sum(one.major_page_faults for one in parts),
    )
    return _memory(total, usage.memory_capacity)


def _storage(pod: PodUsage) -> Json:
    """What a Pod takes of local storage; empty where nothing is known."""
    local = [volume for volume in pod.volumes if volume.local]
    used = [size for one in pod.containers for size in (one.root_bytes, one.log_bytes)]
    inodes = [count for one in pod.containers for count in (one.root_inodes, one.log_inodes)]
    return _known(
        usedBytes=_sum([*used, *(one.used for one in local), pod.files_bytes]),
        inodesUsed=_sum([*inodes, *(one.inodes_used for one in local), pod.files_inodes]),
    )


def _node_extras(usage: NodeUsage, pods: list[PodUsage], at: int) -> Json:
    extras: Json = {}
    parts = [_storage(pod) for pod in pods]
    used = _sum(part.get("usedBytes") for part in parts)
    if used is not None or usage.storage_capacity is not None:
        used = used or 0
        extras["fs"] = {
            "time": _time(at),
            **_known(
                availableBytes=_left(usage.storage_capacity, used),
                capacityBytes=usage.storage_capacity,
                usedBytes=used,
                inodesUsed=_sum(part.get("inodesUsed") for part in parts),
            ),
        }
    received, sent = _sum(pod.received for pod in pods), _sum(pod.sent for pod in pods)
    if received is not None or sent is not None:
        extras["network"] = _network(at, received, sent)
    return extras


def _network(at: int, received: int | None, sent: int | None) -> Json:
    interface = {"name": _INTERFACE, **_known(rxBytes=received, txBytes=sent)}
    return {"time": _time(at), **interface, "interfaces": [interface]}


def _pod(pod: PodUsage, report: Report, *, whole: bool) -> Json:
    cpu = report.pods[pod.uid]
    memory = memory_of(pod)
    started = pod.started or min((c.started for c in pod.containers if c.started), default=cpu.at)
    result: Json = {
        "podRef": {"name": pod.name, "namespace": pod.namespace, "uid": pod.uid},
        "startTime": _time(started),
        "containers": [
            _container(one, report.containers[pod.uid, one.name], whole=whole)
            for one in pod.containers
        ],
        "cpu": _cpu(cpu),
    }
    if memory is not None:
        result["memory"] = _memory(memory, pod.memory_limit)
    if not whole:
        return result
    if pod.received is not None or pod.sent is not None:
        result["network"] = _network(cpu.at, pod.received, pod.sent)
    if pod.volumes:
        result["volume"] = [_volume(one) for one in pod.volumes]
    if storage := _storage(pod):
        result["ephemeral-storage"] = {"time": _time(cpu.at), **storage}
    if memory is not None and memory.processes is not None:
        result["process_stats"] = {"process_count": memory.processes}
    return result


def _container(one: ContainerUsage, cpu: Cpu, *, whole: bool) -> Json:
    result: Json = {
        "name": one.name,
        "startTime": _time(one.started or cpu.at),
        "cpu": _cpu(cpu),
        "memory": _memory(one.usage, one.memory_limit),
    }
    if whole:
        for key, size, inodes in (
            ("rootfs", one.root_bytes, one.root_inodes),
            ("logs", one.log_bytes, one.log_inodes),
        ):
            if used := _known(usedBytes=size, inodesUsed=inodes):
                result[key] = {"time": _time(cpu.at), **used}
    return result


def _volume(one: VolumeUsage) -> Json:
    return {
        "time": _time(one.at),
        **_known(
            availableBytes=one.available,
            capacityBytes=one.capacity,
            usedBytes=one.used,
            inodesFree=one.inodes_free,
            inodes=one.inodes,
            inodesUsed=one.inodes_used,
        ),
        "name": one.name,
    }
