"""The host on a runtime whose every answer is the test's."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.engine.world import make_spec
from tests.pool_host.fakeruntime import FakeRuntime
from tests.support.stepped import stepped
from vknode.pool.cells import CellBook
from vknode.pool.engine.steps import Persisted
from vknode.pool.errors import (
    NO_CAPACITY,
    NOT_FOUND,
    REFUSED,
    RETRYABLE,
    UNSUPPORTED_FIELD,
    PoolFailure,
)
from vknode.pool.host import Host
from vknode.pool.runtimes.base import (
    ContainerRef,
    EventsLost,
    Failure,
    FieldProblem,
    ObservedState,
)
from vknode.pool.store import FileStore, MemoryStore, Store
from vknode.pool.v1 import cell_pb2, spec_pb2, status_pb2

RUNNING = status_pb2.SANDBOX_STATE_RUNNING
CAPACITY = {"cpu": "4", "memory": "8Gi", "pods": "100"}


class Seen:
    """What a watcher knows; `batches` is how it learned it."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.latest: dict[str, status_pb2.Sandbox] = {}
        self.gone: dict[str, status_pb2.Sandbox] = {}
        self.history: list[tuple[str, int]] = []
        self.events: list[status_pb2.SandboxEvent] = []
        self.changed = asyncio.Condition()
        self.begun = False
        self.task = asyncio.create_task(self.run())

    async def run(self) -> None:
        async with contextlib.aclosing(self.host.watch("", 0)) as batches:  # type: ignore[type-var]  # it is a generator
            async for batch in batches:
                async with self.changed:
                    self.begun = True
                    for sandbox in batch.sandboxes:
                        self.latest[sandbox.uid] = sandbox
                        self.history.append((sandbox.uid, sandbox.state))
                    for sandbox in batch.gone:
                        self.latest.pop(sandbox.uid, None)
                        self.gone[sandbox.uid] = sandbox
                    self.events.extend(batch.events)
                    self.changed.notify_all()

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(30), self.changed:
            await self.changed.wait_for(condition)

    async def state(self, uid: str, state: status_pb2.SandboxState.ValueType) -> None:
        await self.until(lambda: uid in self.latest and self.latest[uid].state == state)


@contextlib.asynccontextmanager
async def pool(
    runtime: FakeRuntime, store: Store | None = None, capacity: dict[str, str] | None = None
) -> AsyncIterator[tuple[Host, Seen]]:
    host = Host(runtime, store or MemoryStore(), CellBook.of_zone("az1", 2, capacity or CAPACITY))
    await host.start()
    seen = Seen(host)
    await seen.until(lambda: seen.begun)
    try:
        yield host, seen
    finally:
        await host.close()
        await asyncio.wait_for(seen.task, 30)  # a closed host ends its watches
        assert runtime.closed


def spec(uid: str, **options: Any) -> spec_pb2.SandboxSpec:
    return make_spec(uid=uid, **options)


async def condition(check: Callable[[], Any]) -> None:
    async with asyncio.timeout(30):
        while not check():
            await asyncio.sleep(0.001)


@stepped  # what is quick is not a question of this machine
async def test_a_quick_start_is_one_change() -> None:
    runtime = FakeRuntime()
    async with pool(runtime) as (host, seen):
        answer, created = await host.create(spec("a"), "agent")
        assert created and answer.state == status_pb2.SANDBOX_STATE_CREATING
        await seen.state("a", RUNNING)
        assert seen.history == [("a", RUNNING)]
        assert seen.latest["a"].owner == "agent"
        await seen.until(lambda: len(seen.events) == 3)
        assert [e.reason for e in seen.events] == ["Pulled", "Created", "Started"]


async def test_a_slow_start_is_told_meanwhile() -> None:
    runtime = FakeRuntime()
    release = runtime.block("start_container")
    async with pool(runtime) as (host, seen):
        await host.create(spec("a"), "agent")
        await seen.state("a", status_pb2.SANDBOX_STATE_STARTING)
        assert list(seen.latest["a"].pod_ips) == ["10.1.0.1"]
        release.set()
        await seen.state("a", RUNNING)


async def test_creation_is_idempotent_and_no_snapshot_lacks_it() -> None:
    runtime = FakeRuntime()
    runtime.block("run_sandbox")
    async with pool(runtime) as (host, _):
        await host.create(spec("a"), "agent")
        again, created = await host.create(spec("a"), "agent")
        assert not created and again.uid == "a"
        other = Seen(host)  # at once, before anything was told
        await other.until(lambda: "a" in other.latest)
        other.task.cancel()
        assert runtime.count("run_sandbox") <= 1


