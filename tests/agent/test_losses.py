"""Lost sandboxes: a few are believed soon, many at once only after a while."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vknode.agent.losses import DOUBT, SETTLE, Losses
from vknode.agent.orphans import OrphanRule

ALLOWED = OrphanRule(brake_share=0.3, brake_minimum=2).allowed


def test_a_few_are_told_after_a_moment() -> None:
    losses = Losses(ALLOWED)
    losses.note("az1", "a", 10.0)
    assert losses.wait("az1", "a", 8, 10.0) == SETTLE
    assert losses.wait("az1", "a", 8, 10.0 + SETTLE) == 0


def test_many_at_once_are_doubted_and_told_all_the_same() -> None:
    losses = Losses(ALLOWED)
    for uid in "abc":
        losses.note("az1", uid, 10.0)
    assert losses.is_doubted("az1", 0)
    assert losses.wait("az1", "a", 0, 12.0) == DOUBT - 2
    assert losses.wait("az1", "a", 0, 10.0 + DOUBT) == 0


def test_those_that_come_back_end_the_doubt() -> None:
    losses = Losses(ALLOWED)
    for uid in "abc":
        losses.note("az1", uid, 10.0)
    losses.forget("az1", "b")
    assert not losses.is_doubted("az1", 1)
    assert losses.wait("az1", "a", 1, 12.0) == 0


def test_another_pools_losses_do_not_count() -> None:
    losses = Losses(ALLOWED)
    for pool in ("az1", "az2", "az3"):
        losses.note(pool, "a", 0.0)
    assert not losses.is_doubted("az1", 0)


@given(
    lost=st.integers(1, 50),
    living=st.integers(0, 200),
    times=st.lists(st.floats(0, 100), min_size=1),
)
def test_nothing_is_told_early_and_nothing_waits_for_ever(
    lost: int, living: int, times: list[float]
) -> None:
    losses = Losses(ALLOWED)
    for number in range(lost):
        for now in (0.0, *times):  # noted again and again
            losses.note("az1", str(number), now)
    many = lost > ALLOWED(lost + living)
    for now in times:
        due = now >= (DOUBT if many else SETTLE)
        assert (losses.wait("az1", "0", living, now) == 0) == due
