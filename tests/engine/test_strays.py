"""A container runs once: an older instance that comes to life after it was given up."""

from __future__ import annotations

import pytest

from tests.engine.world import Instance, World, make_spec
from vknode.pool.engine import steps
from vknode.pool.runtimes.facts import (
    ContainerExit,
    ContainerExited,
    ContainerRef,
    Image,
    ObservedState,
)
from vknode.pool.v1 import spec_pb2


def given_up(world: World) -> Instance:
    """The start of attempt 0 is given up, without a trace in the runtime; the instance that
    comes of it later."""
    while not any(isinstance(a, steps.StartContainer) for a in world.pending.values()):
        world.answer(next(iter(world.pending)))
    (start,) = [a for a in world.pending.values() if isinstance(a, steps.StartContainer)]
    del world.pending[start.op]
    world.feed(steps.Failed(start.op, "RunContainerError", "did not answer in time"))
    ref = ContainerRef(world.spec.uid, "c0", 0, "late")
    return Instance(ref, Image("app:0", "app:0@sha256:1"), world.now)


def running(world: World) -> list[str]:
    return [i.ref.id for i in world.running("c0")]


@pytest.mark.parametrize("state", [ObservedState.RUNNING, ObservedState.CREATED])
@pytest.mark.parametrize("restart", [False, True])
def test_an_older_instance_is_removed_and_never_shown(state: ObservedState, restart: bool) -> None:
    world = World(make_spec())
    late = given_up(world)
    world.live(30)
    (newer,) = running(world)
    late.state = state
    world.instances.insert(0, late)
    if restart:
        world.restart_pool()
    else:
        world.observe()
    assert world.main().container_id == f"test://{newer}"
    world.settle()
    assert running(world) == [newer]
    assert all(i.ref.id != "late" for i in world.instances)
    assert world.main().container_id == f"test://{newer}"
    killed = ContainerExit(137, "Error", late.started_at, world.now)
    world.feed(ContainerExited(late.ref, killed))
    assert world.main().state.HasField("running"), "its end is not that of the newer one"


def test_one_that_ended_for_the_user_does_not_live_on() -> None:
    world = World(make_spec(policy=spec_pb2.RESTART_POLICY_NEVER, mains=2))
    late = given_up(world)
    world.settle()
    assert world.main().state.terminated.reason == "StartError"
    world.instances.append(late)
    world.observe()
    world.settle()
    assert running(world) == [] and world.running("c1")
    assert world.main().state.terminated.reason == "StartError"


def test_what_cannot_be_removed_is_tried_again() -> None:
    world = World(make_spec())
    late = given_up(world)
    world.live(30)
    world.instances.insert(0, late)
    world.observe()
    (op,) = [a.op for a in world.pending.values() if isinstance(a, steps.RemoveContainer)]
    world.fail(op, "RemoveContainer", "the runtime is busy")
    world.observe()
    assert not world.pending, "not at once"
    world.live(11)
    assert len(running(world)) == 1 and "late" not in running(world)
