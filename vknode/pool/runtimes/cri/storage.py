"""Local storage that a Pod may use: measured now and then, and told where it is exceeded.

Theory of operation: only sandboxes that have a limit are measured, one after another in
one thread, `_PERIOD` seconds after the last time and not before it has rested 20 times as
long as the measurement took. The limits travel in an annotation of the sandbox, so that a
new process of the pool goes on. What is limited, as with a kubelet's eviction manager
(pkg/kubelet/eviction):

  emptyDir.sizeLimit                  one volume on disk (tmpfs limits itself)
  limits[ephemeral-storage]           a container's writable layer and log
  … of all containers together        the same of all, and all volumes on disk
"""

from __future__ import annotations

import asyncio
import heapq
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from vknode.pool import quantity
from vknode.pool.probes import gowords
from vknode.pool.runtimes.cri.diskusage import ALL, usage
from vknode.pool.runtimes.cri.layout import Layout
from vknode.pool.runtimes.cri.resources import of_containers
from vknode.pool.runtimes.cri.volumeusage import Measured, VolumeUsage, look
from vknode.pool.runtimes.facts import Failure, SandboxOverLimit
from vknode.pool.v1 import spec_pb2

log = structlog.get_logger()

_PERIOD = 10.0
_REST = 20.0
_RESOURCE = "ephemeral-storage"

Emit = Callable[[SandboxOverLimit], Awaitable[None]]
# Bytes of each container's writable layer, by name.
Layers = Callable[[str], Awaitable[Mapping[str, int]]]


@dataclass(frozen=True, slots=True)
class StorageLimits:
    """Quantities as the Pod has them: volumes and containers by name. `pod` in bytes, 0 for
    none; `disk` are all volumes on disk."""

    volumes: dict[str, str] = field(default_factory=dict)
    containers: dict[str, str] = field(default_factory=dict)
    pod: int = 0
    disk: tuple[str, ...] = ()

    def dump(self) -> str:
        return json.dumps([self.volumes, self.containers, self.pod, self.disk])

    @classmethod
    def load(cls, text: str) -> StorageLimits | None:
        """None where there are none, or none that we understand."""
        try:
            volumes, containers, pod, disk = json.loads(text) if text else []
            return cls(dict(volumes), dict(containers), int(pod), tuple(disk))
        except (ValueError, TypeError):
            return None


def limits_of(spec: spec_pb2.SandboxSpec) -> StorageLimits | None:
    """None where nothing is limited."""

    def read(amounts: Mapping[str, str], name: str) -> int:
        return quantity.value(amounts[name]) if name in amounts else 0

    disk = [v for v in spec.volumes if v.HasField("empty_dir") and not v.empty_dir.memory]
    volumes = {
        volume.name: volume.empty_dir.size_limit
        for volume in disk
        if volume.empty_dir.size_limit and quantity.value(volume.empty_dir.size_limit) > 0
    }
    staying = {container.name for container in spec.containers} | {
        container.name
        for container in spec.init_containers
        if container.restart_policy == spec_pb2.RESTART_POLICY_ALWAYS
    }
    containers = {
        container.name: container.resources.limits[_RESOURCE]
        for container in (*spec.init_containers, *spec.containers)
        if read(container.resources.limits, _RESOURCE) and container.name in staying
    }
    pod = of_containers(spec, "limits", _RESOURCE, read)
    if not volumes and not pod:
        return None
    return StorageLimits(volumes, containers, pod, tuple(volume.name for volume in disk))


def _sum_text(limits: StorageLimits) -> str:
    """As Kubernetes writes a sum: in the first one's way, binary or decimal."""
    first = next(iter(limits.containers.values()), "")
    step, ending = (1024, "i") if first.endswith("i") else (1000, "")
    amount, suffix = limits.pod, ""
    for larger in "KMGTPE" if ending else "kMGTPE":
        if not amount or amount % step:
            break
        amount, suffix = amount // step, larger + ending
    return f"{amount}{suffix}"