async def test_never_more_starts_at_once_than_the_runtime_does_best() -> None:
    runtime = FakeRuntime()
    async with pool(runtime) as (host, seen):
        for number in range(12):
            await host.create(spec(f"u{number}", mains=2), "agent")
        await seen.until(
            lambda: (
                len(seen.latest) == 12
                and all(
                    c.state.HasField("running") for s in seen.latest.values() for c in s.containers
                )
            )
        )
    assert runtime.most_active == 2


async def test_containers_go_before_new_sandboxes() -> None:
    runtime = FakeRuntime()
    runtime.best_width = 1
    async with pool(runtime) as (host, seen):
        for number in range(3):
            await host.create(spec(f"u{number}"), "agent")
        await seen.until(lambda: [s.state for s in seen.latest.values()] == [RUNNING] * 3)
    starts = [c for c in runtime.calls if c[0] in ("run_sandbox", "start_container")]
    assert [name for name, _ in starts] == ["run_sandbox", "start_container"] * 3


@pytest.mark.parametrize("what", ["u{}", "u{}/c0"])
async def test_starts_that_wait_for_others_hold_no_place(what: str) -> None:
    """A registry or a path of the host hangs, for more Pods than the runtime starts at once."""
    runtime = FakeRuntime()
    hanging = 2 * runtime.best_width
    releases = [runtime.block(f"prepare {what.format(number)}") for number in range(hanging)]
    async with pool(runtime) as (host, seen):
        for number in range(hanging + 1):
            await host.create(spec(f"u{number}"), "agent")
        await seen.state(f"u{hanging}", RUNNING)
        await host.delete("u0", 0, "")
        await seen.until(lambda: "u0" in seen.gone)
        for release in releases:
            release.set()
        for number in range(1, hanging):
            await seen.state(f"u{number}", RUNNING)
    assert runtime.most_active == runtime.best_width


async def test_what_a_start_waits_for_fails_as_the_start() -> None:
    runtime = FakeRuntime()
    runtime.failures["prepare a/c0"] = [Failure("ErrImagePull", "no such image volume")]
    runtime.failures["prepare a"] = [Failure("FailedMount", "no such path")]
    async with pool(runtime) as (host, seen):
        await host.create(spec("a"), "agent")
        await seen.state("a", RUNNING)
        warnings = [(e.reason, e.message) for e in seen.events if e.type == "Warning"]
    assert ("FailedMount", "no such path") in warnings
    assert any("no such image volume" in text for _, text in warnings)


async def test_an_exit_restarts_the_container_and_ends_its_followers() -> None:
    runtime = FakeRuntime()
    async with pool(runtime) as (host, seen):
        await host.create(spec("a"), "agent")
        await seen.state("a", RUNNING)
        ref, ended = host.instance("a", "c0")
        assert not ended.is_set()
        runtime.end(ref, 3)
        await asyncio.wait_for(ended.wait(), 30)
        await seen.until(lambda: seen.latest["a"].containers[0].restart_count == 1)
        newer, _ = host.instance("a", "c0")
        assert newer.attempt == 1
        older, over = host.instance("a", "c0", previous=True)
        assert older == ref and over.is_set()
        assert seen.latest["a"].containers[0].last_termination.terminated.exit_code == 3


async def test_deletion_ends_in_one_gone_entry_and_leaves_nothing(tmp_path: Path) -> None:
    runtime = FakeRuntime()
    async with pool(runtime, FileStore(tmp_path)) as (host, seen):
        await host.create(spec("a"), "agent")
        await seen.state("a", RUNNING)
        assert [p.name for p in tmp_path.iterdir()] == ["a"]
        _, ended = host.instance("a", "c0")
        assert await host.delete("a", None, "") is True
        await seen.until(lambda: "a" in seen.gone)
        assert seen.gone["a"].containers[0].state.terminated.exit_code == 143
        assert ended.is_set()
        assert not runtime.world and not list(tmp_path.iterdir())
        assert await host.delete("a", None, "") is False
        # Whoever was away as it ended may still hear how.
        assert host.last_of("a") == seen.gone["a"]
        assert host.last_of("b") is None
        with pytest.raises(PoolFailure) as failure:
            host.running_sandbox("a")
        assert failure.value.kind == NOT_FOUND
        assert host.cells.count("az1-a") == 0


