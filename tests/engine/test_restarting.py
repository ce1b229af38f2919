"""Restarts, back-off and the end of a sandbox."""

from __future__ import annotations

import pytest

from tests.engine.world import SECOND, World, make_spec
from vknode.pool.engine import steps
from vknode.pool.runtimes.facts import ContainerExit, ContainerExited
from vknode.pool.v1 import spec_pb2, status_pb2

ALWAYS = spec_pb2.RESTART_POLICY_ALWAYS
ON_FAILURE = spec_pb2.RESTART_POLICY_ON_FAILURE
NEVER = spec_pb2.RESTART_POLICY_NEVER


def test_a_crash_loop_waits_as_a_kubelet_does() -> None:
    world = World(make_spec())
    world.settle()
    gaps, messages = [], []
    for _ in range(8):
        world.crash("c0", 1)
        began = world.now
        if not world.running("c0"):
            waiting = world.main().state.waiting
            assert waiting.reason == "CrashLoopBackOff"
            messages.append(waiting.message)
            assert world.machine.wake_at is not None
            world.pass_time(world.machine.wake_at - world.now)
            world.settle()
        gaps.append((world.now - began) // SECOND)
    assert gaps == [0, 10, 20, 40, 80, 160, 300, 300]
    assert messages[0] == ("back-off 10s restarting failed container=c0 pod=web_default(u1)")
    assert messages[-1].startswith("back-off 5m0s ")
    main = world.main()
    assert main.restart_count == 8
    assert main.last_termination.terminated.exit_code == 1
    backoffs = [e for e in world.emitted if e.reason == "BackOff"]
    assert backoffs[0].message == ("Back-off restarting failed container c0 in pod web_default(u1)")
    # Only what `logs --previous` can ask for is kept.
    assert len(world.instances) == 2


def test_ten_minutes_of_running_forgive() -> None:
    world = World(make_spec())
    world.settle()
    for _ in range(3):
        world.crash("c0", 1)
        world.pass_time(60 * SECOND)
        world.settle()
    world.pass_time(601 * SECOND)
    world.crash("c0", 1)
    assert world.running("c0")  # at once
    world.crash("c0", 1)
    assert world.main().state.waiting.message.startswith("back-off 10s ")


@pytest.mark.parametrize(
    ("policy", "codes", "state"),
    [
        (NEVER, (0, 0), status_pb2.SANDBOX_STATE_SUCCEEDED),
        (NEVER, (0, 2), status_pb2.SANDBOX_STATE_FAILED),
        (ON_FAILURE, (0, 0), status_pb2.SANDBOX_STATE_SUCCEEDED),
    ],
)
def test_a_sandbox_ends_when_nothing_will_run_again(
    policy: spec_pb2.RestartPolicy.ValueType,
    codes: tuple[int, int],
    state: status_pb2.SandboxState.ValueType,
) -> None:
    world = World(make_spec(mains=2, policy=policy))
    world.settle()
    world.crash("c0", codes[0])
    assert world.status().state == status_pb2.SANDBOX_STATE_RUNNING
    world.crash("c1", codes[1])
    assert world.status().state == state
    assert [c.state.terminated.exit_code for c in world.status().containers] == list(codes)
    assert not world.sandbox_alive and world.instances, "the network goes, the logs stay"
    assert not world.status().network_ready
    assert world.machine.instance("c0") is not None
    world.feed(steps.Delete())
    world.settle()
    assert world.machine.gone and world.status().state == state


def test_on_failure_restarts_only_what_failed() -> None:
    world = World(make_spec(mains=2, policy=ON_FAILURE))
    world.settle()
    world.crash("c0", 0)
    world.crash("c1", 1)
    assert world.starts == ["c0", "c1", "c1"]
    world.crash("c1", 0)
    assert world.status().state == status_pb2.SANDBOX_STATE_SUCCEEDED


def test_a_policy_of_its_own_wins() -> None:
    spec = make_spec(mains=2, policy=NEVER)
    spec.containers[1].restart_policy = ALWAYS
    world = World(spec)
    world.settle()
    world.crash("c0", 0)
    world.crash("c1", 0)
    assert world.starts == ["c0", "c1", "c1"]


def test_an_oom_kill_shows_its_reason() -> None:
    world = World(make_spec(policy=NEVER))
    world.settle()
    world.crash("c0", 137, "OOMKilled")
    end = world.main().state.terminated
    assert (end.exit_code, end.reason) == (137, "OOMKilled")
    assert end.container_id == "test://k2"


def test_an_exit_told_before_the_start_returns_is_not_lost() -> None:
    world = World(make_spec(policy=NEVER))
    world.answer(1)
    world.answer(2)
    (op,) = world.pending
    started = world.carry_out(world.pending.pop(op))
    world.end(world.running()[0], 7)
    world.deliver()
    assert started is not None
    world.feed(started)
    assert world.main().state.terminated.exit_code == 7
    world.settle()
    assert world.said() == ["Pulled", "Created", "Started"]


def test_a_start_that_fails_counts_as_an_end() -> None:
    world = World(make_spec())
    world.answer(1)
    world.answer(2)
    for _ in range(2):
        while not any(isinstance(a, steps.StartContainer) for a in world.pending.values()):
            world.answer(next(iter(world.pending)))
        (op,) = world.pending
        world.fail(op, "RunContainerError", 'exec: "nope": not found')
    main = world.main()
    assert main.state.waiting.reason == "CrashLoopBackOff"
    assert main.last_termination.terminated.reason == "StartError"
    assert main.last_termination.terminated.exit_code == 128
    assert main.restart_count == 1
    assert 'Error: exec: "nope": not found' in [e.message for e in world.emitted]


def test_a_container_that_cannot_be_created_is_tried_again() -> None:
    world = World(make_spec())
    world.answer(1)
    world.answer(2)
    (op,) = world.pending
    world.fail(op, "CreateContainerError", "name is in use")
    assert world.main().state.waiting.reason == "CreateContainerError"
    assert world.status().state == status_pb2.SANDBOX_STATE_STARTING
    world.pass_time(SECOND)
    world.settle()
    assert world.main().state.HasField("running") and world.main().restart_count == 0


def test_a_dead_sandbox_is_made_anew_and_begins_with_init() -> None:
    world = World(make_spec(inits=1))
    world.settle()
    world.crash("i0", 0)
    assert world.starts == ["i0", "c0"]
    world.kill_sandbox()
    world.settle()
    assert world.sandbox is not None and world.sandbox.attempt == 1
    assert world.starts == ["i0", "c0", "i0"]
    assert world.status().state == status_pb2.SANDBOX_STATE_RUNNING
    world.crash("i0", 0)
    assert world.starts[-1] == "c0" and world.main().restart_count == 1
    assert "SandboxChanged" in world.said()


def test_a_dead_sandbox_ends_a_pod_that_never_restarts() -> None:
    world = World(make_spec(mains=2, policy=NEVER))
    world.settle()
    world.crash("c0", 0)
    world.kill_sandbox()
    world.settle()
    assert world.status().state == status_pb2.SANDBOX_STATE_FAILED
    assert world.starts == ["c0", "c1"]


def test_the_active_deadline_fails_the_sandbox() -> None:
    world = World(make_spec(deadline=60, grace=5))
    world.settle()
    world.pass_time(60 * SECOND)
    (stop,) = world.pending.values()
    assert isinstance(stop, steps.StopContainer) and stop.grace_seconds == 5
    assert world.status().state == status_pb2.SANDBOX_STATE_RUNNING, "it still runs"
    world.settle()
    status = world.status()
    assert status.state == status_pb2.SANDBOX_STATE_FAILED
    assert status.reason == "DeadlineExceeded"
    assert status.message == "Pod was active on the node longer than the specified deadline"


def test_a_doubled_or_old_exit_changes_nothing() -> None:
    world = World(make_spec())
    world.settle()
    world.crash("c0", 1)
    version = world.machine.version
    old = world.delivered[0]
    assert isinstance(old, ContainerExited)
    world.feed(old)
    world.feed(ContainerExited(old.ref, ContainerExit(0, "Completed", 1, 2)))
    assert world.machine.version == version and world.main().state.HasField("running")


def test_what_waits_for_its_next_start_tells_its_end_once_there_is_none() -> None:
    world = World(make_spec(grace=60))
    world.settle()
    world.crash("c0", 3)
    world.crash("c0", 4)
    assert world.main().state.waiting.reason == "CrashLoopBackOff"
    world.feed(steps.Delete())
    world.settle()
    main = world.main()
    assert (main.state.terminated.exit_code, main.state.terminated.reason) == (4, "Error")
    assert main.last_termination.terminated.exit_code == 3


def _with_image(world: World, image: str) -> None:
    newer = spec_pb2.SandboxSpec()
    newer.CopyFrom(world.machine.wanted)
    newer.generation += 1
    newer.containers[0].image = image
    world.spec = newer
    world.feed(steps.Update(newer))


def test_an_image_that_is_changed_while_its_container_is_started_still_comes() -> None:
    world = World(make_spec())
    while not any(isinstance(a, steps.StartContainer) for a in world.pending.values()):
        world.answer(next(iter(world.pending)))
    _with_image(world, "app:1")
    world.settle()
    assert world.main().image == "app:1" and world.main().restart_count == 1
    assert [i.image.reference for i in world.running()] == ["app:1"]


@pytest.mark.parametrize("stopped", [False, True])
def test_a_new_image_comes_although_the_pool_restarts_in_between(stopped: bool) -> None:
    world = World(make_spec(policy=spec_pb2.RESTART_POLICY_NEVER))
    world.settle()
    _with_image(world, "app:1")
    (stop,) = [a for a in world.pending.values() if isinstance(a, steps.StopContainer)]
    if stopped:
        world.answer(stop.op)
    world.restart_pool()
    world.settle()
    assert [i.image.reference for i in world.running()] == ["app:1"]
    assert world.status().state == status_pb2.SANDBOX_STATE_RUNNING
    world.crash("c0", 0)
    assert world.status().state == status_pb2.SANDBOX_STATE_SUCCEEDED
