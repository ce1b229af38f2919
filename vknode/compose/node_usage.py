"""A pool's ListStats as the kubelet API's usage of one node. Pure.

Only Pods of ours on that node count, under the names that the API server has; what a pool tells of
another's sandbox, or of one whose Pod has gone, is left out. So is what it tells twice, which would
make the whole of a metrics page unreadable, and a time that cannot be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from vknode.kubeletapi import ContainerUsage, PodUsage, ProbeCount, ProbeType, Usage, VolumeUsage
from vknode.pool.v1 import stats_pb2, status_pb2
from vknode.translate.qos import pod_limits
from vknode.translate.quantity import Quantity
from vknode.translate.resources import allocated_pod

Json = dict[str, Any]
_PROBES: dict[int, ProbeType] = {
    stats_pb2.PROBE_TYPE_STARTUP: "Startup",
    stats_pb2.PROBE_TYPE_READINESS: "Readiness",
    stats_pb2.PROBE_TYPE_LIVENESS: "Liveness",
}
_BUCKETS = 12
_NANO = 1_000_000_000
_LATEST = 2**63  # nanoseconds: the year 2262


@dataclass(frozen=True, slots=True)
class OurPod:
    """A Pod as the agent knows it."""

    namespace: str
    name: str
    pod: Json
    sandbox: status_pb2.Sandbox | None


def whole_number(amounts: Mapping[str, str], name: str) -> int | None:
    """A quantity in bytes; None if it is not there or none."""
    try:
        return Quantity.parse(amounts[name]).nano // _NANO
    except (KeyError, ValueError):
        return None


def pods_usage(
    entries: Iterable[stats_pb2.SandboxStats], ours: Callable[[str], OurPod | None], now: int
) -> list[PodUsage]:
    """In the order of namespaces and names. `ours` by UID; None: not a Pod of that node. `now`
    (ns) stands for the time of a measurement that has none."""
    found: dict[str, PodUsage] = {}
    for entry in entries:
        pod = ours(entry.uid) if entry.uid not in found else None
        if pod is not None:
            found[entry.uid] = _pod(entry, pod, now)
    return sorted(found.values(), key=lambda pod: (pod.namespace, pod.name))


def _time(timestamp: Timestamp) -> int | None:
    nanoseconds = timestamp.seconds * _NANO + timestamp.nanos
    return nanoseconds if 0 < nanoseconds < _LATEST else None


def _pod(entry: stats_pb2.SandboxStats, our: OurPod, now: int) -> PodUsage:
    spec = allocated_pod(our.pod, our.sandbox)["spec"]
    limits = _limits(spec)
    sandbox = our.sandbox
    containers = {one.name: one for one in reversed(entry.containers)}
    probes = {(one.container, one.type): one for one in reversed(entry.probes)}
    return PodUsage(
        namespace=our.namespace,
        name=our.name,
        uid=entry.uid,
        containers=[
            _container(one, limits.get(name), now) for name, one in sorted(containers.items())
        ],
        started=_time(sandbox.created_at) if sandbox is not None else None,
        usage=_usage(entry.usage, now) if entry.HasField("usage") else None,
        memory_limit=_pod_limit(spec, limits),
        received=_optional(entry, "network_receive_bytes"),
        sent=_optional(entry, "network_transmit_bytes"),
        probes=[
            ProbeCount(
                probe.container,
                _PROBES[probe.type],
                probe.successful,
                probe.failed,
                probe.unknown,
                list(probe.durations) if len(probe.durations) == _BUCKETS else [0] * _BUCKETS,
                probe.duration_nanoseconds / _NANO,
            )
            for _, probe in sorted(probes.items())
            if probe.type in _PROBES
        ],
        volumes=_volumes(entry, spec, now),
        files_bytes=_optional(entry, "files_bytes"),
        files_inodes=_optional(entry, "files_inodes"),
    )


def _volumes(entry: stats_pb2.SandboxStats, spec: Json, now: int) -> list[VolumeUsage]:
    """Those that the Pod has, in the order of its spec."""
    told = {one.name: one for one in reversed(entry.volumes)}
    return [
        VolumeUsage(
            name=one.name,
            at=_time(one.at) or now,
            local=_is_local(volume),
            used=_optional(one, "used_bytes"),
            inodes_used=_optional(one, "used_inodes"),
            capacity=_optional(one, "capacity_bytes"),
            available=_optional(one, "available_bytes"),
            inodes=_optional(one, "inodes"),
            inodes_free=_optional(one, "free_inodes"),
        )
        for volume in spec.get("volumes") or ()
        if (one := told.get(volume["name"])) is not None
    ]


def _is_local(volume: Json) -> bool:
    """As IsLocalEphemeralVolume (pkg/volume/util): what a kubelet keeps on disk in folders of
    its own, but for projected volumes and the downward API."""
    empty = volume.get("emptyDir")
    return "configMap" in volume or (empty is not None and not empty.get("medium"))


def _container(one: stats_pb2.ContainerStats, limit: int | None, now: int) -> ContainerUsage:
    return ContainerUsage(
        name=one.name,
        usage=_usage(one.usage, now),
        started=_time(one.started_at),
        memory_limit=limit,
        root_bytes=_optional(one, "root_filesystem_bytes"),
        log_bytes=_optional(one, "logs_bytes"),
        root_inodes=_optional(one, "root_filesystem_inodes"),
        log_inodes=_optional(one, "logs_inodes"),
    )


def _usage(usage: stats_pb2.Usage, now: int) -> Usage:
    return Usage(
        at=_time(usage.at) or now,
        cpu=usage.cpu_nanoseconds,
        working_set=usage.memory_working_set_bytes,
        memory=_optional(usage, "memory_usage_bytes"),
        rss=_optional(usage, "memory_rss_bytes"),
        page_faults=_optional(usage, "page_faults"),
        major_page_faults=_optional(usage, "major_page_faults"),
        processes=_optional(usage, "processes"),
    )


def _optional(message: Any, name: str) -> int | None:
    return getattr(message, name) if message.HasField(name) else None


def _limits(spec: Json) -> dict[str, int]:
    """Memory limits of containers, in bytes; those without are left out."""
    found = {}
    for kind in ("initContainers", "containers", "ephemeralContainers"):
        for container in spec.get(kind) or ():
            amounts = (container.get("resources") or {}).get("limits") or {}
            limit = whole_number(amounts, "memory")
            if limit:
                found[container["name"]] = limit
    return found


def _pod_limit(spec: Json, limits: Mapping[str, int]) -> int | None:
    """Of the whole Pod: its own, or else what its containers can have at once if each has one,
    those that only initialize it included (ResourceConfigForPod)."""
    own = whole_number((spec.get("resources") or {}).get("limits") or {}, "memory")
    if own:
        return own
    main, initial = spec.get("containers") or (), spec.get("initContainers") or ()
    if not main or any(container["name"] not in limits for container in (*main, *initial)):
        return None
    # What a runtime class adds is not theirs.
    return whole_number(pod_limits({"spec": {**spec, "overhead": {}}}), "memory")