async def test_what_still_queues_is_deleted_without_being_started() -> None:
    runtime = FakeRuntime()
    release = runtime.block("run_sandbox")
    async with pool(runtime) as (host, seen):
        for number in range(6):
            await host.create(spec(f"u{number}"), "agent")
        await condition(lambda: runtime.count("run_sandbox") == 2)
        for number in range(2, 6):
            await host.delete(f"u{number}", 0, "")
        await seen.until(lambda: len(seen.gone) == 4)
        assert runtime.count("run_sandbox") == 2
        release.set()
        await seen.state("u0", RUNNING)


async def test_a_graceful_stop_holds_nobody_up() -> None:
    runtime = FakeRuntime()
    async with pool(runtime) as (host, seen):
        for number in range(6):
            await host.create(spec(f"u{number}"), "agent")
        await seen.until(lambda: [s.state for s in seen.latest.values()] == [RUNNING] * 6)
        release = runtime.block("stop_container")
        for number in range(6):
            await host.delete(f"u{number}", None, "")
        await condition(lambda: runtime.count("stop_container") == 6)
        await host.create(spec("new"), "agent")
        await seen.state("new", RUNNING)
        release.set()
        await seen.until(lambda: len(seen.gone) == 6)


@pytest.mark.parametrize(
    ("change", "kind", "field"),
    [
        (lambda s: setattr(s, "cell", "nowhere"), REFUSED, "cell"),
        (lambda s: setattr(s, "runtime_handler", "kata"), UNSUPPORTED_FIELD, "runtime_handler"),
        (lambda s: setattr(s, "host_pid", True), UNSUPPORTED_FIELD, "host_pid"),
        (
            lambda s: s.containers[0].pre_stop.tcp_socket.SetInParent(),
            UNSUPPORTED_FIELD,
            "containers[0].pre_stop",
        ),
        (
            lambda s: s.containers[0].resources.requests.update({"cpu": "five"}),
            REFUSED,
            'containers[0].resources.requests["cpu"]',
        ),
    ],
)
async def test_what_cannot_be_is_refused_and_not_kept(
    change: Callable[[spec_pb2.SandboxSpec], None], kind: Any, field: str, tmp_path: Path
) -> None:
    runtime = FakeRuntime()
    async with pool(runtime, FileStore(tmp_path)) as (host, _):
        wrong = spec("a")
        change(wrong)
        with pytest.raises(PoolFailure) as failure:
            await host.create(wrong, "agent")
        assert (failure.value.kind, failure.value.field) == (kind, field)
        assert len(host) == 0 and not list(tmp_path.iterdir())
        assert runtime.count("run_sandbox") == 0


async def test_a_full_cell_refuses_and_an_ended_sandbox_makes_room() -> None:
    runtime = FakeRuntime()
    async with pool(runtime, capacity={"cpu": "1", "memory": "1Gi", "pods": "2"}) as (host, seen):
        job = spec("job", policy=spec_pb2.RESTART_POLICY_NEVER)
        job.containers[0].resources.requests["cpu"] = "600m"
        await host.create(job, "agent")
        await seen.state("job", RUNNING)
        other = spec("other")
        other.containers[0].resources.requests["cpu"] = "500m"
        with pytest.raises(PoolFailure, match="not enough cpu: asked for 500m, free 400m") as full:
            await host.create(other, "agent")
        assert full.value.kind == NO_CAPACITY
        runtime.end(host.instance("job", "c0")[0], 0)
        await seen.state("job", status_pb2.SANDBOX_STATE_SUCCEEDED)
        await host.create(other, "agent")
        await host.create(spec("third"), "agent")
        with pytest.raises(PoolFailure, match="cell az1-a is full"):
            await host.create(spec("fourth"), "agent")
        await condition(lambda: runtime.count("stop_sandbox") == 1)
        assert host.instance("job", "c0"), "its log can still be had"


async def test_a_full_disk_starts_nothing_half() -> None:
    class FullStore(MemoryStore):
        def save(self, spec: spec_pb2.SandboxSpec, state: Persisted) -> None:
            raise OSError(errno.ENOSPC, "No space left on device", "/state/a/spec.pb")

    runtime = FakeRuntime()
    async with pool(runtime, FullStore()) as (host, _):
        with pytest.raises(
            PoolFailure, match=r"No space left on device \(/state/a/spec.pb\)"
        ) as no:
            await host.create(spec("a"), "agent")
        assert no.value.kind == RETRYABLE
        assert len(host) == 0 and host.cells.count("az1-a") == 0 and not runtime.world