class StorageWatch:
    """`run` it while somebody listens. `add` and `forget` at any time."""

    def __init__(
        self, paths: Layout, layers: Layers, volumes: VolumeUsage, period: float = _PERIOD
    ) -> None:
        self._paths = paths
        self._layers = layers
        self._volumes = volumes
        self._period = period
        self._limits: dict[str, StorageLimits] = {}
        # When, whose, and in which turn: an entry of a sandbox that was forgotten, and
        # perhaps added again, is skipped when it comes up.
        self._due: list[tuple[float, str, int]] = []
        self._turns: dict[str, int] = {}
        self._turn = 0
        self._changed = asyncio.Event()

    def add(self, uid: str, limits: StorageLimits | None) -> None:
        if limits is None:
            self.forget(uid)
            return
        if uid not in self._limits:
            self._turn += 1
            self._turns[uid] = self._turn
            heapq.heappush(self._due, (time.monotonic() + self._period, uid, self._turn))
        self._limits[uid] = limits
        self._changed.set()

    def forget(self, uid: str) -> None:
        self._limits.pop(uid, None)
        self._turns.pop(uid, None)

    async def run(self, emit: Emit) -> None:
        while True:
            self._changed.clear()
            delay = self._due[0][0] - time.monotonic() if self._due else None
            if delay is None or delay > 0:
                try:
                    async with asyncio.timeout(delay):
                        await self._changed.wait()
                except TimeoutError:
                    pass
                continue
            _, uid, turn = heapq.heappop(self._due)
            if self._turns.get(uid) != turn:
                continue
            limits = self._limits[uid]
            begin = time.monotonic()
            try:
                message = await self._look(uid, limits)
            except Failure as failure:
                log.debug("storage_unmeasured", uid=uid, reason=failure.reason)
                message = ""
            if self._turns.get(uid) != turn:
                continue
            if message:
                await emit(SandboxOverLimit(uid, message))
            pause = max(self._period, _REST * (time.monotonic() - begin))
            heapq.heappush(self._due, (time.monotonic() + pause, uid, turn))

    async def _look(self, uid: str, limits: StorageLimits) -> str:
        """What is exceeded, in a kubelet's words; empty for nothing. Raises Failure."""
        layers = await self._layers(uid) if limits.pod else {}
        found: dict[str, Measured] = {}
        message = await asyncio.to_thread(self._measure, uid, limits, dict(layers), found)
        self._volumes.learn(uid, found)
        return message

    def _measure(
        self, uid: str, limits: StorageLimits, layers: dict[str, int], found: dict[str, Measured]
    ) -> str:
        """`found` is for volumes that were measured to their end."""
        total = 0
        for name in limits.disk:
            text = limits.volumes.get(name, "")
            if not text and not limits.pod:
                continue
            most = quantity.value(text) if text else limits.pod
            measured = look(self._paths.volume(uid, name, memory=False), most)
            used = measured.used.bytes if measured is not None else 0
            if measured is not None and used <= most:
                found[name] = measured
            if text and used > most:
                return (
                    f"Usage of EmptyDir volume {gowords.quote(name)} exceeds the limit "
                    f"{gowords.quote(text)}. "
                )
            total += used
        if not limits.pod:
            return ""
        logs = self._logs(uid)
        for name in layers.keys() | logs.keys():
            used = layers.get(name, 0) + logs.get(name, 0)
            total += used
            layers[name] = used
        if total > limits.pod:
            return (
                "Pod ephemeral local storage usage exceeds the total limit of containers "
                f"{_sum_text(limits)}. "
            )
        for name, text in limits.containers.items():
            if layers.get(name, 0) > quantity.value(text):
                return (
                    f"Container {name} exceeded its local ephemeral storage limit "
                    f"{gowords.quote(text)}. "
                )
        return ""

    def _logs(self, uid: str) -> dict[str, int]:
        found: dict[str, int] = {}
        folder: Path = self._paths.log_directory(uid)
        try:
            for container in folder.iterdir():
                found[container.name] = usage(container, ALL)
        except OSError:
            pass  # gone meanwhile
        return found
