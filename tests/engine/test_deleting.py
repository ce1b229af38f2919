"""Deletion in every phase, and adoption after a restart of the pool."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.world import SECOND, World, make_spec
from vknode.pool.engine import steps
from vknode.pool.runtimes.facts import ObservedState
from vknode.pool.v1 import spec_pb2, status_pb2

NEVER = spec_pb2.RESTART_POLICY_NEVER


def stops(world: World) -> list[steps.StopContainer]:
    return [a for a in world.pending.values() if isinstance(a, steps.StopContainer)]


def test_deletion_stops_with_grace_then_removes() -> None:
    world = World(make_spec(mains=2))
    world.settle()
    world.feed(steps.Delete())
    assert [s.grace_seconds for s in stops(world)] == [30, 30]
    assert world.status().deleting
    assert [e.message for e in world.emitted if e.reason == "Killing"] == [
        "Stopping container c0",
        "Stopping container c1",
    ]
    world.settle()
    assert world.machine.gone and world.removed
    assert [c.state.terminated.exit_code for c in world.status().containers] == [143, 143]
    assert world.status().state == status_pb2.SANDBOX_STATE_FAILED


def test_a_second_deletion_only_shortens() -> None:
    world = World(make_spec())
    world.settle()
    world.feed(steps.Delete(20.0))
    world.pass_time(2 * SECOND)
    world.feed(steps.Delete(60.0))
    assert [s.grace_seconds for s in stops(world)] == [20]
    world.feed(steps.Delete(0.0))
    assert [s.grace_seconds for s in stops(world)] == [20, 0]
    assert world.said().count("Killing") == 1
    world.settle()
    assert world.machine.gone


def test_deletion_while_queued_never_reaches_the_runtime() -> None:
    world = World(make_spec())
    # op 1 is the image, op 2 the sandbox: it has begun, so its answer is awaited.
    world.feed(steps.Delete(0.0))
    assert [type(a) for a in world.pending.values()] == [steps.RunSandbox]
    world.settle()
    assert world.machine.gone and world.starts == []


def test_deletion_during_a_start_stops_what_has_started() -> None:
    world = World(make_spec())
    world.answer(1)
    world.answer(2)
    (op,) = world.pending
    started = world.carry_out(world.pending[op])
    world.pending.pop(op)
    world.feed(steps.Delete(5.0))
    assert not world.pending
    assert started is not None
    world.feed(started)
    assert [s.grace_seconds for s in stops(world)] == [5]
    world.settle()
    assert world.machine.gone


def test_a_lost_exit_event_does_not_block_a_deletion() -> None:
    world = World(make_spec())
    world.settle()
    world.feed(steps.Delete(1.0))
    (stop,) = stops(world)
    answer = world.carry_out(world.pending.pop(stop.op))
    world.queue.clear()
    assert answer is not None
    world.feed(answer)
    early = world.removed
    world.pass_time(3 * SECOND)
    world.settle()
    assert (early, world.removed) == (False, True)
    assert world.main().state.terminated.exit_code == 143, "the real one, from the inventory"


def test_failed_removals_are_repeated_and_said() -> None:
    world = World(make_spec())
    world.settle()
    world.feed(steps.Delete(0.0))
    for _ in range(3):
        while not any(isinstance(a, steps.RemoveSandbox) for a in world.pending.values()):
            if world.queue:
                world.deliver()
            elif world.pending:
                world.answer(next(iter(world.pending)))
            else:
                world.pass_time(SECOND)
        (op,) = world.pending
        world.fail(op, "KillPodSandboxError", "busy")
    assert world.said().count("FailedKillPod") == 3
    world.pass_time(10 * SECOND)
    world.settle()
    assert world.machine.gone


def test_adoption_keeps_what_runs() -> None:
    world = World(make_spec(inits=1, mains=2))
    world.settle()
    world.crash("i0", 0)
    world.crash("c0", 1)
    before = world.status()
    starts = list(world.starts)
    world.restart_pool()
    world.settle()
    after = world.status()
    assert world.starts == starts
    for one, other in zip(before.containers, after.containers, strict=True):
        assert (one.container_id, one.restart_count, one.state, one.last_termination) == (
            other.container_id,
            other.restart_count,
            other.state,
            other.last_termination,
        )
    assert after.initialized and after.state == before.state
    assert list(after.pod_ips) == list(before.pod_ips)


def test_adoption_continues_a_deletion_with_what_is_left_of_the_grace() -> None:
    world = World(make_spec())
    world.settle()
    world.feed(steps.Delete(20.0))
    world.pass_time(15 * SECOND)
    world.restart_pool()
    assert [s.grace_seconds for s in stops(world)] == [5]
    world.settle()
    assert world.machine.gone


def test_adoption_keeps_the_back_off() -> None:
    world = World(make_spec())
    world.settle()
    for _ in range(3):
        world.crash("c0", 1)
        world.pass_time(50 * SECOND)
        world.settle()
    world.crash("c0", 1)
    wake = world.machine.wake_at
    message = world.main().state.waiting.message
    world.restart_pool()
    assert world.machine.wake_at == wake
    assert world.main().state.waiting.message == message


def test_what_never_restarts_is_not_run_twice_when_the_runtime_forgot_it() -> None:
    world = World(make_spec(policy=NEVER))
    world.settle()
    world.instances.clear()
    world.sandbox = None
    world.restart_pool()
    world.settle()
    assert world.status().state == status_pb2.SANDBOX_STATE_FAILED
    assert world.main().state.terminated.reason == "ContainerStatusUnknown"
    assert world.starts == ["c0"]


def test_an_instance_that_was_created_but_not_started_is_replaced() -> None:
    world = World(make_spec())
    world.answer(1)
    world.answer(2)
    (op,) = world.pending
    world.carry_out(world.pending[op])
    world.instances[0].state = ObservedState.CREATED
    world.restart_pool()
    world.settle()
    assert world.main().state.HasField("running") and world.main().restart_count == 0


def test_an_ended_sandbox_stays_ended() -> None:
    world = World(make_spec(policy=NEVER, deadline=50))
    world.settle()
    world.pass_time(50 * SECOND)
    world.settle()
    before = world.status()
    before.phases.ClearField("images_ready")  # the runtime cannot tell
    world.restart_pool()
    world.settle()
    assert world.status() == before


@settings(max_examples=60, deadline=None)
@given(
    cut=st.integers(0, 12),
    inits=st.integers(0, 2),
    mains=st.integers(1, 2),
    delete=st.booleans(),
)
def test_a_restart_of_the_pool_at_any_point_leads_to_the_same_end(
    cut: int, inits: int, mains: int, delete: bool
) -> None:
    ends = []
    for restart in (False, True):
        world = World(make_spec(inits=inits, mains=mains, policy=NEVER))
        for step in range(14):
            if step == cut and restart:
                world.restart_pool()
            if step == 6 and delete:
                world.feed(steps.Delete(3.0))
            if world.queue:
                world.deliver()
            elif world.pending:
                world.answer(next(iter(world.pending)))
        for _ in range(10):
            world.settle()
            for instance in world.running():
                world.end(instance, 0)
        world.settle()
        status = world.status()
        # The restart may hit before or after a start that a deletion forbids.
        started = set(world.starts)
        if not delete:
            assert len(started) == inits + mains and len(world.starts) == inits + mains
            ends.append(
                (
                    status.state,
                    [(c.state.terminated.exit_code, c.restart_count) for c in status.containers],
                )
            )
        else:
            assert world.machine.gone and len(world.starts) == len(started)
    assert len(set(map(str, ends))) <= 1


def test_a_drained_sandbox_ends_as_a_deleted_one_does_but_stays_known() -> None:
    spec = make_spec(sidecars=1, mains=1)
    spec.containers[0].pre_stop.exec.command.append("bye")
    world = World(spec)
    world.settle()
    world.feed(steps.Drained())
    hooks = [a for a in world.pending.values() if isinstance(a, steps.RunHook)]
    assert [hook.ref.name for hook in hooks] == ["c0"] and not stops(world)
    world.answer(hooks[0].op)
    assert [(s.ref.name, s.grace_seconds) for s in stops(world)] == [("c0", 30)]
    world.feed(steps.Drained())  # as often as it is said
    world.settle()
    status = world.status()
    assert status.state == status_pb2.SANDBOX_STATE_FAILED and not world.machine.gone
    assert (status.reason, status.message) == (
        "Terminated",
        "Pod was terminated in response to imminent node shutdown.",
    )
    assert world.side().state.terminated.exit_code == 143
    world.feed(steps.Delete(0.0))
    world.settle()
    assert world.machine.gone


@pytest.mark.parametrize("policy", [NEVER, spec_pb2.RESTART_POLICY_ON_FAILURE])
def test_a_drained_sandbox_has_failed_though_the_pool_restarts_and_it_ends_well(
    policy: spec_pb2.RestartPolicy.ValueType,
) -> None:
    world = World(make_spec(policy=policy))
    world.settle()
    world.feed(steps.Drained())
    world.pass_time(10 * SECOND)
    (instance,) = world.running()
    world.end(instance, 0)
    world.restart_pool()
    world.settle()
    assert world.status().state == status_pb2.SANDBOX_STATE_FAILED
    assert world.status().reason == "Terminated"


def test_a_restarted_pool_gives_a_drained_sandbox_no_new_grace() -> None:
    world = World(make_spec())
    world.settle()
    world.feed(steps.Drained())
    world.now += 20 * SECOND
    world.restart_pool()
    assert [s.grace_seconds for s in stops(world)] == [10]
