"""Sidecars: init containers that stay."""

from __future__ import annotations

from tests.engine.test_probes import probe
from tests.engine.world import FAILURE, SECOND, SUCCESS, World, make_spec
from vknode.pool.engine import steps
from vknode.pool.runtimes.facts import ObservedState
from vknode.pool.v1 import spec_pb2, status_pb2

NEVER = spec_pb2.RESTART_POLICY_NEVER
ON_FAILURE = spec_pb2.RESTART_POLICY_ON_FAILURE


def stops(world: World) -> list[str]:
    return [a.ref.name for a in world.pending.values() if isinstance(a, steps.StopContainer)]


def test_init_containers_sidecars_and_main_ones_start_in_order() -> None:
    spec = make_spec(inits=2, sidecars=1, mains=1)
    spec.init_containers.insert(1, spec.init_containers.pop(2))  # i0, s0, i1
    world = World(spec)
    world.settle()
    assert world.starts == ["i0"]
    world.crash("i0", 0)
    assert world.starts == ["i0", "s0", "i1"]
    assert not world.status().initialized
    assert world.side().started and world.side().ready
    world.crash("i1", 0)
    assert world.starts == ["i0", "s0", "i1", "c0"]
    assert world.status().initialized
    assert world.status().state == status_pb2.SANDBOX_STATE_RUNNING


def test_the_next_one_waits_for_a_sidecars_startup_probe() -> None:
    spec = make_spec(sidecars=1)
    spec.init_containers[0].startup_probe.CopyFrom(probe(period=1, failures=100))
    world = World(spec)
    world.outcomes["s0"] = FAILURE
    world.live(10)
    assert world.starts == ["s0"]
    assert world.main().state.waiting.reason == "PodInitializing"
    world.outcomes["s0"] = SUCCESS
    world.live(1)
    assert world.starts == ["s0", "c0"]


def test_a_sidecar_restarts_whatever_the_policy_and_nobody_starts_anew() -> None:
    world = World(make_spec(sidecars=2, policy=NEVER))
    world.settle()
    assert world.starts == ["s0", "s1", "c0"]
    world.crash("s0", 0)
    assert world.starts == ["s0", "s1", "c0", "s0"]
    assert world.side().restart_count == 1
    world.crash("s0", 3)
    assert world.side().state.waiting.reason == "CrashLoopBackOff"
    world.live(11)
    assert world.side().restart_count == 2
    assert world.status().initialized


def test_a_sidecar_that_ends_before_the_next_init_is_done_holds_nobody_up() -> None:
    spec = make_spec(inits=1, sidecars=1)
    spec.init_containers.insert(0, spec.init_containers.pop(1))  # s0, i0
    world = World(spec)
    world.settle()
    world.crash("s0", 1)
    world.crash("s0", 1)
    assert world.side().state.waiting.reason == "CrashLoopBackOff"
    world.crash("i0", 0)
    assert world.starts.count("c0") == 1


def test_the_sandbox_succeeds_when_the_main_containers_have_and_sidecars_end_in_reverse() -> None:
    world = World(make_spec(sidecars=2, mains=2, policy=ON_FAILURE))
    world.settle()
    world.crash("c0", 0)
    assert world.status().state == status_pb2.SANDBOX_STATE_RUNNING
    (last,) = world.running("c1")
    world.end(last, 0)
    world.deliver()
    assert world.status().state == status_pb2.SANDBOX_STATE_RUNNING, "sidecars still run"
    assert stops(world) == ["s1"]
    world.answer(next(iter(world.pending)))
    world.deliver()
    assert stops(world) == ["s0"]
    world.settle()
    assert world.status().state == status_pb2.SANDBOX_STATE_SUCCEEDED
    assert [c.state.terminated.exit_code for c in world.status().init_containers] == [143, 143]
    assert not world.running()


def test_sidecars_that_do_not_end_are_killed_by_the_sandboxs_grace() -> None:
    world = World(make_spec(sidecars=1, policy=NEVER, grace=20))
    world.settle()
    (main,) = world.running("c0")
    world.end(main, 0)
    world.deliver()
    (stop,) = [a for a in world.pending.values() if isinstance(a, steps.StopContainer)]
    assert stop.ref.name == "s0" and stop.grace_seconds == 20


def test_a_failed_main_container_fails_the_sandbox_after_its_sidecars() -> None:
    world = World(make_spec(sidecars=1, policy=NEVER))
    world.settle()
    world.crash("c0", 7)
    assert world.status().state == status_pb2.SANDBOX_STATE_FAILED
    assert not world.running()


def test_a_failed_init_container_takes_its_sidecars_along() -> None:
    spec = make_spec(inits=1, sidecars=1, policy=NEVER)
    spec.init_containers.insert(0, spec.init_containers.pop(1))  # s0, i0
    world = World(spec)
    world.settle()
    world.crash("i0", 1)
    assert world.status().state == status_pb2.SANDBOX_STATE_FAILED
    assert not world.running() and "c0" not in world.starts


def test_deletion_ends_main_containers_first_and_sidecars_in_reverse() -> None:
    world = World(make_spec(sidecars=2, mains=2))
    world.settle()
    world.feed(steps.Delete(30.0))
    assert sorted(stops(world)) == ["c0", "c1"]
    world.answer(next(iter(world.pending)))
    world.deliver()
    assert stops(world) == ["c1"]
    world.answer(next(iter(world.pending)))
    world.deliver()
    assert stops(world) == ["s1"]
    world.settle()
    assert world.machine.gone


def test_when_the_grace_is_over_sidecars_wait_for_nobody() -> None:
    world = World(make_spec(sidecars=1))
    world.settle()
    world.feed(steps.Delete(10.0))
    assert stops(world) == ["c0"]
    world.pass_time(10 * SECOND)
    (stop,) = [
        a
        for a in world.pending.values()
        if isinstance(a, steps.StopContainer) and a.ref.name == "s0"
    ]
    assert stop.grace_seconds == 2, "never less, as on a kubelet"


def test_a_sidecar_with_a_failed_liveness_probe_is_restarted_alone() -> None:
    spec = make_spec(sidecars=1)
    spec.init_containers[0].liveness_probe.CopyFrom(probe(period=1, failures=1))
    world = World(spec)
    world.settle()
    world.outcomes["s0"] = FAILURE
    world.live(1.5)
    assert world.side().restart_count == 1 and world.main().restart_count == 0
    assert world.event("Killing") == "Init container s0 failed liveness probe"


def test_after_a_restart_of_the_pool_nobody_begins_anew() -> None:
    spec = make_spec(inits=1, sidecars=1)
    spec.init_containers.insert(0, spec.init_containers.pop(1))  # s0, i0
    world = World(spec)
    world.settle()
    world.restart_pool()
    assert world.status().init_containers[0].ready
    assert not world.status().initialized
    world.crash("i0", 0)
    assert world.starts == ["s0", "i0", "c0"]
    world.instances = [i for i in world.instances if i.ref.name != "i0"]  # was collected
    world.restart_pool()
    world.settle()
    assert world.status().initialized and world.starts == ["s0", "i0", "c0"]
    assert all(i.state is ObservedState.RUNNING for i in world.instances)


def test_a_new_sandbox_begins_with_the_first_init_container_again() -> None:
    world = World(make_spec(inits=1, sidecars=1))
    world.settle()
    world.crash("i0", 0)
    assert world.starts == ["i0", "s0", "c0"]
    world.kill_sandbox()
    world.settle()
    assert world.starts == ["i0", "s0", "c0", "i0"]
    world.crash("i0", 0)
    world.live(11)
    assert world.starts[4:] == ["s0", "c0"]
