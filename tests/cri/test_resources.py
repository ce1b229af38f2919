"""Resources become control groups: of containers, and of the Pod around them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.cri.harness import PATIENCE, Harness, add, pod
from vknode.pool.runtimes.cri.podcgroup import PodCgroups
from vknode.pool.runtimes.cri.resources import (
    PodLimits,
    linux_resources,
    oom_score_adj,
    pod_limits,
    sandbox_resources,
)
from vknode.pool.runtimes.facts import ContainerRef, Failure
from vknode.pool.v1 import spec_pb2

MI = 1 << 20
GI = 1 << 30
V1 = Path("/sys/fs/cgroup")


def group(harness: Harness, uid: str, file: str) -> Path:
    tree = "memory" if file.startswith("memory") else "cpu"
    return V1 / tree / "vknode" / harness.options.pool / f"pod{uid}" / file


def number(file: Path) -> int:
    return int(file.read_text())


async def inside(harness: Harness, ref: ContainerRef, *files: str) -> list[int]:
    """Values that a container sees of its own group."""
    trees = [f"{V1}/{'memory' if f.startswith('memory') else 'cpu'}/{f}" for f in files]
    code, out = await harness.runtime.exec_sync(ref, ["cat", *trees], PATIENCE)
    assert code == 0, out
    return [int(line) for line in out.split()]


@pytest.mark.containerd
async def test_a_pod_has_a_group_of_its_own_and_it_goes_with_it(harness: Harness) -> None:
    spec = pod()
    add(spec, "sleep 1000", name="second")
    for container in spec.containers:
        container.resources.limits.update({"cpu": "100m", "memory": "64Mi"})
        container.resources.requests.update({"cpu": "50m", "memory": "32Mi"})
    spec.overhead["memory"] = "16Mi"
    _, ref = await harness.start(spec)
    assert number(group(harness, spec.uid, "cpu.shares")) == 102
    assert number(group(harness, spec.uid, "cpu.cfs_quota_us")) == 20_000
    assert number(group(harness, spec.uid, "memory.limit_in_bytes")) == 144 * MI
    assert group(harness, spec.uid, ref.id).is_dir(), "the container is in it"
    assert await inside(harness, ref, "memory.limit_in_bytes") == [64 * MI]
    (stats,) = await harness.runtime.stats([spec.uid])
    assert stats.usage.memory_working_set_bytes > 0, "the Pod's own usage is known now"
    await harness.runtime.remove_sandbox(spec.uid)
    for tree in V1.iterdir():
        assert not (tree / "vknode" / harness.options.pool / f"pod{spec.uid}").exists(), tree


@pytest.mark.containerd
async def test_containers_share_the_limit_of_their_pod(harness: Harness) -> None:
    fill = "head -c 40m /dev/zero > /ram/$NAME; echo filled; sleep 1000"
    spec = pod(fill)
    spec.containers[0].env.add(name="NAME", value="a")
    add(spec, fill, name="second").env.add(name="NAME", value="b")
    volume = spec.volumes.add(name="ram")
    volume.empty_dir.memory = True
    for container in spec.containers:
        container.mounts.add(volume="ram", path="/ram")
    spec.resources.limits["memory"] = "64Mi"
    assert harness.runtime.problems(spec) == []
    sandbox, first = await harness.start(spec)
    await harness.says(first, "filled")
    assert await inside(harness, first, "memory.limit_in_bytes") == [64 * MI]
    await harness.start_in(spec, sandbox, spec.containers[1])
    # Neither exceeds its own limit; together they would exceed the Pod's.
    async with asyncio.timeout(PATIENCE):
        while not number(group(harness, spec.uid, "memory.failcnt")):
            await asyncio.sleep(0.05)


@pytest.mark.containerd
async def test_a_resize_reaches_the_container_and_its_pod(harness: Harness) -> None:
    spec = pod()
    main = spec.containers[0]
    main.resources.limits.update({"cpu": "200m", "memory": "64Mi"})
    main.resources.requests.update({"cpu": "100m", "memory": "64Mi"})
    _, ref = await harness.start(spec)
    files = ("cpu.cfs_quota_us", "cpu.shares", "memory.limit_in_bytes")
    for cpu, memory in (("400m", "128Mi"), ("100m", "32Mi"), ("150m", "48Mi")):
        main.resources.limits.update({"cpu": cpu, "memory": memory})
        await harness.runtime.resize_container(spec, main, ref)
        quota, shares, limit = await inside(harness, ref, *files)
        assert quota == int(cpu[:-1]) * 100 and limit == int(memory[:-2]) * MI
        assert shares == 102
        assert [number(group(harness, spec.uid, f)) for f in files] == [quota, shares, limit]


@pytest.mark.containerd
async def test_a_container_that_starts_after_a_resize_may_have_more_than_its_pod_had(
    harness: Harness,
) -> None:
    spec = pod()
    main = spec.containers[0]
    main.resources.limits.update({"cpu": "100m", "memory": "32Mi"})
    sandbox, ref = await harness.start(spec)
    await harness.runtime.stop_container(ref, 0)
    main.resources.limits.update({"cpu": "400m", "memory": "128Mi"})
    again = await harness.start_in(spec, sandbox, main, attempt=1)
    files = ("cpu.cfs_quota_us", "memory.limit_in_bytes")
    assert await inside(harness, again, *files) == [40_000, 128 * MI]
    assert [number(group(harness, spec.uid, f)) for f in files] == [40_000, 128 * MI]
    await harness.runtime.stop_container(again, 0)
    main.resources.limits.update({"cpu": "200m", "memory": "64Mi"})
    await harness.start_in(spec, sandbox, main, attempt=2)
    assert [number(group(harness, spec.uid, f)) for f in files] == [20_000, 64 * MI]


@pytest.mark.containerd
@pytest.mark.parametrize("restarted", [False, True])
async def test_a_limit_below_what_is_used_is_refused_and_changes_nothing(
    harness: Harness, restarted: bool
) -> None:
    spec = pod("head -c 40m /dev/zero > /ram/a; echo filled; sleep 1000")
    main = spec.containers[0]
    main.resources.limits.update({"cpu": "200m", "memory": "64Mi"})
    volume = spec.volumes.add(name="ram")
    volume.empty_dir.memory = True
    main.mounts.add(volume="ram", path="/ram")
    _, ref = await harness.start(spec)
    await harness.says(ref, "filled")
    if restarted:
        await harness.restart()
        await harness.runtime.inventory()
    main.resources.limits.update({"cpu": "100m", "memory": "20Mi"})
    with pytest.raises(Failure) as refused:
        await harness.runtime.resize_container(spec, main, ref)
    text = refused.value.message
    assert text.startswith("cannot decrease memory limits: [attempting to set pod memory limit (")
    assert 'attempting to set container "main" memory limit (20971520) below current' in text
    assert await inside(harness, ref, "cpu.cfs_quota_us", "memory.limit_in_bytes") == [
        20_000,
        64 * MI,
    ]
    # Where only the processor changes, memory that is nearly used up is no obstacle.
    main.resources.limits.update({"cpu": "100m", "memory": "64Mi"})
    await harness.runtime.resize_container(spec, main, ref)
    assert await inside(harness, ref, "cpu.cfs_quota_us") == [10_000]


def resources(
    cpu: str = "", memory: str = "", *, to_cpu: str = "", to_memory: str = ""
) -> spec_pb2.Resources:
    """Requests, and limits with `to_`."""
    requests = {"cpu": cpu, "memory": memory}
    limits = {"cpu": to_cpu, "memory": to_memory}
    return spec_pb2.Resources(
        requests={name: text for name, text in requests.items() if text},
        limits={name: text for name, text in limits.items() if text},
    )


def with_containers(*containers: spec_pb2.Resources, **fields: object) -> spec_pb2.SandboxSpec:
    spec = spec_pb2.SandboxSpec(uid="u", **fields)  # type: ignore[arg-type]  # named by each test
    for index, each in enumerate(containers):
        spec.containers.add(name=f"c{index}", resources=each)
    return spec


def test_a_pods_limits_are_the_kubelets() -> None:
    # Best effort: the least shares.
    assert pod_limits(with_containers(resources())) == PodLimits(2)
    # Burstable: only what every container limits is limited for all.
    some = with_containers(resources("1", to_cpu="2", to_memory="1Gi"), resources("1", to_cpu="1"))
    assert pod_limits(some) == PodLimits(2048, 300_000, None)
    # Init containers need no more than they do, sidecars run beside.
    spec = with_containers(resources("100m", "64Mi", to_cpu="100m", to_memory="64Mi"))
    init = resources("500m", "32Mi", to_cpu="500m", to_memory="32Mi")
    spec.init_containers.add(
        name="side", resources=init
    ).restart_policy = spec_pb2.RESTART_POLICY_ALWAYS
    spec.init_containers.add(name="first", resources=init)
    assert pod_limits(spec) == PodLimits(1024, 100_000, 96 * MI)
    # The Pod's own come first, with the overhead on top.
    spec.resources.CopyFrom(resources("2", "1Gi", to_cpu="2", to_memory="1Gi"))
    spec.overhead.update({"cpu": "250m", "memory": "128Mi"})
    assert pod_limits(spec) == PodLimits(2304, 225_000, GI + 128 * MI)
    sized = sandbox_resources(spec)
    assert (sized.cpu_shares, sized.cpu_quota, sized.memory_limit_in_bytes) == (2048, 200_000, GI)


def test_a_container_without_a_limit_has_its_pods() -> None:
    spec = with_containers(resources(), resources("100m", "1Gi", to_memory="2Gi"))
    spec.resources.CopyFrom(resources("1", "3Gi", to_cpu="2", to_memory="4Gi"))
    free, own = (linux_resources(spec, c, 100 * GI) for c in spec.containers)
    assert (free.cpu_quota, free.memory_limit_in_bytes) == (200_000, 4 * GI)
    assert free.cpu_shares == 2048, "the request defaults to the limit"
    assert (own.cpu_quota, own.memory_limit_in_bytes, own.cpu_shares) == (200_000, 2 * GI, 102)


def test_oom_scores_share_what_the_pod_requests_beyond_its_containers() -> None:
    spec = with_containers(resources(), resources("100m", "10Gi"))
    spec.resources.CopyFrom(resources("1", "30Gi"))
    scores = [oom_score_adj(spec, container, 100 * GI) for container in spec.containers]
    assert scores == [900, 800]


def test_where_there_are_no_groups_the_pod_has_none(tmp_path: Path) -> None:
    assert PodCgroups.find("/vknode/z", tmp_path) is None
    (tmp_path / "cpu").mkdir()
    (tmp_path / "memory").write_text("no folder")
    assert PodCgroups.find("/vknode/z", tmp_path) is None


@pytest.fixture
def unified(tmp_path: Path) -> Path:
    """A cgroup v2 tree as far as files go: what the kernel makes in new groups is made
    before."""
    for folder in (
        tmp_path,
        tmp_path / "vknode",
        tmp_path / "vknode/z",
        tmp_path / "vknode/z/podu",
    ):
        folder.mkdir(exist_ok=True)
        (folder / "cgroup.controllers").write_text("cpu memory pids\n")
        (folder / "cgroup.subtree_control").write_text("")
        (folder / "cpu.max").write_text("max 100000\n")
        (folder / "memory.max").write_text("max\n")
        (folder / "memory.current").write_text("1000\n")
    return tmp_path


def test_on_cgroup_v2_the_same_limits_are_written(unified: Path) -> None:
    groups = PodCgroups.find("/vknode/z", unified)
    assert groups is not None
    assert (unified / "vknode/cgroup.subtree_control").read_text() == "+cpu +memory +pids"
    folder = unified / "vknode/z/podu"

    def limits() -> list[str]:
        return [(folder / f).read_text().strip() for f in ("cpu.weight", "cpu.max", "memory.max")]

    groups.prepare("u", PodLimits(1024, 50_000, 64 * MI))
    assert limits() == ["39", "50000 100000", str(64 * MI)]
    assert groups.memory("u") == (1000, 64 * MI)
    groups.raise_limits("u", PodLimits(2, 100_000, 32 * MI))
    assert limits() == ["1", "100000 100000", str(64 * MI)], "what is lower waits"
    groups.settle("u", PodLimits(262144, None, None))
    assert limits() == ["10000", "max 100000", "max"]
    groups.raise_limits("u", PodLimits(2, 1000, 1000))
    assert limits()[1:] == ["max 100000", "max"]


def test_a_group_that_was_left_does_not_vanish_under_the_next_start(unified: Path) -> None:
    """The kernel reaps what ran in it a moment after the runtime has removed it."""
    groups = PodCgroups.find("/vknode/z", unified)
    assert groups is not None
    folder = unified / "vknode/z/podu"
    groups.prepare("u", PodLimits(1024, None, None))
    assert not groups.remove("u"), "files in it: it is busy"
    groups.prepare("u", PodLimits(1024, None, None))
    for file in folder.iterdir():
        file.unlink()  # a real group is empty for rmdir(2) while nothing runs in it
    assert groups.remove("other")
    assert folder.is_dir(), "the runtime is just about to put the sandbox into it"
    assert groups.remove("u")
    assert not folder.exists()
