"""What volumes and logs hold: when it is measured, and that it follows what is written."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import pytest

from tests.cri.containerds import Containerd
from tests.cri.harness import Harness, pod, with_volume
from vknode.pool.runtimes.cri import diskusage
from vknode.pool.runtimes.cri.diskusage import Used
from vknode.pool.runtimes.cri.layout import Layout
from vknode.pool.runtimes.cri.storage import StorageLimits, StorageWatch
from vknode.pool.runtimes.cri.volumeusage import VolumeUsage
from vknode.pool.runtimes.facts import SandboxOverLimit
from vknode.pool.v1 import spec_pb2, stats_pb2

MI = 1 << 20


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "state", tmp_path / "memory")


def volume(layout: Layout, uid: str, name: str, *, memory: bool = False) -> Path:
    layout.pod(uid).mkdir(parents=True, exist_ok=True)
    folder = layout.volume(uid, name, memory=memory)
    folder.mkdir(parents=True)
    return folder


async def known(usage: VolumeUsage, uid: str) -> dict[str, int]:
    """Bytes by volume."""
    return {one.name: one.used_bytes for one in (await usage.of([uid]))[uid]}


async def eventually(look: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not look():
            await asyncio.sleep(0.01)


class Measurer:
    """Stands for `diskusage.measure`; a folder named `slow` takes until `go` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go = threading.Event()
        self.asked: list[tuple[str, str]] = []  # folder and thread
        self.now = 0
        self.most = 0
        self.stopped = False
        self._really = diskusage.measure
        monkeypatch.setattr(diskusage, "measure", self._measure)

    def _measure(
        self,
        folder: Path,
        enough: int = diskusage.ALL,
        stop: Callable[[], bool] = diskusage.never,
    ) -> Used:
        self.asked.append((folder.name, threading.current_thread().name))
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            while folder.name == "slow" and not self.go.wait(0.01):
                if stop():
                    self.stopped = True
                    break
            return self._really(folder, enough, stop)
        finally:
            self.now -= 1

    def times(self, name: str) -> int:
        return [asked for asked, _ in self.asked].count(name)


@pytest.fixture
def measurer(monkeypatch: pytest.MonkeyPatch) -> Measurer:
    return Measurer(monkeypatch)


async def test_small_volumes_are_in_the_first_answer(layout: Layout) -> None:
    (volume(layout, "u", "disk") / "file").write_bytes(b"x" * MI)
    volume(layout, "u", "secret", memory=True)
    (layout.volumes("u", memory=False) / ".half.new").mkdir()  # one that is being made
    usage = VolumeUsage(layout, patience=10)
    before = time.time()
    found = (await usage.of(["u", "v"]))["u"]
    assert [one.name for one in found] == ["disk", "secret"]
    disk = found[0]
    assert MI <= disk.used_bytes < 2 * MI and disk.used_inodes == 2
    assert disk.capacity_bytes > disk.available_bytes > 0
    assert disk.inodes >= disk.free_inodes
    assert before - 1 <= disk.at.ToNanoseconds() / 10**9 <= time.time()
    await usage.close()


async def test_measured_again_once_it_is_old_and_somebody_asks(
    layout: Layout, measurer: Measurer
) -> None:
    file = volume(layout, "u", "disk") / "file"
    usage = VolumeUsage(layout, age=1.5, patience=10)
    empty = await known(usage, "u")
    file.write_bytes(b"x" * MI)
    assert await known(usage, "u") == empty, "as it was a moment ago"
    await asyncio.sleep(2)
    assert measurer.times("disk") == 1, "not while nobody asks"
    async with asyncio.timeout(10):
        while (await known(usage, "u"))["disk"] < MI:
            await asyncio.sleep(0.1)
    assert measurer.times("disk") == 2
    await usage.close()


async def test_a_volume_that_takes_long_holds_up_no_answer(
    layout: Layout, measurer: Measurer
) -> None:
    volume(layout, "u", "slow")
    volume(layout, "v", "quick")
    usage = VolumeUsage(layout, age=0.01)
    since = time.monotonic()
    for _ in range(3):
        assert await usage.of(["u", "v"]) == {"u": [], "v": []}
    assert time.monotonic() - since < 2
    assert (measurer.most, measurer.times("slow")) == (1, 1), "one at a time, asked once"
    measurer.go.set()
    await eventually(lambda: measurer.times("quick") == 1)
    await asyncio.sleep(0.05)
    assert list(await known(usage, "u")) == ["slow"]
    assert list(await known(usage, "v")) == ["quick"]
    # It took long, so that it rests long.
    await asyncio.sleep(0.1)
    await known(usage, "u")
    assert (measurer.most, measurer.times("slow")) == (1, 1)
    await usage.close()


async def test_a_measurement_ends_with_its_sandbox(layout: Layout, measurer: Measurer) -> None:
    volume(layout, "u", "slow")
    volume(layout, "v", "quick")
    usage = VolumeUsage(layout)
    await usage.of(["u", "v"])
    usage.forget("u")
    await eventually(lambda: measurer.stopped and measurer.times("quick") == 1)
    assert await known(usage, "u") == {}, "nothing is left of the one before"
    await usage.close()
    await eventually(lambda: measurer.now == 0)


