"""Resources that change while a sandbox runs."""

from __future__ import annotations

from tests.engine.world import World, make_spec
from vknode.pool.engine import steps
from vknode.pool.v1 import spec_pb2


def sized(mains: int = 1) -> World:
    spec = make_spec(mains=mains)
    for container in spec.containers:
        container.resources.requests["cpu"] = "100m"
        container.resources.limits["memory"] = "64Mi"
    world = World(spec)
    world.settle()
    return world


def update(world: World, *, pending: str = "", message: str = "", **amounts: str) -> None:
    newer = spec_pb2.SandboxSpec()
    newer.CopyFrom(world.machine.wanted)
    newer.generation += 1
    for name, amount in amounts.items():
        kind = "requests" if name == "cpu" else "limits"
        getattr(newer.containers[0].resources, kind)[name] = amount
    world.spec = newer
    world.feed(steps.Update(newer, pending, message))


def test_a_resize_is_carried_out_without_a_restart() -> None:
    world = sized()
    update(world, cpu="200m")
    status = world.status()
    assert status.resize.in_progress and status.resize.in_progress_generation == 2
    assert world.main().resources.requests["cpu"] == "100m"
    assert world.main().allocated.requests["cpu"] == "200m"
    world.settle()
    assert not world.status().HasField("resize")
    assert world.main().resources.requests["cpu"] == "200m"
    assert world.main().restart_count == 0 and world.resized == ["c0"]
    assert world.event("ResizeStarted") == (
        'Pod resize started: {"containers":[{"name":"c0","resources":'
        '{"limits":{"memory":"64Mi"},"requests":{"cpu":"200m"}}}],"generation":2}'
    )
    assert "Pod resize completed" in world.event("ResizeCompleted")


def test_the_same_amount_in_other_words_is_no_resize() -> None:
    world = sized()
    update(world, cpu="0.1")
    world.settle()
    assert world.resized == [] and "ResizeStarted" not in world.said()


def test_a_resize_without_room_leaves_everything_as_it_is() -> None:
    world = sized()
    update(world, pending="Deferred", message="Node didn't have enough resource: cpu", cpu="9")
    world.settle()
    status = world.status()
    assert status.resize.pending_reason == "Deferred" and status.resize.pending_generation == 2
    assert not status.resize.in_progress and world.resized == []
    assert world.main().allocated.requests["cpu"] == "100m"
    assert status.observed_generation == 2
    assert world.said().count("ResizeDeferred") == 1
    world.feed(steps.Reconsidered())
    world.settle()
    assert world.main().resources.requests["cpu"] == "9"
    assert not world.status().HasField("resize")


def test_what_starts_meanwhile_gets_what_is_set_aside() -> None:
    world = sized()
    update(world, pending="Deferred", message="full", cpu="9")
    world.crash("c0", 1)
    assert world.main().restart_count == 1
    assert world.main().resources.requests["cpu"] == "100m"
    update(world, cpu="300m")
    world.settle()
    assert world.main().resources.requests["cpu"] == "300m"


def test_a_pending_resize_and_what_is_set_aside_survive_the_pool() -> None:
    world = sized()
    update(world, pending="Deferred", message="full", cpu="9")
    wanted = world.machine.wanted
    world.machine = type(world.machine).adopt(
        wanted, world.persisted, world.observed(), world.now, scheme="test"
    )
    world.feed(steps.Tick())
    world.settle()
    assert world.main().allocated.requests["cpu"] == "100m"
    assert world.machine.wanted.containers[0].resources.requests["cpu"] == "9"
    assert world.resized == [] and world.machine.resize_pending
    world.feed(steps.Reconsidered())
    world.settle()
    assert world.main().resources.requests["cpu"] == "9" and not world.machine.resize_pending


def test_a_resize_that_was_cut_off_goes_on_when_the_pool_restarts() -> None:
    world = sized()
    update(world, cpu="200m")
    world.restart_pool()
    assert world.status().resize.in_progress
    world.settle()
    assert world.resized == ["c0"] and not world.status().HasField("resize")


def test_a_container_that_wants_a_restart_for_it_gets_one() -> None:
    spec = make_spec()
    spec.containers[0].resources.limits["memory"] = "64Mi"
    spec.containers[0].resources.requests["cpu"] = "100m"
    spec.containers[0].resize_restarts.append("memory")
    world = World(spec)
    world.settle()
    update(world, cpu="200m")
    world.settle()
    assert world.main().restart_count == 0 and world.resized == ["c0"]
    update(world, memory="128Mi")
    world.settle()
    assert world.main().restart_count == 1 and world.resized == ["c0"]
    assert world.event("Killing") == "Container c0 resize requires restart"
    assert world.main().resources.limits["memory"] == "128Mi"
    assert not world.status().HasField("resize")


def test_a_failed_resize_is_told_once_and_tried_again() -> None:
    world = sized()
    update(world, memory="1Mi")
    (op,) = world.pending
    world.fail(op, "ResizeFailed", "memory in use is above 1Mi")
    assert world.status().resize.error == "memory in use is above 1Mi"
    assert world.main().resources.limits["memory"] == "64Mi"
    world.pass_time(10 * 1_000_000_000)
    (op,) = world.pending
    world.fail(op, "ResizeFailed", "memory in use is above 1Mi")
    assert world.said().count("ResizeError") == 1
    world.live(11)
    assert not world.status().HasField("resize")


def test_a_container_without_a_limit_of_its_own_has_the_sandboxs() -> None:
    spec = make_spec(mains=2)
    spec.resources.limits["memory"] = "64Mi"
    spec.containers[0].resources.limits["memory"] = "32Mi"
    world = World(spec)
    world.settle()
    for memory in ("128Mi", "48Mi"):
        newer = spec_pb2.SandboxSpec()
        newer.CopyFrom(world.machine.wanted)
        newer.generation += 1
        newer.resources.limits["memory"] = memory
        world.spec = newer
        world.resized.clear()
        world.feed(steps.Update(newer))
        world.settle()
        assert sorted(world.resized) == ["", "c1"]
        assert not world.status().HasField("resize")


def test_a_failed_change_of_the_sandboxs_limit_is_tried_again_for_each_container() -> None:
    spec = make_spec()
    spec.resources.limits["memory"] = "64Mi"
    world = World(spec)
    world.settle()
    newer = spec_pb2.SandboxSpec()
    newer.CopyFrom(spec)
    newer.generation += 1
    newer.resources.limits["memory"] = "8Mi"
    world.spec = newer
    world.feed(steps.Update(newer))
    for op, action in list(world.pending.items()):
        if isinstance(action, steps.ResizeContainer):
            world.fail(op, "ResizeFailed", "memory in use is above 8Mi")
    world.settle()
    assert world.status().resize.error == "memory in use is above 8Mi"
    assert world.resized == [""]
    world.live(11)
    assert world.resized == ["", "c0"] and not world.status().HasField("resize")


def test_limits_of_the_whole_sandbox_reach_the_runtime() -> None:
    world = sized()
    newer = spec_pb2.SandboxSpec()
    newer.CopyFrom(world.machine.wanted)
    newer.generation += 1
    newer.resources.limits["memory"] = "1Gi"
    world.spec = newer
    world.feed(steps.Update(newer))
    assert [type(a) for a in world.pending.values()] == [steps.ResizeSandbox]
    assert world.status().allocated.limits["memory"] == "1Gi"
    assert not world.status().resources.limits
    world.settle()
    assert world.status().resources.limits["memory"] == "1Gi"
    assert not world.status().HasField("resize")
