"""What the host does for running containers: probes, hooks, resizes, evictions."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from tests.pool_host.fakeruntime import FakeRuntime
from tests.pool_host.test_host import RUNNING, condition, pool, spec
from vknode.pool.cells import requests
from vknode.pool.engine.steps import Persisted
from vknode.pool.errors import PoolFailure
from vknode.pool.runtimes.base import FieldProblem, ProbeOutcome, ProbeResult, SandboxOverLimit
from vknode.pool.store import FileStore
from vknode.pool.v1 import spec_pb2, status_pb2


def asking(uid: str, cpu: str, *, generation: int = 1, priority: int = 0) -> spec_pb2.SandboxSpec:
    one = spec(uid)
    one.generation, one.priority = generation, priority
    one.containers[0].resources.requests["cpu"] = cpu
    return one


async def test_a_resize_takes_room_and_reaches_the_runtime() -> None:
    runtime = FakeRuntime()
    async with pool(runtime, capacity={"cpu": "1", "pods": "10"}) as (host, seen):
        await host.create(asking("a", "200m"), "agent")
        await seen.state("a", RUNNING)
        await host.update(asking("a", "800m", generation=2))
        await seen.until(lambda: seen.latest["a"].containers[0].resources.requests["cpu"] == "800m")
        assert runtime.count("resize_container") == 1
        assert not seen.latest["a"].HasField("resize")
        assert host.cells.resize(asking("a", "900m")) == ("", "")


async def test_a_resize_without_room_waits_for_it_the_most_important_one_first() -> None:
    runtime = FakeRuntime()
    async with pool(runtime, capacity={"cpu": "1", "pods": "10"}) as (host, seen):
        for uid, priority in (("low", 1), ("high", 9), ("other", 0)):
            await host.create(asking(uid, "300m", priority=priority), "agent")
            await seen.state(uid, RUNNING)
        await host.update(asking("low", "500m", generation=2, priority=1))
        await host.update(asking("high", "600m", generation=2, priority=9))
        await seen.until(lambda: seen.latest["high"].resize.pending_reason == "Deferred")
        assert seen.latest["low"].resize.pending_message == (
            "Node didn't have enough resource: cpu, requested: 500, used: 600, capacity: 1000"
        )
        assert runtime.count("resize_container") == 0
        await host.delete("other", 0, "")
        await seen.until(lambda: not seen.latest["high"].HasField("resize"))
        assert seen.latest["high"].containers[0].allocated.requests["cpu"] == "600m"
        assert seen.latest["low"].resize.pending_reason == "Deferred"


async def test_resources_that_a_pool_cannot_honour_hold_up_no_other_change(tmp_path: Path) -> None:
    """The resize is Infeasible, also after a restart, until other resources are asked for."""

    def problems(spec: spec_pb2.SandboxSpec) -> list[FieldProblem]:
        asked = spec.containers[0].resources.requests["cpu"]
        if asked != "700m":
            return []
        return [FieldProblem('containers[0].resources.requests["cpu"]', "no sevens here")]

    runtime, store = FakeRuntime(), FileStore(tmp_path)
    runtime.problems = problems  # type: ignore[method-assign]
    async with pool(runtime, store) as (host, seen):
        await host.create(asking("a", "200m"), "agent")
        await seen.state("a", RUNNING)
        wrong = asking("a", "700m", generation=2)
        wrong.labels["new"] = "yes"
        await host.update(wrong)
        await condition(lambda: runtime.count("update_sandbox") == 1)
        await seen.until(lambda: seen.latest["a"].resize.pending_reason == "Infeasible")
        assert seen.latest["a"].resize.pending_message == "no sevens here"
        wrong.labels["new"] = "again"
        await host.update(wrong)
        await condition(lambda: runtime.count("update_sandbox") == 2)
        assert seen.latest["a"].resize.pending_reason == "Infeasible"
    runtime.closed = False
    async with pool(runtime, store) as (host, seen):
        await seen.state("a", RUNNING)
        assert seen.latest["a"].resize.pending_reason == "Infeasible"
        assert seen.latest["a"].containers[0].allocated.requests["cpu"] == "200m"
        assert runtime.count("resize_container") == 0
        await host.update(asking("a", "600m", generation=3))
        await seen.until(lambda: not seen.latest["a"].HasField("resize"))
        assert runtime.count("resize_container") == 1


async def test_a_pending_resize_is_kept_over_a_restart_of_the_pool(tmp_path: Path) -> None:
    runtime, store = FakeRuntime(), FileStore(tmp_path)
    async with pool(runtime, store, {"cpu": "1"}) as (host, seen):
        await host.create(asking("a", "200m"), "agent")
        await seen.state("a", RUNNING)
        await host.update(asking("a", "5", generation=2))
        await seen.until(lambda: seen.latest["a"].HasField("resize"))
    runtime.closed = False
    async with pool(runtime, store, {"cpu": "1"}) as (host, seen):
        await seen.state("a", RUNNING)
        assert seen.latest["a"].observed_generation == 2
        assert seen.latest["a"].containers[0].allocated.requests["cpu"] == "200m"
        # What is set aside is what counts: there is room for another one.
        _, created = await host.create(asking("b", "700m"), "agent")
        assert created
        assert runtime.count("resize_container") == 0


class Dying(FileStore):
    """Keeps what is on the disk right after the newest spec was written, as a crash would."""

    def __init__(self, folder: Path, left: Path) -> None:
        super().__init__(folder)
        self._folder, self._left = folder, left

    def save(self, spec: spec_pb2.SandboxSpec, state: Persisted) -> None:
        super().save(spec, state)
        shutil.rmtree(self._left, ignore_errors=True)
        shutil.copytree(self._folder, self._left)


@pytest.mark.parametrize("cpu", ["800m", "5"])
async def test_a_crash_within_an_update_leaves_the_resize_as_it_was(
    tmp_path: Path, cpu: str
) -> None:
    """One that fits is still to be put in force, the other is still to be granted."""
    runtime = FakeRuntime()
    release = runtime.block("resize_container")
    store = Dying(tmp_path / "live", tmp_path / "left")
    async with pool(runtime, store, {"cpu": "1"}) as (host, seen):
        await host.create(asking("a", "200m"), "agent")
        await seen.state("a", RUNNING)
        await host.update(asking("a", cpu, generation=2))
        await seen.until(lambda: seen.latest["a"].HasField("resize"))
    release.set()
    runtime.calls.clear()
    runtime.closed = False
    async with pool(runtime, FileStore(tmp_path / "left"), {"cpu": "1"}) as (host, seen):
        await seen.state("a", RUNNING)
        if cpu == "5":
            assert seen.latest["a"].resize.pending_reason == "Deferred"
            assert seen.latest["a"].containers[0].allocated.requests["cpu"] == "200m"
            assert runtime.count("resize_container") == 0
        else:
            await condition(lambda: runtime.count("resize_container") == 1)
            await seen.until(lambda: not seen.latest["a"].HasField("resize"))


async def test_an_update_that_cannot_be_stored_changes_nothing(tmp_path: Path) -> None:
    runtime, store = FakeRuntime(), FileStore(tmp_path)
    async with pool(runtime, store, {"cpu": "1"}) as (host, seen):
        await host.create(asking("a", "200m"), "agent")
        await seen.state("a", RUNNING)
        shutil.rmtree(tmp_path)
        with pytest.raises(PoolFailure, match="cannot store"):
            await host.update(asking("a", "900m", generation=2))
        tmp_path.mkdir()
        _, created = await host.create(asking("b", "800m"), "agent")
        assert created, "the room was not taken"


async def test_ready_is_kept_over_a_restart_of_the_pool(tmp_path: Path) -> None:
    runtime, store = FakeRuntime(), FileStore(tmp_path)
    probed = spec("a")
    probe = probed.containers[0].readiness_probe
    probe.handler.tcp_socket.port, probe.period_seconds = 80, 1000
    async with pool(runtime, store) as (host, seen):
        await host.create(probed, "agent")
        await seen.until(lambda: "a" in seen.latest and seen.latest["a"].containers[0].ready)
    runtime.closed = False
    asked = runtime.count("probe")
    async with pool(runtime, store) as (host, seen):
        await seen.state("a", RUNNING)
        assert seen.latest["a"].containers[0].ready
        assert runtime.count("probe") == asked


async def test_probes_that_hang_hold_up_no_start_and_no_other_probe() -> None:
    runtime = FakeRuntime()
    release = runtime.block("probe")
    async with pool(runtime, capacity={"pods": "500"}) as (host, seen):
        for index in range(100):
            probed = spec(f"p{index}")
            probe = probed.containers[0].readiness_probe
            probe.handler.tcp_socket.port, probe.period_seconds = 80, 1000
            await host.create(probed, "agent")
        await condition(lambda: runtime.count("probe") == 100)
        await host.create(spec("free"), "agent")
        await seen.state("free", RUNNING)
        release.set()
        await seen.until(
            lambda: (
                all(s.containers[0].ready for s in seen.latest.values()) and len(seen.latest) == 101
            )
        )


async def test_a_deletion_does_not_wait_for_a_hook_that_hangs() -> None:
    runtime = FakeRuntime()
    runtime.block("hook")
    hooked = spec("a", grace=1)
    hooked.containers[0].pre_stop.exec.command.append("for-ever")
    async with pool(runtime) as (host, seen):
        await host.create(hooked, "agent")
        await seen.state("a", RUNNING)
        await host.delete("a", None, "")
        await seen.until(lambda: "a" in seen.gone)
        called = [call for call in runtime.calls if call[0] in ("hook", "stop_container")]
        assert called == [("hook", "c0"), ("stop_container", "c0:2")]


async def test_a_sandbox_above_its_limit_is_evicted() -> None:
    runtime = FakeRuntime()
    async with pool(runtime) as (host, seen):
        await host.create(spec("a"), "agent")
        await seen.state("a", RUNNING)
        text = 'Usage of EmptyDir volume "v" exceeds the limit "1Mi". '
        runtime.queue.put_nowait(SandboxOverLimit("a", text))
        await seen.state("a", status_pb2.SANDBOX_STATE_FAILED)
        assert (seen.latest["a"].reason, seen.latest["a"].message) == ("Evicted", text)
        await seen.until(lambda: "Evicted" in {e.reason for e in seen.events})
        await asyncio.sleep(0)


def test_room_is_counted_with_sidecars_as_a_scheduler_does() -> None:
    one = spec("a", inits=2, sidecars=1, mains=2)
    one.init_containers.insert(1, one.init_containers.pop(2))  # i0, s0, i1
    for container, cpu in zip(
        (*one.init_containers, *one.containers),
        ("700m", "100m", "650m", "200m", "300m"),
        strict=True,
    ):
        container.resources.requests["cpu"] = cpu
    # i1 beside the sidecar before it is the most at any time; i0 runs alone.
    assert requests(one)["cpu"] == 750
    one.containers[0].resources.requests["cpu"] = "500m"
    assert requests(one)["cpu"] == 900


def probed(uid: str) -> spec_pb2.SandboxSpec:
    one = spec(uid)
    probe = one.containers[0].readiness_probe
    probe.handler.exec.command.append("ready")
    probe.period_seconds = 600
    return one


async def test_a_probe_that_could_not_be_asked_is_asked_twice_more_at_once() -> None:
    runtime = FakeRuntime()
    errors = [ProbeOutcome(ProbeResult.ERROR, f"error {number}") for number in range(5)]
    runtime.outcomes = errors[:2]
    async with pool(runtime) as (host, seen):
        await host.create(probed("a"), "agent")
        await seen.until(lambda: "a" in seen.latest and seen.latest["a"].containers[0].ready)
        assert runtime.count("probe") == 3
        assert "Unhealthy" not in {event.reason for event in seen.events}, "nothing was settled"
        runtime.calls.clear()
        runtime.outcomes = errors[:3]
        await host.create(probed("b"), "agent")
        await seen.until(lambda: any(event.reason == "Unhealthy" for event in seen.events))
        assert runtime.count("probe") == 3 and not seen.latest["b"].containers[0].ready
        (told,) = [event for event in seen.events if event.reason == "Unhealthy"]
        assert told.message == "Readiness probe errored and resulted in unknown state: error 2"


async def test_a_thousand_probes_are_asked_in_time_from_one_timer() -> None:
    runtime = FakeRuntime()
    pods = 1000
    loop = asyncio.get_running_loop()
    async with pool(runtime, capacity={"pods": "9999"}) as (host, _):
        before = len(asyncio.all_tasks())
        for index in range(pods):
            one = spec(f"p{index}")
            probe = one.containers[0].liveness_probe
            probe.handler.exec.command.append("alive")
            probe.period_seconds = 5
            await host.create(one, "agent")
        async with asyncio.timeout(60):
            while runtime.count("start_container") < pods:
                await asyncio.sleep(0.05)
        asked = runtime.count("probe")
        async with asyncio.timeout(60):
            while runtime.count("probe") < asked + 2 * pods:
                await asyncio.sleep(0.05)
        # Between their moments they are neither a task nor a timer each.
        async with asyncio.timeout(30):
            while len(asyncio.all_tasks()) > before + 5:
                await asyncio.sleep(0.001)
        timers = [one for one in loop._scheduled if not one.cancelled()]  # type: ignore[attr-defined]
        assert len(timers) < 20
