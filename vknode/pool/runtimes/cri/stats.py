"""CRI's statistics as the pool's. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from vknode.pool.runtimes.cri import layout
from vknode.pool.runtimes.cri.diskusage import Used
from vknode.pool.runtimes.cri.wire import cri_pb2
from vknode.pool.v1 import stats_pb2


def usage(cpu: cri_pb2.CpuUsage, memory: cri_pb2.MemoryUsage) -> stats_pb2.Usage:
    result = stats_pb2.Usage(
        cpu_nanoseconds=cpu.usage_core_nano_seconds.value,
        memory_working_set_bytes=memory.working_set_bytes.value,
    )
    result.at.FromNanoseconds(cpu.timestamp or memory.timestamp)
    for name, source in (
        ("memory_usage_bytes", "usage_bytes"),
        ("memory_rss_bytes", "rss_bytes"),
        ("page_faults", "page_faults"),
        ("major_page_faults", "major_page_faults"),
    ):
        if memory.HasField(source):  # type: ignore[arg-type]  # a field name by variable
            setattr(result, name, getattr(memory, source).value)
    return result


@dataclass(slots=True)
class OnDisk:
    """What the runtime does not count: logs by container ID, a sandbox's own files and its
    volumes by UID. What is not known is not there."""

    logs: dict[str, Used] = field(default_factory=dict)
    files: dict[str, Used] = field(default_factory=dict)
    volumes: Mapping[str, Iterable[stats_pb2.VolumeStats]] = field(default_factory=dict)


def sandbox_stats(
    containers: Iterable[cri_pb2.ContainerStats],
    sandboxes: Mapping[str, cri_pb2.PodSandboxStats],
    started_at: Mapping[str, int],
    disk: OnDisk,
) -> list[stats_pb2.SandboxStats]:
    """One entry a UID. `sandboxes` by UID (empty where the runtime has none), start
    times in ns by container ID."""
    found: dict[str, stats_pb2.SandboxStats] = {}
    for item in containers:
        labels = item.attributes.labels
        uid = labels[layout.POD_UID]
        entry = found.get(uid)
        if entry is None:
            entry = found[uid] = stats_pb2.SandboxStats(
                uid=uid,
                namespace=labels.get(layout.POD_NAMESPACE, ""),
                name=labels.get(layout.POD_NAME, ""),
                cell=labels.get(layout.CELL, ""),
            )
            _add_sandbox(entry, sandboxes.get(uid))
            entry.volumes.extend(disk.volumes.get(uid, ()))
            if uid in disk.files:
                entry.files_bytes = disk.files[uid].bytes
                entry.files_inodes = disk.files[uid].inodes
        container = entry.containers.add(name=labels.get(layout.CONTAINER_NAME, ""))
        container.usage.CopyFrom(usage(item.cpu, item.memory))
        if item.writable_layer.HasField("used_bytes"):
            container.root_filesystem_bytes = item.writable_layer.used_bytes.value
        if item.writable_layer.HasField("inodes_used"):
            container.root_filesystem_inodes = item.writable_layer.inodes_used.value
        container_id = item.attributes.id
        if started_at.get(container_id):
            container.started_at.FromNanoseconds(started_at[container_id])
        if container_id in disk.logs:
            container.logs_bytes = disk.logs[container_id].bytes
            container.logs_inodes = disk.logs[container_id].inodes
    return list(found.values())


def _add_sandbox(entry: stats_pb2.SandboxStats, stats: cri_pb2.PodSandboxStats | None) -> None:
    if stats is None or not stats.HasField("linux"):
        return
    linux = stats.linux
    if linux.HasField("cpu"):
        entry.usage.CopyFrom(usage(linux.cpu, linux.memory))
        if linux.process.HasField("process_count"):
            entry.usage.processes = linux.process.process_count.value
    if linux.network.HasField("default_interface"):
        interface = linux.network.default_interface
        entry.network_receive_bytes = interface.rx_bytes.value
        entry.network_transmit_bytes = interface.tx_bytes.value