async def test_what_a_pool_took_once_stops_no_update_and_what_is_new_is_still_looked_at() -> None:
    """Its owner may have forbidden meanwhile what the sandbox has."""
    runtime = FakeRuntime()
    forbidden: list[str] = []

    def problems(spec: spec_pb2.SandboxSpec) -> list[FieldProblem]:
        return [
            FieldProblem(f"{group}[{index}].image", "is forbidden")
            for group in ("containers", "ephemeral_containers")
            for index, container in enumerate(getattr(spec, group))
            if container.image in forbidden
        ]

    runtime.problems = problems  # type: ignore[method-assign]
    async with pool(runtime) as (host, seen):
        first = spec("a")
        await host.create(first, "agent")
        await seen.state("a", RUNNING)
        forbidden.append(first.containers[0].image)
        newer = spec_pb2.SandboxSpec()
        newer.CopyFrom(first)
        newer.labels["new"] = "yes"
        await host.update(newer)
        await condition(lambda: runtime.count("update_sandbox") == 1)
        newer.ephemeral_containers.add(
            name="debug",
            image=forbidden[0],
            image_pull_policy=spec_pb2.IMAGE_PULL_POLICY_NEVER,
        )
        with pytest.raises(PoolFailure) as failure:
            await host.update(newer)
        assert failure.value.field == "ephemeral_containers[0].image"


async def test_a_debug_container_has_the_volumes_that_were_made_with_its_sandbox() -> None:
    runtime = FakeRuntime()
    async with pool(runtime) as (host, seen):
        first = spec("a")
        first.volumes.add(name="there").empty_dir.SetInParent()
        await host.create(first, "agent")
        await seen.state("a", RUNNING)
        newer = spec_pb2.SandboxSpec()
        newer.CopyFrom(first)
        newer.volumes.add(name="late").empty_dir.SetInParent()
        debug = newer.ephemeral_containers.add(
            name="debug",
            image=first.containers[0].image,
            image_pull_policy=spec_pb2.IMAGE_PULL_POLICY_NEVER,
        )
        mount = debug.mounts.add(volume="late", path="/v")
        with pytest.raises(PoolFailure) as failure:
            await host.update(newer)
        assert failure.value.field == "ephemeral_containers[0].mounts[0].volume"
        mount.volume = "there"
        _, kept = await host.update(newer)
        assert kept == ["volumes"]


async def test_an_update_with_the_same_content_does_nothing_and_what_stays_is_named() -> None:
    runtime = FakeRuntime()
    async with pool(runtime) as (host, seen):
        first = spec("a")
        first.volumes.add(name="v").files.files.add(path="k", content=b"1")
        await host.create(first, "agent")
        await seen.state("a", RUNNING)
        await host.update(first)
        newer = spec_pb2.SandboxSpec()
        newer.CopyFrom(first)
        newer.volumes[0].files.files[0].content = b"2"
        newer.generation = 2
        sandbox, kept = await host.update(newer)
        assert (sandbox.observed_generation, kept) == (2, [])
        await condition(lambda: runtime.count("update_sandbox") == 1)
        await host.update(newer)
        newer.containers[0].command.append("other")
        assert (await host.update(newer))[1] == ["containers[0].command"]
        with pytest.raises(PoolFailure) as failure:
            await host.update(first)
        assert (failure.value.kind, failure.value.field) == (REFUSED, "generation")
        with pytest.raises(PoolFailure) as failure:
            await host.update(spec("unknown"))
        assert failure.value.kind == NOT_FOUND
        assert runtime.count("update_sandbox") == 1


