"""Back-off grows, is bounded, never overflows and never comes back before Retry-After."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vknode.kube.backoff import Backoff


@given(rand=st.floats(0, 1), failures=st.integers(0, 2000))
def test_delay_stays_within_jitter_of_the_maximum(rand: float, failures: int) -> None:
    backoff = Backoff(base=0.5, maximum=30, jitter=0.5, rand=lambda: rand)
    backoff.failures = failures
    assert 0.25 <= backoff.next() <= 45


@given(rand=st.floats(0, 1), wanted=st.floats(0, 60))
def test_never_earlier_than_retry_after(rand: float, wanted: float) -> None:
    assert Backoff(rand=lambda: rand).next(at_least=wanted) >= wanted


def test_reset_starts_over() -> None:
    backoff = Backoff(base=1, maximum=100, jitter=0)
    assert [backoff.next() for _ in range(4)] == [1, 2, 4, 8]
    backoff.reset()
    assert backoff.next() == 1


def test_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="back-off needs"):
        Backoff(base=0)
