"""Restart rules of containers, and the restart of all of them."""

from __future__ import annotations

import pytest

from tests.engine.world import World, make_spec
from vknode.pool.engine import policy
from vknode.pool.v1 import spec_pb2, status_pb2

RESTART = spec_pb2.RestartRule.ACTION_RESTART
RESTART_ALL = spec_pb2.RestartRule.ACTION_RESTART_ALL_CONTAINERS
ALWAYS = spec_pb2.RESTART_POLICY_ALWAYS
ON_FAILURE = spec_pb2.RESTART_POLICY_ON_FAILURE
NEVER = spec_pb2.RESTART_POLICY_NEVER


def with_rule(
    action: spec_pb2.RestartRule.Action.ValueType, *codes: int, mains: int = 1, inits: int = 0
) -> World:
    spec = make_spec(policy=NEVER, mains=mains, inits=inits)
    spec.containers[0].restart_policy = NEVER
    spec.containers[0].restart_rules.add(action=action, exit_codes=codes)
    world = World(spec)
    world.settle()
    return world


@pytest.mark.parametrize(
    ("own", "sandbox", "code", "restarts"),
    [
        (0, ALWAYS, 0, True),
        (0, ON_FAILURE, 0, False),
        (0, ON_FAILURE, 1, True),
        (0, NEVER, 1, False),
        (NEVER, ALWAYS, 1, False),
        (ALWAYS, NEVER, 0, True),
        (ON_FAILURE, NEVER, 0, False),
        (ON_FAILURE, NEVER, 2, True),
    ],
)
def test_a_containers_own_policy_comes_before_the_sandboxs(
    own: spec_pb2.RestartPolicy.ValueType,
    sandbox: spec_pb2.RestartPolicy.ValueType,
    code: int,
    restarts: bool,
) -> None:
    container = spec_pb2.Container(name="c", restart_policy=own)
    assert policy.should_restart(container, sandbox, code, failed=code != 0) is restarts


def test_the_first_rule_that_fits_decides() -> None:
    container = spec_pb2.Container(restart_policy=NEVER)
    container.restart_rules.add(action=RESTART, exit_codes=[1, 2])
    container.restart_rules.add(action=RESTART_ALL, exit_codes=[0, 1], not_in=True)
    assert policy.should_restart(container, NEVER, 2, failed=True)
    assert not policy.asks_restart_of_all(container, 2)
    assert policy.asks_restart_of_all(container, 3)
    assert not policy.should_restart(container, NEVER, 0, failed=False)


def test_a_rule_restarts_a_container_that_is_never_restarted_else() -> None:
    world = with_rule(RESTART, 42)
    world.crash("c0", 42)
    assert world.main().restart_count == 1 and world.main().state.HasField("running")
    world.crash("c0", 41)
    assert world.status().state == status_pb2.SANDBOX_STATE_FAILED


def test_restart_of_all_kills_the_others_at_once_and_begins_with_the_first_init() -> None:
    world = with_rule(RESTART_ALL, 42, mains=2, inits=1)
    world.crash("i0", 0)
    assert world.starts == ["i0", "c0", "c1"]
    (source,) = world.running("c0")
    world.end(source, 42)
    world.deliver()
    assert world.status().restarting_all
    (stop,) = world.pending.values()
    assert stop.grace_seconds == 0 and stop.ref.name == "c1"  # type: ignore[union-attr]  # a stop
    world.settle()
    assert world.starts == ["i0", "c0", "c1", "i0"]
    assert not world.status().restarting_all and not world.status().initialized
    world.crash("i0", 0)
    assert world.starts == ["i0", "c0", "c1", "i0", "c0", "c1"]
    counts = [
        c.restart_count for c in (*world.status().init_containers, *world.status().containers)
    ]
    assert counts == [1, 1, 1]
    assert world.status().containers[1].last_termination.terminated.exit_code == 143


def test_a_restart_of_all_goes_on_when_the_pool_restarts() -> None:
    world = with_rule(RESTART_ALL, 42, mains=2)
    (source,) = world.running("c0")
    world.end(source, 42)
    world.deliver()
    world.restart_pool()
    assert world.status().restarting_all
    world.settle()
    assert world.starts == ["c0", "c1", "c0", "c1"]
    assert not world.status().restarting_all


@pytest.mark.parametrize("step", range(8))
def test_a_pool_that_restarts_at_any_later_step_loses_nothing_of_it(step: int) -> None:
    spec = make_spec(inits=1, sidecars=1, mains=2, policy=NEVER)
    spec.init_containers.insert(0, spec.init_containers.pop(1))  # s0, i0
    spec.init_containers[0].restart_rules.add(action=RESTART_ALL, exit_codes=[42])
    world = World(spec)
    world.settle()
    world.now += 1
    world.crash("i0", 0)
    assert world.starts == ["s0", "i0", "c0", "c1"]
    world.now += 1
    (source,) = world.running("s0")
    world.end(source, 42)
    world.deliver()
    for _ in range(step):
        world.now += 1
        if world.queue:
            world.deliver()
        elif world.pending:
            world.answer(next(iter(world.pending)))
    world.now += 1
    world.restart_pool()
    world.settle()
    world.now += 1
    for instance in world.running("i0"):
        world.end(instance, 0)
    world.settle()
    assert world.status().state != status_pb2.SANDBOX_STATE_FAILED
    assert {i.ref.name for i in world.running()} == {"s0", "c0", "c1"}
    assert world.starts.count("c0") == 2 and world.starts.count("i0") == 2


def test_one_that_asks_again_and_again_backs_off() -> None:
    world = with_rule(RESTART_ALL, 42, mains=2)
    world.crash("c0", 42)
    assert world.main().restart_count == 1
    world.crash("c0", 42)
    assert world.status().restarting_all
    assert world.main().state.waiting.reason == "CrashLoopBackOff"
    world.live(9)
    assert not world.running()
    world.live(2)
    assert len(world.running()) == 2 and world.main(1).restart_count == 2


def test_others_that_had_ended_run_again_too() -> None:
    world = with_rule(RESTART_ALL, 42, mains=2)
    world.crash("c1", 0)
    assert world.main(1).state.HasField("terminated")
    world.crash("c0", 42)
    assert world.main(1).state.HasField("running") and world.main(1).restart_count == 1


def test_an_init_container_can_ask_for_all() -> None:
    spec = make_spec(inits=1, sidecars=1, policy=NEVER)
    spec.init_containers.insert(0, spec.init_containers.pop(1))  # s0, i0
    spec.init_containers[1].restart_policy = NEVER
    spec.init_containers[1].restart_rules.add(action=RESTART_ALL, exit_codes=[42])
    world = World(spec)
    world.settle()
    world.crash("i0", 42)
    assert world.starts == ["s0", "i0", "s0", "i0"]
    world.crash("i0", 0)
    assert world.status().state == status_pb2.SANDBOX_STATE_RUNNING