async def test_another_process_adopts_and_restarts_nothing(tmp_path: Path) -> None:
    world: dict[str, Any] = {}
    first = FakeRuntime(world)
    async with pool(first, FileStore(tmp_path)) as (host, seen):
        for uid in ("a", "b", "c"):
            await host.create(spec(uid), "agent")
        await seen.until(lambda: [s.state for s in seen.latest.values()] == [RUNNING] * 3)
        epoch, before = host.journal.epoch, seen.latest["a"]
        first.block("stop_container")
        await host.delete("b", 600, "")
        await condition(lambda: first.count("stop_container") == 1)
    first.end(host.instance("c", "c0")[0], 5, tell=False)  # nobody is there to hear it
    world["orphan"] = {"sandbox": world["a"]["sandbox"], "ready": True, "containers": {}}
    second = FakeRuntime(world)
    async with pool(second, FileStore(tmp_path)) as (host, seen):
        assert host.journal.epoch != epoch
        await seen.until(lambda: "b" in seen.gone)
        await seen.until(lambda: seen.latest["c"].containers[0].restart_count == 1)
        after = seen.latest["a"]
        assert after.containers[0].container_id == before.containers[0].container_id
        assert after.containers[0].state == before.containers[0].state
        assert after.owner == "agent" and after.created_at == before.created_at
        assert second.count("run_sandbox") == 0
        assert [what for call, what in second.calls if call == "start_container"] == ["c/c0/1"]
        (stop,) = [what for call, what in second.calls if call == "stop_container"]
        assert 500 <= int(stop.split(":")[1]) <= 600, "what is left of the grace"
        await condition(lambda: "orphan" not in world)
        assert host.cells.count("az1-a") == 2


async def test_an_update_cut_off_by_the_end_of_the_process_is_made_by_the_next(
    tmp_path: Path,
) -> None:
    world: dict[str, Any] = {}
    first = FakeRuntime(world)
    mounted = spec("a")
    mounted.volumes.add(name="v").files.files.add(path="f", content=b"1")
    async with pool(first, FileStore(tmp_path)) as (host, seen):
        await host.create(mounted, "agent")
        await host.create(spec("plain"), "agent")
        await seen.state("a", RUNNING)
        first.block("update_sandbox")
        mounted.volumes[0].files.files[0].content = b"2"
        mounted.generation += 1
        await host.update(mounted)
        await condition(lambda: first.count("update_sandbox") == 1)
    second = FakeRuntime(world)
    async with pool(second, FileStore(tmp_path)) as (host, seen):
        await condition(lambda: ("update_sandbox", "a") in second.calls)
        assert second.count("update_sandbox") == 1
        assert second.count("start_container") == 0


async def test_a_runtime_that_is_away_costs_nothing_but_time() -> None:
    runtime = FakeRuntime()
    async with pool(runtime) as (host, seen):
        await host.create(spec("a"), "agent")
        await seen.state("a", RUNNING)
        cells = host.watch_cells()
        assert (await anext(cells)).snapshot
        runtime.go_away()
        down = await asyncio.wait_for(anext(cells), 30)
        assert {c.health for c in down.cells} == {cell_pb2.HEALTH_UNHEALTHY}
        assert down.cells[0].health_message == "no answer"
        with pytest.raises(PoolFailure) as failure:
            await host.create(spec("b"), "agent")
        assert failure.value.kind == RETRYABLE
        await host.delete("a", 0, "")
        runtime.end(host.instance("a", "c0")[0], 9, tell=False)
        runtime.come_back()
        up = await asyncio.wait_for(anext(cells), 30)
        assert {c.health for c in up.cells} == {cell_pb2.HEALTH_HEALTHY}
        await seen.until(lambda: "a" in seen.gone)
        assert seen.gone["a"].containers[0].state.terminated.exit_code == 9
        assert not [e for e in seen.events if e.type == "Warning"]
        await cells.aclose()  # type: ignore[attr-defined]  # it is a generator


async def test_a_call_cut_off_by_an_outage_is_looked_up_not_repeated() -> None:
    runtime = FakeRuntime()
    release = runtime.block("start_container")
    async with pool(runtime) as (host, seen):
        await host.create(spec("a"), "agent")
        await condition(lambda: runtime.count("start_container") == 1)
        runtime.go_away()
        release.set()  # the call ends with RuntimeAway, yet the container runs
        ref = ContainerRef("a", "c0", 0, "c-a-lost")
        world = runtime.world["a"]
        from vknode.pool.runtimes.base import Image, ObservedContainer

        world["containers"][ref.id] = ObservedContainer(
            ref, ObservedState.RUNNING, Image("app:0", "app:0@sha256:1"), 1
        )
        await condition(lambda: runtime.active == 0)
        runtime.come_back()
        await seen.state("a", RUNNING)
        assert seen.latest["a"].containers[0].container_id == "fake://c-a-lost"
        assert runtime.count("start_container") == 1


