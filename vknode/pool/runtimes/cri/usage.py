"""What sandboxes and containers use, as the runtime counts it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Sequence

from vknode.pool.runtimes.cri import diskusage, layout
from vknode.pool.runtimes.cri import stats as stats_
from vknode.pool.runtimes.cri.client import CriClient, NotFound
from vknode.pool.runtimes.cri.known import Known
from vknode.pool.runtimes.cri.layout import Layout
from vknode.pool.runtimes.cri.stats import OnDisk
from vknode.pool.runtimes.cri.volumeusage import VolumeUsage
from vknode.pool.runtimes.cri.wire import cri_pb2
from vknode.pool.runtimes.facts import ContainerRef, Failure
from vknode.pool.v1 import stats_pb2

_CALL = 60.0


class Usage:
    def __init__(
        self, client: CriClient, known: Known, paths: Layout, pool: str, volumes: VolumeUsage
    ) -> None:
        self._client = client
        self._known = known
        self._paths = paths
        self._volumes = volumes
        self._pool = pool

    async def stats(self, uids: Sequence[str], cell: str) -> list[stats_pb2.SandboxStats]:
        """As `Runtime.stats`."""
        selector = {layout.POOL: self._pool}
        if len(uids) == 1:
            selector[layout.POD_UID] = uids[0]
        if cell:
            # The runtime measures what it lists: not what runs in the pool's other cells.
            selector[layout.CELL] = cell
        wanted = set(uids)
        items = _newest(
            item
            for item in await self._containers(selector)
            if not wanted or item.attributes.labels.get(layout.POD_UID) in wanted
        )
        # The runtime tells of those that have ended, too.
        items = [item for item in items if item.attributes.id not in self._known.ended]
        there = {item.attributes.labels.get(layout.POD_UID, "") for item in items}
        refs = [self._known.containers.get(item.attributes.id) for item in items]
        sandboxes, files, volumes = await asyncio.gather(
            self._sandboxes(selector),
            asyncio.to_thread(self._on_disk, there, [ref for ref in refs if ref]),
            self._volumes.of(there),
        )
        files.volumes = volumes
        return stats_.sandbox_stats(items, sandboxes, self._known.started, files)

    def _on_disk(self, uids: Iterable[str], refs: Iterable[ContainerRef]) -> OnDisk:
        """Logs and hosts files: few, and ours. Blocking."""
        found = OnDisk()
        for ref in refs:
            with contextlib.suppress(OSError):
                found.logs[ref.id] = diskusage.files(self._paths.logs(ref.uid, ref.name))
        for uid in uids:
            with contextlib.suppress(OSError):
                found.files[uid] = diskusage.one_file(self._paths.hosts_file(uid))
        return found

    async def layers(self, uid: str) -> dict[str, int]:
        """Bytes of writable layers by container. Raises Failure."""
        found: dict[str, int] = {}
        for item in await self._containers({layout.POOL: self._pool, layout.POD_UID: uid}):
            name = item.attributes.labels.get(layout.CONTAINER_NAME, "")
            found[name] = found.get(name, 0) + item.writable_layer.used_bytes.value
        return found

    async def _containers(self, selector: dict[str, str]) -> Sequence[cri_pb2.ContainerStats]:
        request = cri_pb2.ListContainerStatsRequest(
            filter=cri_pb2.ContainerStatsFilter(label_selector=selector)
        )
        answer = await self._client.call(
            "StatsFailed", self._client.runtime.ListContainerStats(request, timeout=_CALL)
        )
        return answer.stats

    async def _sandboxes(self, selector: dict[str, str]) -> dict[str, cri_pb2.PodSandboxStats]:
        request = cri_pb2.ListPodSandboxStatsRequest(
            filter=cri_pb2.PodSandboxStatsFilter(label_selector=selector)
        )
        try:
            answer = await self._client.call(
                "StatsFailed", self._client.runtime.ListPodSandboxStats(request, timeout=_CALL)
            )
        except (Failure, NotFound):
            # containerd 1.6 has none without a cgroup of the Pod's own: unknown, not wrong.
            return {}
        return {item.attributes.metadata.uid: item for item in answer.stats}


def _newest(items: Iterable[cri_pb2.ContainerStats]) -> list[cri_pb2.ContainerStats]:
    """One of each container: an older instance that is about to be removed is not shown."""
    found: dict[tuple[str, str], cri_pb2.ContainerStats] = {}
    for item in items:
        labels = item.attributes.labels
        key = labels.get(layout.POD_UID, ""), labels.get(layout.CONTAINER_NAME, "")
        other = found.get(key)
        if other is None or item.attributes.metadata.attempt > other.attributes.metadata.attempt:
            found[key] = item
    return list(found.values())