async def test_what_the_limits_measure_is_not_measured_twice(
    layout: Layout, measurer: Measurer
) -> None:
    file = volume(layout, "u", "disk") / "file"
    usage = VolumeUsage(layout, age=2.0, patience=10)

    async def no_layers(_: str) -> Mapping[str, int]:
        return {}

    async def never(_: SandboxOverLimit) -> None:
        raise AssertionError("nothing is exceeded")

    watch = StorageWatch(layout, no_layers, usage, period=0.02)
    await usage.of(["u"])
    watch.add("u", StorageLimits(volumes={"disk": "1Gi"}, disk=("disk",)))
    running = asyncio.create_task(watch.run(never))
    file.write_bytes(b"x" * MI)
    try:
        async with asyncio.timeout(10):
            while (await known(usage, "u"))["disk"] < MI:
                await asyncio.sleep(0.05)
        until = time.monotonic() + 2.5
        while time.monotonic() < until:
            await known(usage, "u")
            await asyncio.sleep(0.05)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await usage.close()
    by_us = [thread for _, thread in measurer.asked if thread.startswith("volumes")]
    assert len(by_us) == 1 and measurer.times("disk") > 10


@pytest.fixture
async def eager(harness: Harness, shared_containerd: Containerd) -> AsyncIterator[Harness]:
    """Measures volumes for each question anew."""
    made = Harness(
        shared_containerd.socket,
        harness.options.state_dir,
        harness.options.pool,
        volume_age=0.0,
    )
    await made.connect()
    yield made
    await made.disconnect()


@pytest.mark.containerd
async def test_the_numbers_follow_what_a_container_writes(eager: Harness) -> None:
    spec = pod()
    with_volume(spec, "disk", "/disk").empty_dir.SetInParent()
    with_volume(spec, "memory", "/memory").empty_dir.CopyFrom(
        spec_pb2.EmptyDir(memory=True, size_limit="16Mi")
    )
    for name, sensitive in (("settings", False), ("key", True)):
        files = with_volume(spec, name, f"/{name}").files
        files.sensitive = sensitive
        files.files.add(path="file", content=b"x" * 10_000, mode=0o644)
    _, ref = await eager.start(spec)

    async def asked() -> tuple[stats_pb2.SandboxStats, dict[str, stats_pb2.VolumeStats]]:
        """As it is from now on."""
        since = time.time_ns()
        async with asyncio.timeout(30):
            while True:
                (stats,) = await eager.runtime.stats([spec.uid])
                times = [one.at.ToNanoseconds() for one in stats.volumes]
                if len(times) == 4 and min(times) >= since:
                    return stats, {one.name: one for one in stats.volumes}
                await asyncio.sleep(0.05)

    stats, volumes = await asked()
    assert list(volumes) == ["disk", "key", "memory", "settings"]
    assert (volumes["memory"].used_bytes, volumes["memory"].used_inodes) == (0, 1)
    assert volumes["memory"].capacity_bytes == 16 * MI
    # The folder, its ..data, a payload, the file in it and its link.
    assert volumes["settings"].used_inodes == volumes["key"].used_inodes == 5
    assert volumes["key"].used_bytes == 12288, "whole pages"
    assert stats.files_bytes > 0 and stats.files_inodes == 1
    (before,) = stats.containers
    # In the volumes, in the writable layer, and a rotated log.
    script = "for where in /disk /memory /; do head -c 2m /dev/zero >$where/new; done"
    script += "; ln /disk/new /disk/old"
    assert await eager.runtime.exec_sync(ref, ["sh", "-c", script], 20) == (0, b"")
    log = eager.options.state_dir / "pods" / spec.uid / "logs" / "main" / "0.log"
    log.with_name("0.log.20260101-000000.gz").write_bytes(b"x" * 10_000)
    stats, after = await asked()
    grown = {
        name: (
            one.used_bytes - volumes[name].used_bytes,
            one.used_inodes - volumes[name].used_inodes,
        )
        for name, one in after.items()
    }
    assert grown.pop("disk")[1] == 1 and after["disk"].used_bytes >= 2 * MI
    assert grown == {"memory": (2 * MI, 1), "settings": (0, 0), "key": (0, 0)}
    (container,) = stats.containers
    assert 10_000 < container.logs_bytes - before.logs_bytes <= 12288
    assert (before.logs_inodes, container.logs_inodes) == (1, 2)

    async def layer() -> None:
        # A snapshotter looks now and then.
        async with asyncio.timeout(30):
            while True:
                (one,) = (await asked())[0].containers
                grown = one.root_filesystem_bytes - before.root_filesystem_bytes
                if grown >= 2 * MI and one.root_filesystem_inodes > before.root_filesystem_inodes:
                    return
                await asyncio.sleep(0.2)

    await layer()
    await eager.runtime.remove_sandbox(spec.uid)
    assert await eager.runtime.stats([spec.uid]) == []