async def test_a_lost_event_is_found_by_an_inventory() -> None:
    runtime = FakeRuntime()
    async with pool(runtime) as (host, seen):
        await host.create(spec("a", policy=spec_pb2.RESTART_POLICY_NEVER), "agent")
        await seen.state("a", RUNNING)
        runtime.end(host.instance("a", "c0")[0], 4, tell=False)
        runtime.queue.put_nowait(EventsLost())
        await seen.state("a", status_pb2.SANDBOX_STATE_FAILED)
        assert seen.latest["a"].containers[0].state.terminated.exit_code == 4


async def test_a_defect_leaves_the_pool_neither_deaf_nor_holding() -> None:
    runtime = FakeRuntime()
    defect: Any = ZeroDivisionError("a defect")
    async with pool(runtime) as (host, seen):
        await host.create(spec("a", policy=spec_pb2.RESTART_POLICY_NEVER), "agent")
        await seen.state("a", RUNNING)
        runtime.failures = {"events": [defect], "inventory": [defect]}
        runtime.queue.put_nowait(EventsLost())  # the events break after this one
        runtime.end(host.instance("a", "c0")[0], 4, tell=False)
        await seen.state("a", status_pb2.SANDBOX_STATE_FAILED)
        await host.create(spec("b", policy=spec_pb2.RESTART_POLICY_NEVER), "agent")
        await seen.state("b", RUNNING)
        runtime.end(host.instance("b", "c0")[0], 0)
        await seen.state("b", status_pb2.SANDBOX_STATE_SUCCEEDED)


async def test_an_orphan_is_removed_at_the_second_try_too() -> None:
    defect: Any = ZeroDivisionError("a defect")
    first = FakeRuntime()
    async with pool(first) as (host, seen):
        await host.create(spec("a"), "agent")
        await seen.state("a", RUNNING)
    second = FakeRuntime(first.world)
    second.failures = {"remove_sandbox": [defect]}
    async with pool(second, MemoryStore()) as (host, seen):
        await condition(lambda: "a" not in second.world)
        await host.create(spec("a"), "agent")
        await seen.state("a", RUNNING)


async def test_failures_are_said_and_tried_again() -> None:
    runtime = FakeRuntime()
    runtime.failures["run_sandbox"] = [Failure("FailedCreatePodSandBox", "no IP left")]
    async with pool(runtime) as (host, seen):
        await host.create(spec("a"), "agent")
        await seen.until(lambda: any(e.reason == "FailedCreatePodSandBox" for e in seen.events))
        await seen.state("a", RUNNING)
        assert runtime.count("run_sandbox") == 2


async def test_a_defect_in_the_runtime_is_survived() -> None:
    runtime = FakeRuntime()
    runtime.failures["run_sandbox"] = [ZeroDivisionError("secret")]  # type: ignore[list-item]  # on purpose
    async with pool(runtime) as (host, seen):
        await host.create(spec("a"), "agent")
        await seen.state("a", RUNNING)
        (event,) = [e for e in seen.events if e.type == "Warning"]
        assert "secret" not in event.message


async def test_streams_to_what_does_not_run_are_told_apart() -> None:
    runtime = FakeRuntime()
    runtime.block("run_sandbox")
    async with pool(runtime) as (host, _):
        await host.create(spec("a"), "agent")
        with pytest.raises(PoolFailure, match="is waiting to start: ContainerCreating") as failure:
            host.instance("a", "c0")
        assert failure.value.wrong_state
        with pytest.raises(PoolFailure) as failure:
            host.instance("a", "none")
        assert failure.value.kind == NOT_FOUND
        with pytest.raises(PoolFailure) as failure:
            host.running_sandbox("a")
        assert failure.value.wrong_state


async def test_a_watch_goes_on_where_it_stood() -> None:
    runtime = FakeRuntime()
    async with pool(runtime) as (host, seen):
        await host.create(spec("a"), "agent")
        await host.create(spec("b"), "agent")
        await seen.until(lambda: [s.state for s in seen.latest.values()] == [RUNNING] * 2)
        epoch, revision = host.journal.epoch, host.journal.revision
        await host.delete("a", 0, "")
        await seen.until(lambda: "a" in seen.gone)
        watch = host.watch(epoch, revision)
        batch = await asyncio.wait_for(anext(watch), 30)
        assert not batch.snapshot and not batch.sandboxes
        assert [s.uid for s in batch.gone] == ["a"]
        await watch.aclose()  # type: ignore[attr-defined]  # it is a generator
