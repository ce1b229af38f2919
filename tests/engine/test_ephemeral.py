"""Ephemeral containers, as `kubectl debug` adds them."""

from __future__ import annotations

from tests.engine.world import World, make_spec
from vknode.pool.engine import steps
from vknode.pool.v1 import spec_pb2, status_pb2

NEVER = spec_pb2.RESTART_POLICY_NEVER


def add_debug(world: World, name: str = "debug", image: str = "debug:0") -> None:
    newer = spec_pb2.SandboxSpec()
    newer.CopyFrom(world.spec)
    newer.generation += 1
    newer.ephemeral_containers.add(
        name=name, image=image, image_pull_policy=spec_pb2.IMAGE_PULL_POLICY_IF_NOT_PRESENT
    )
    world.spec = newer
    world.feed(steps.Update(newer))


def test_it_starts_beside_the_others_and_shows_its_own_status() -> None:
    world = World(make_spec())
    world.settle()
    add_debug(world)
    assert world.status().ephemeral_containers[0].state.waiting.reason == "ContainerCreating"
    world.settle()
    (status,) = world.status().ephemeral_containers
    assert status.state.HasField("running") and status.restart_count == 0
    assert world.starts == ["c0", "debug"]
    paths = {e.field_path for e in world.emitted}
    assert "spec.ephemeralContainers{debug}" in paths


def test_it_starts_even_while_init_containers_run() -> None:
    world = World(make_spec(inits=1))
    world.settle()
    add_debug(world)
    world.settle()
    assert world.starts == ["i0", "debug"]


def test_it_is_never_restarted() -> None:
    world = World(make_spec())
    world.settle()
    add_debug(world)
    world.settle()
    world.crash("debug", 1)
    world.live(100)
    (status,) = world.status().ephemeral_containers
    assert status.state.terminated.exit_code == 1
    assert world.starts == ["c0", "debug"]


def test_nobody_waits_for_it_and_it_ends_with_the_sandbox() -> None:
    world = World(make_spec(policy=NEVER))
    world.settle()
    add_debug(world)
    world.settle()
    world.crash("c0", 0)
    assert world.status().state == status_pb2.SANDBOX_STATE_SUCCEEDED
    assert not world.running()


def test_one_that_cannot_start_disturbs_nobody() -> None:
    world = World(make_spec())
    world.settle()
    add_debug(world, image="nowhere")
    (op,) = [op for op, a in world.pending.items() if isinstance(a, steps.EnsureImage)]
    world.answer(op)
    (op,) = [op for op, a in world.pending.items() if isinstance(a, steps.EnsureImage)]
    world.fail(op, "ErrImagePull", "not found")
    assert world.status().ephemeral_containers[0].state.waiting.reason == "ErrImagePull"
    assert world.main().state.HasField("running")
    world.crash("c0", 1)
    assert world.main().restart_count == 1


def test_it_is_found_again_when_the_pool_restarts() -> None:
    world = World(make_spec())
    world.settle()
    add_debug(world)
    world.settle()
    world.restart_pool()
    world.settle()
    assert world.status().ephemeral_containers[0].state.HasField("running")
    assert world.starts == ["c0", "debug"]
    assert world.machine.instance("debug") is not None
