"""Post-start and pre-stop hooks, and how a grace is counted with them."""

from __future__ import annotations

from tests.engine.test_probes import probe
from tests.engine.world import FAILURE, SECOND, World, make_spec
from vknode.pool.engine import steps
from vknode.pool.v1 import spec_pb2, status_pb2


def hooks(world: World) -> list[steps.RunHook]:
    return [a for a in world.pending.values() if isinstance(a, steps.RunHook)]


def stops(world: World) -> list[steps.StopContainer]:
    return [a for a in world.pending.values() if isinstance(a, steps.StopContainer)]


def with_post_start(
    mains: int = 1,
    policy: spec_pb2.RestartPolicy.ValueType = spec_pb2.RESTART_POLICY_ALWAYS,
) -> World:
    spec = make_spec(mains=mains, policy=policy)
    spec.containers[0].post_start.exec.command.append("hello")
    world = World(spec)
    while not hooks(world):
        world.answer(next(iter(world.pending)))
    return world


def with_pre_stop(seconds: int | None = None, grace: int = 30) -> World:
    spec = make_spec(grace=grace)
    if seconds is None:
        spec.containers[0].pre_stop.exec.command.append("bye")
    else:
        spec.containers[0].pre_stop.sleep.seconds = seconds
    world = World(spec)
    world.settle()
    return world


def test_a_container_runs_once_its_post_start_hook_is_done() -> None:
    world = with_post_start(mains=2)
    assert world.main().state.waiting.reason == "ContainerCreating"
    assert world.status().state == status_pb2.SANDBOX_STATE_STARTING
    assert world.starts == ["c0"], "the next one waits for the hook"
    (hook,) = hooks(world)
    assert hook.timeout_seconds is None and hook.ips == ("10.0.0.1",)
    world.settle()
    assert world.main().state.HasField("running") and world.main().ready
    assert world.starts == ["c0", "c1"]
    assert world.status().state == status_pb2.SANDBOX_STATE_RUNNING


def test_a_failed_post_start_hook_kills_the_container_and_says_why() -> None:
    world = with_post_start()
    (hook,) = hooks(world)
    world.fail(hook.op, "PostStartHookError", "exec [hello] failed: exit code 3")
    assert world.event("FailedPostStartHook") == "PostStartHook failed"
    assert world.event("Killing") == "FailedPostStartHook"
    (stop,) = stops(world)
    assert stop.grace_seconds == 30
    world.answer(stop.op)
    world.deliver()
    assert world.main().restart_count == 0
    world.settle()
    assert world.main().restart_count == 0 or world.main().last_termination
    assert all("exit code 3" not in e.message for e in world.emitted), "it may hold secrets"


def test_while_it_is_down_the_status_tells_of_the_failed_hook() -> None:
    world = with_post_start()
    for _ in range(2):
        (hook,) = hooks(world)
        world.fail(hook.op, "PostStartHookError", "it failed")
        world.answer(stops(world)[0].op)
        world.deliver()
        while world.pending and not hooks(world):
            world.answer(next(iter(world.pending)))
    assert world.main().state.waiting.reason == "CrashLoopBackOff"


def test_a_hook_that_failed_for_good_leaves_the_containers_end() -> None:
    world = with_post_start(policy=spec_pb2.RESTART_POLICY_NEVER)
    (hook,) = hooks(world)
    world.fail(hook.op, "PostStartHookError", "exec [hello] failed: exit code 3")
    world.settle()
    assert world.status().state == status_pb2.SANDBOX_STATE_FAILED
    end = world.main().state.terminated
    assert (end.exit_code, end.reason) == (143, "Error")


def test_a_container_that_ends_during_its_hook_is_an_ordinary_end() -> None:
    world = with_post_start()
    (instance,) = world.running("c0")
    world.end(instance, 5)
    world.deliver()
    assert world.main().last_termination.terminated.exit_code == 5 or (
        world.main().state.terminated.exit_code == 5
    )
    world.settle()
    assert world.main().restart_count == 1 and world.main().state.HasField("running")


