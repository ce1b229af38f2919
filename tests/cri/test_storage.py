"""Limits of local storage: found out while the Pod runs, in a kubelet's words."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import time
import tracemalloc
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.cri.harness import PATIENCE, Harness, add, pod
from tests.cri.mounted import bound
from vknode.pool.runtimes.cri import mounts, trees
from vknode.pool.runtimes.cri.diskusage import ALL, measure, usage
from vknode.pool.runtimes.cri.layout import Layout
from vknode.pool.runtimes.cri.storage import StorageLimits, StorageWatch, limits_of
from vknode.pool.runtimes.cri.volumeusage import VolumeUsage
from vknode.pool.runtimes.facts import SandboxOverLimit
from vknode.pool.v1 import spec_pb2

MI = 1 << 20


@pytest.mark.containerd
async def test_a_volume_above_its_limit_is_told_also_by_a_new_process(harness: Harness) -> None:
    spec = pod(
        "until [ -e /data/go ]; do sleep 0.05; done",
        "head -c 3m /dev/zero > /data/big",
        "sleep 1000",
    )
    spec.volumes.add(name="data").empty_dir.size_limit = "2Mi"
    spec.containers[0].mounts.add(volume="data", path="/data")
    _, ref = await harness.start(spec)
    await harness.restart()
    await harness.runtime.inventory()
    await harness.runtime.exec_sync(ref, ["touch", "/data/go"], PATIENCE)
    over = await harness.event(SandboxOverLimit)
    assert over == SandboxOverLimit(
        spec.uid, 'Usage of EmptyDir volume "data" exceeds the limit "2Mi". '
    )


@pytest.mark.containerd
async def test_a_container_above_its_ephemeral_storage_is_told(harness: Harness) -> None:
    spec = pod("head -c 4m /dev/zero > /big; sleep 1000")
    main = spec.containers[0]
    main.resources.limits["ephemeral-storage"] = "2Mi"
    add(spec, "sleep 1000", name="other").resources.limits["ephemeral-storage"] = "1Gi"
    assert harness.runtime.problems(spec) == []
    await harness.start(spec)
    over = await harness.event(SandboxOverLimit)
    assert over == SandboxOverLimit(
        spec.uid, 'Container main exceeded its local ephemeral storage limit "2Mi". '
    )


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "state", tmp_path / "memory")


async def first(
    layout: Layout, limits: StorageLimits, layers: Mapping[str, int] | None = None
) -> str:
    """What the watch tells of a sandbox."""
    found: asyncio.Queue[SandboxOverLimit] = asyncio.Queue()

    async def written(uid: str) -> Mapping[str, int]:
        return layers or {}

    watch = StorageWatch(layout, written, VolumeUsage(layout), period=0.01)
    running = asyncio.create_task(watch.run(found.put))
    watch.add("u", limits)
    try:
        async with asyncio.timeout(60):
            over = await found.get()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert over.uid == "u"
    return over.message


async def test_a_sandbox_that_is_made_anew_is_measured_once_a_period(layout: Layout) -> None:
    times: list[float] = []
    enough = asyncio.Event()

    async def written(uid: str) -> Mapping[str, int]:
        times.append(time.monotonic())
        if len(times) == 8:
            enough.set()
        return {}

    async def never(_: SandboxOverLimit) -> None:
        raise AssertionError("nothing is exceeded")

    watch = StorageWatch(layout, written, VolumeUsage(layout), period=0.05)
    for _ in range(3):
        watch.add("u", StorageLimits(pod=MI))
        watch.forget("u")
    watch.add("u", StorageLimits(pod=MI))
    running = asyncio.create_task(watch.run(never))
    try:
        await asyncio.wait_for(enough.wait(), 60)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert min(b - a for a, b in itertools.pairwise(times)) >= 0.05


async def test_all_that_a_pod_keeps_counts_against_its_containers_limits(layout: Layout) -> None:
    volume = layout.volume("u", "v", memory=False)
    volume.mkdir(parents=True)
    (volume / "file").write_bytes(b"x" * MI)
    log = layout.log_file("u", "c", 0)
    log.parent.mkdir(parents=True)
    log.write_bytes(b"x" * MI)
    limits = StorageLimits(containers={"c": "3Mi"}, pod=3 * MI, disk=("v",))
    message = await first(layout, limits, {"c": 2 * MI})
    assert message == (
        "Pod ephemeral local storage usage exceeds the total limit of containers 3Mi. "
    )
    limits = StorageLimits(containers={"c": "2M", "d": "1G"}, pod=2 * 1000**2, disk=("v",))
    assert "containers 2M. " in await first(layout, limits)
    # One that keeps too much for itself, where all of them have enough.
    limits = StorageLimits(containers={"c": "2Mi"}, pod=30 * MI, disk=("v",))
    message = await first(layout, limits, {"c": 2 * MI})
    assert message == 'Container c exceeded its local ephemeral storage limit "2Mi". '


def test_only_what_limits_something_is_watched() -> None:
    spec = pod()
    spec.volumes.add(name="free").empty_dir.SetInParent()
    spec.volumes.add(name="ram").empty_dir.CopyFrom(
        spec_pb2.EmptyDir(memory=True, size_limit="1Mi")
    )
    assert limits_of(spec) is None
    spec.volumes.add(name="zero").empty_dir.size_limit = "0"
    assert limits_of(spec) is None
    spec.volumes.add(name="small").empty_dir.size_limit = "1Mi"
    spec.containers[0].resources.limits["ephemeral-storage"] = "2Gi"
    spec.init_containers.add(name="i").resources.limits["ephemeral-storage"] = "4Gi"
    limits = limits_of(spec)
    assert limits == StorageLimits(
        {"small": "1Mi"}, {"main": "2Gi"}, 4 << 30, ("free", "zero", "small")
    )
    assert limits is not None and StorageLimits.load(limits.dump()) == limits
    for text in ("", "{}", "nonsense", "[1, 2]", '[{}, {}, "x", []]'):
        assert StorageLimits.load(text) is None


def test_usage_is_what_is_on_the_disk(tmp_path: Path) -> None:
    folder = tmp_path / "v"
    folder.mkdir()
    base = usage(folder, ALL)
    (folder / "file").write_bytes(b"x" * MI)
    assert usage(folder, ALL) >= base + MI
    (folder / "again").hardlink_to(folder / "file")
    with (folder / "hole").open("wb") as file:
        file.truncate(1 << 40)
    (tmp_path / "outside").write_bytes(b"x" * 5 * MI)
    (folder / "link").symlink_to(tmp_path / "outside")
    (folder / "up").symlink_to("..")
    os.mkfifo(folder / "pipe")
    assert base + MI <= usage(folder, ALL) < base + 2 * MI
    deep = folder / "a" / "b"
    deep.mkdir(parents=True)
    (deep / "file").write_bytes(b"x" * MI)
    assert usage(folder, ALL) >= base + 2 * MI
    assert usage(tmp_path / "missing", ALL) == 0
    assert usage(folder / "link", ALL) == 0, "a folder that became a link"


def test_inodes_are_counted_and_each_file_once_whatever_its_links(tmp_path: Path) -> None:
    folder = tmp_path / "v"
    (folder / "sub").mkdir(parents=True)
    assert measure(folder).inodes == 2, "itself included"
    for number in range(3):
        (folder / f"file{number}").write_bytes(b"x" * MI)
        for link in range(6):
            (folder / "sub" / f"{number}-{link}").hardlink_to(folder / f"file{number}")
    (folder / "link").symlink_to("file0")
    found = measure(folder)
    assert found.inodes == 2 + 3 + 1
    du = subprocess.check_output(["du", "-sB1", folder], text=True)
    assert found.bytes == int(du.split()[0])


@pytest.mark.parametrize("links", range(2, 40))
def test_shares_of_a_file_end_no_measurement_at_the_limit(tmp_path: Path, links: int) -> None:
    """Thirteen thirteenths may be a little more than one, and nothing is above the limit yet."""
    folder = tmp_path / "v"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "file").write_bytes(b"x" * 400_000)
    for link in range(1, links):
        (folder / "sub" / f"link{link}").hardlink_to(folder / "sub" / "file")
    limit = usage(folder, 1 << 62)
    (folder / "later").mkdir()
    (folder / "later" / "large").write_bytes(b"x" * 1_000_000)
    assert usage(folder, limit) > limit


def test_a_folder_of_very_many_files_is_not_held_in_memory(tmp_path: Path) -> None:
    for number in range(4000):
        (tmp_path / f"{number:0200}").touch()
    tracemalloc.start()
    try:
        assert measure(tmp_path).inodes == 4001
        assert tracemalloc.get_traced_memory()[1] < 500_000, "names are 250 bytes each"
    finally:
        tracemalloc.stop()
    assert measure(tmp_path, stop=lambda: True).inodes < 1000


@pytest.fixture
def bottomless(tmp_path: Path) -> Path:
    """A folder deeper than any path is long and than functions may call themselves."""
    folder = tmp_path / "deep"
    folder.mkdir()
    here = os.open(folder, os.O_RDONLY)
    for index in range(1500):
        for name in ("d", f"e{index}"):
            os.mkdir(name, dir_fd=here)
        there = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = there
    os.close(here)
    return folder


def test_a_bottomless_folder_is_measured_in_bounds_and_can_be_removed(bottomless: Path) -> None:
    assert usage(bottomless, ALL) > 0
    links = [link.readlink() for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert not [link for link in links if link.is_relative_to(bottomless)]
    trees.remove(bottomless)
    assert not bottomless.exists()


def test_removing_a_folder_touches_nothing_outside(tmp_path: Path) -> None:
    folder, outside = tmp_path / "folder", tmp_path / "outside"
    (folder / "a" / "b").mkdir(parents=True)
    outside.mkdir()
    (outside / "kept").touch()
    (folder / "a" / "link").symlink_to(outside)
    (folder / "a" / "b" / "up").symlink_to("../../..")
    os.mkfifo(folder / "a" / "pipe")
    (folder / "a" / "b").chmod(0)
    trees.remove(folder)
    assert not folder.exists() and (outside / "kept").exists()
    trees.remove(folder)  # not there: no error


@pytest.mark.containerd
@pytest.mark.parametrize("old_kernel", [False, True])
def test_removing_a_folder_never_empties_what_is_mounted_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old_kernel: bool
) -> None:
    """A hostPath of the same file system, left mounted by a crash."""
    if old_kernel:
        monkeypatch.setattr(mounts, "_SYS_OPENAT2", 1 << 20)
    folder, host = tmp_path / "folder", tmp_path / "host"
    (host / "sub").mkdir(parents=True)
    (host / "kept").write_text("kept")
    (host / "sub" / "kept").write_text("kept")
    for source, target in (
        (host, folder / "a" / "folder"),
        (host / "kept", folder / "a" / "file"),
        (host, folder),
    ):
        (folder / "a" / "folder").mkdir(parents=True, exist_ok=True)
        (folder / "a" / "file").touch()
        with bound(source, target), pytest.raises(OSError, match="Errno 16"):
            trees.remove(folder)
        assert (host / "kept").read_text() == (host / "sub" / "kept").read_text() == "kept"
    trees.remove(folder)
    assert not folder.exists()
