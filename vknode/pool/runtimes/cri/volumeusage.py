"""What the volumes of sandboxes hold, for whoever asks.

Theory of operation: a question is answered with the last known numbers, and nothing is
measured while nobody asks. Volumes of which nothing is known yet, or whose numbers are older
than `_AGE` seconds and than 20 times as long as they took to find, are then measured: one
after another, in one thread of their own. The question waits for that at most `_PATIENCE`
seconds, so that it has the numbers of small volumes at once. What `StorageWatch` measures for
its limits is known here, too, and not measured twice.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

from vknode.pool.runtimes.cri import diskusage
from vknode.pool.runtimes.cri.diskusage import Used
from vknode.pool.runtimes.cri.layout import Layout
from vknode.pool.v1 import stats_pb2

_AGE = 60.0  # a kubelet's volumeStatsAggPeriod
_REST = 20.0
_PATIENCE = 0.1
# After so many times the age without a question a sandbox is forgotten: one that was asked for
# while it went is asked for no more.
_UNASKED = 10.0


@dataclass(frozen=True, slots=True)
class Measured:
    """Of one volume; `took` are seconds, `until` is the monotonic time of its end."""

    used: Used
    system: os.statvfs_result
    at: int
    took: float
    until: float

    def told(self, name: str) -> stats_pb2.VolumeStats:
        size = self.system.f_frsize
        stats = stats_pb2.VolumeStats(
            name=name,
            used_bytes=self.used.bytes,
            used_inodes=self.used.inodes,
            capacity_bytes=self.system.f_blocks * size,
            available_bytes=self.system.f_bavail * size,
            inodes=self.system.f_files,
            free_inodes=self.system.f_ffree,
        )
        stats.at.FromNanoseconds(self.at)
        return stats


def look(
    folder: Path, enough: int = diskusage.ALL, stop: Callable[[], bool] = diskusage.never
) -> Measured | None:
    """Measures a volume. Blocking. None: it is not there, or `stop` said so; above `enough`
    bytes it may be more."""
    at, since = time.time_ns(), time.monotonic()
    try:
        own = folder.lstat().st_dev != folder.parent.lstat().st_dev
        system = os.statvfs(folder)
    except OSError:
        return None
    if own:  # a tmpfs for this volume alone counts by itself
        used = Used(
            max(0, system.f_blocks - system.f_bfree) * system.f_frsize,
            max(0, system.f_files - system.f_ffree),
        )
    else:
        used = diskusage.measure(folder, enough, stop)
    until = time.monotonic()
    return None if stop() else Measured(used, system, at, until - since, until)


@dataclass(slots=True)
class _Sandbox:
    known: dict[str, Measured] = field(default_factory=dict)  # by the volume's name
    looked: float = float("-inf")
    asked: float = 0.0
    # Set by the loop, read by the thread.
    gone: Event = field(default_factory=Event)


class VolumeUsage:
    """All methods are for the event loop. `close` it."""

    def __init__(self, paths: Layout, age: float = _AGE, patience: float = _PATIENCE) -> None:
        self._paths = paths
        self._age = age
        self._patience = patience
        self._sandboxes: dict[str, _Sandbox] = {}
        self._waiting: dict[str, None] = {}  # UIDs in the order they were asked for
        self._thread = ThreadPoolExecutor(1, "volumes")
        self._work: asyncio.Task[None] | None = None
        self._closed = False

    async def of(self, uids: Collection[str]) -> dict[str, list[stats_pb2.VolumeStats]]:
        """What is known of the volumes of these sandboxes, in the order of their names."""
        now = time.monotonic()
        for uid in uids:
            sandbox = self._sandboxes.setdefault(uid, _Sandbox())
            sandbox.asked = now
            due = min(map(self._due, sandbox.known.values()), default=sandbox.looked + self._age)
            if due <= now:
                self._waiting[uid] = None
        for uid, sandbox in list(self._sandboxes.items()):
            if now - sandbox.asked > _UNASKED * self._age:
                self.forget(uid)
        if self._waiting and self._work is None and not self._closed:
            self._work = asyncio.create_task(self._measure_waiting())
        if self._work is not None and not self._waiting.keys().isdisjoint(uids):
            await asyncio.wait((self._work,), timeout=self._patience)
        found = {}
        for uid in uids:
            if uid in self._sandboxes:
                known = self._sandboxes[uid].known
                found[uid] = [known[name].told(name) for name in sorted(known)]
        return found

    def learn(self, uid: str, found: Mapping[str, Measured]) -> None:
        """What was measured elsewhere, by volume; kept for those that are asked for."""
        sandbox = self._sandboxes.get(uid)
        if sandbox is not None:
            sandbox.known.update(found)

    def forget(self, uid: str) -> None:
        """Also stops measuring it."""
        self._waiting.pop(uid, None)
        sandbox = self._sandboxes.pop(uid, None)
        if sandbox is not None:
            sandbox.gone.set()

    async def close(self) -> None:
        self._closed = True
        for uid in list(self._sandboxes):
            self.forget(uid)
        if self._work is not None:
            self._work.cancel()
            await asyncio.gather(self._work, return_exceptions=True)
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _due(self, measured: Measured) -> float:
        return measured.until + max(self._age, _REST * measured.took)

    async def _measure_waiting(self) -> None:
        try:
            while self._waiting:
                # It waits until it is done, so that whoever asks meanwhile waits for it.
                uid = next(iter(self._waiting))
                try:
                    await self._measure(uid)
                finally:
                    self._waiting.pop(uid, None)
        finally:
            self._work = None

    async def _measure(self, uid: str) -> None:
        loop = asyncio.get_running_loop()
        sandbox = self._sandboxes.get(uid)
        if sandbox is None:
            return
        folders = await loop.run_in_executor(self._thread, self._folders, uid)
        if sandbox.gone.is_set():
            return
        if folders is None:
            self.forget(uid)  # a question that came too late
            return
        for name in sandbox.known.keys() - folders.keys():
            del sandbox.known[name]
        for name, folder in folders.items():
            known = sandbox.known.get(name)
            if known is not None and self._due(known) > time.monotonic():
                continue
            measured = await loop.run_in_executor(
                self._thread, look, folder, diskusage.ALL, sandbox.gone.is_set
            )
            if sandbox.gone.is_set():
                return
            if measured is not None:
                sandbox.known[name] = measured
        sandbox.looked = time.monotonic()

    def _folders(self, uid: str) -> dict[str, Path] | None:
        """Of all its volumes that are ours, by name. None: the sandbox has gone. Blocking."""
        if not self._paths.pod(uid).is_dir():
            return None
        found = {}
        for memory in (False, True):
            try:
                for folder in self._paths.volumes(uid, memory=memory).iterdir():
                    if not folder.name.startswith("."):  # those that are being made
                        found[folder.name] = folder
            except OSError:
                continue  # it has none of this kind
        return found