def test_deletion_does_not_wait_for_a_post_start_hook() -> None:
    world = with_post_start()
    world.feed(steps.Delete(10.0))
    assert not hooks(world) and len(stops(world)) == 1
    world.settle()
    assert world.machine.gone


def test_a_post_start_sleep_only_waits() -> None:
    spec = make_spec()
    spec.containers[0].post_start.sleep.seconds = 5
    world = World(spec)
    world.live(4.9)
    assert not world.main().state.HasField("running")
    world.live(0.2)
    assert world.main().state.HasField("running")


def test_a_post_start_hook_is_not_run_twice_when_the_pool_restarts() -> None:
    world = with_post_start()
    world.restart_pool()
    world.settle()
    assert world.hooks == [] and world.main().state.HasField("running")


def test_the_pre_stop_hook_comes_before_the_signal_and_out_of_the_same_grace() -> None:
    world = with_pre_stop()
    world.feed(steps.Delete(30.0))
    (hook,) = hooks(world)
    assert hook.timeout_seconds == 30 and not stops(world)
    world.pass_time(12 * SECOND)
    assert not stops(world)
    world.answer(hook.op)
    (stop,) = stops(world)
    assert stop.grace_seconds == 18


def test_a_hook_that_takes_the_whole_grace_leaves_2_s() -> None:
    world = with_pre_stop()
    world.feed(steps.Delete(30.0))
    world.pass_time(30 * SECOND)
    assert not hooks(world), "it is given up"
    (stop,) = stops(world)
    assert stop.grace_seconds == 2


def test_a_failed_pre_stop_hook_is_told_and_the_stop_goes_on() -> None:
    world = with_pre_stop()
    world.feed(steps.Delete(30.0))
    world.fail(hooks(world)[0].op, "PreStopHookError", "no such file")
    assert world.event("FailedPreStopHook") == "PreStopHook failed"
    assert len(stops(world)) == 1


def test_a_pre_stop_sleep_is_cut_off_by_the_grace() -> None:
    world = with_pre_stop(seconds=60, grace=10)
    world.feed(steps.Delete())
    world.pass_time(9 * SECOND)
    assert not stops(world)
    world.pass_time(SECOND)
    assert stops(world)[0].grace_seconds == 2


def test_no_grace_means_no_hook() -> None:
    world = with_pre_stop()
    world.feed(steps.Delete(0.0))
    assert not hooks(world)
    assert stops(world)[0].grace_seconds == 0


def test_a_second_shorter_deletion_shortens_the_hooks_time() -> None:
    world = with_pre_stop(seconds=60, grace=90)
    world.feed(steps.Delete())
    world.pass_time(5 * SECOND)
    world.feed(steps.Delete(1.0))
    world.pass_time(SECOND)
    assert stops(world)[0].grace_seconds == 2


def test_the_pre_stop_hook_also_runs_before_a_restart_by_a_probe() -> None:
    spec = make_spec()
    spec.containers[0].pre_stop.exec.command.append("bye")
    spec.containers[0].liveness_probe.CopyFrom(probe(period=1, failures=1))
    world = World(spec)
    world.settle()
    world.pass_time(SECOND)
    (op,) = world.pending
    world.feed(steps.Probed(op, FAILURE))
    world.settle()
    assert world.hooks == [("c0", "bye")]
    assert world.main().restart_count == 1


def test_a_container_that_ends_by_itself_needs_no_pre_stop_hook() -> None:
    world = with_pre_stop()
    world.crash("c0", 1)
    assert world.hooks == []


def test_a_deletion_during_the_hook_of_a_restart_takes_over() -> None:
    world = with_pre_stop()
    newer = spec_pb2.SandboxSpec()
    newer.CopyFrom(world.spec)
    newer.containers[0].image = "app:1"
    world.spec = newer
    world.feed(steps.Update(newer))
    assert len(hooks(world)) == 1
    world.feed(steps.Delete(5.0))
    world.pass_time(5 * SECOND)
    assert stops(world)[0].grace_seconds == 2
    world.settle()
    assert world.machine.gone and world.starts == ["c0"]
