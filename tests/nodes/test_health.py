"""A short silence of a pool is nobody's business; a long one is, and the return counts at once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vknode.agent.health import PoolHealth, PoolState


def state(health: PoolHealth) -> PoolState:
    """Read anew: mypy would believe that it never changes."""
    return health.state


def test_a_restart_of_two_seconds_is_not_noticed() -> None:
    health = PoolHealth(10, now=0)
    assert health.observe(True, 1)
    assert health.observe(False, 5)
    assert state(health) is PoolState.SUSPECT
    assert not health.tick(14.9)
    assert health.observe(True, 7)
    assert state(health) is PoolState.REACHABLE
    assert health.deadline is None


def test_a_silence_beyond_the_limit_is_and_ends_with_the_return() -> None:
    health = PoolHealth(10, now=0)
    health.observe(True, 0)
    health.observe(False, 5)
    assert not health.observe(False, 14.9)
    assert health.observe(False, 15)
    assert state(health) is PoolState.UNREACHABLE
    assert health.observe(True, 15.1)
    assert state(health) is PoolState.REACHABLE


def test_a_pool_that_never_answers_is_unreachable_after_the_same_time() -> None:
    health = PoolHealth(10, now=100)
    assert state(health) is PoolState.STARTING
    assert not health.tick(109)
    assert health.tick(110)
    assert state(health) is PoolState.UNREACHABLE


@given(st.lists(st.tuples(st.floats(0, 30), st.booleans()), max_size=60))
def test_unreachable_exactly_when_silent_for_as_long(steps: list[tuple[float, bool]]) -> None:
    health = PoolHealth(10, now=0)
    now, silent_since = 0.0, 0.0
    was_reachable = False
    for delay, reachable in steps:
        # the controller wakes at every deadline
        if health.deadline is not None and now + delay >= health.deadline:
            health.tick(health.deadline)
        now += delay
        health.observe(reachable, now)
        if reachable:
            was_reachable = True
        elif was_reachable:
            was_reachable, silent_since = False, now
        if reachable:
            assert state(health) is PoolState.REACHABLE
        else:
            assert (health.state is PoolState.UNREACHABLE) == (now >= silent_since + 10)
