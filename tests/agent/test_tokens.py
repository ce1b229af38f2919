"""When tokens are renewed: as a kubelet's token manager does."""

from __future__ import annotations

import pytest

from vknode.agent.tokens import Grant, Tokens, first_renewal_in
from vknode.translate.facts import TokenNeed

HOUR = 3600.0
NOW = 1_000_000.0


def need(uid: str = "u", audience: str = "") -> TokenNeed:
    return TokenNeed("default", audience, 3600, "web", uid)


def tokens(rand: float = 0.0) -> tuple[Tokens, list[float]]:
    now = [NOW]
    return Tokens(clock=lambda: now[0], rand=lambda: rand), now


@pytest.mark.parametrize(
    ("life", "after"),
    [
        (600.0, 480.0),  # the shortest there is
        (3607.0, 2886.0),
        (48 * HOUR, 24 * HOUR),  # never older than a day
    ],
)
def test_a_fifth_of_the_life_is_left_at_the_renewal_and_a_day_is_the_most(
    life: float, after: float
) -> None:
    held, now = tokens()
    held.keep(need(), Grant("t", life, NOW + life))
    assert held.renewal_in("u") == pytest.approx(after)
    now[0] += after - 1
    assert held.fresh(need()) == "t"
    now[0] += 1
    assert held.fresh(need()) is None


def test_the_life_counts_that_was_granted_and_some_seconds_are_left_to_chance() -> None:
    held, _ = tokens(rand=0.5)
    held.keep(need(), Grant("t", 1000.0, NOW + 1000.0))
    assert held.renewal_in("u") == pytest.approx(795.0)


def test_the_first_of_a_pods_tokens_decides() -> None:
    held, _ = tokens()
    held.keep(need(), Grant("t", 3600.0, NOW + 3600.0))
    held.keep(need(audience="vault"), Grant("v", 600.0, NOW + 600.0))
    held.keep(need("other"), Grant("o", 700.0, NOW + 700.0))
    assert held.renewal_in("u") == pytest.approx(480.0)
    held.forget("u")
    assert held.renewal_in("u") is None
    assert held.fresh(need("other")) == "o"


def test_a_clock_that_is_wrong_does_not_make_renewals_without_end() -> None:
    held, _ = tokens()
    held.keep(need(), Grant("t", 600.0, NOW - 5000.0))
    assert held.renewal_in("u") == pytest.approx(45.0)


def test_the_old_token_serves_while_it_is_valid() -> None:
    held, now = tokens()
    held.keep(need(), Grant("t", 600.0, NOW + 600.0))
    now[0] += 590
    assert held.fallback(need()) == "t"
    now[0] += 20
    assert held.fallback(need()) is None


def test_no_token_is_shown() -> None:
    assert "s3cret" not in repr(Grant("s3cret", 600.0, NOW))


def test_of_a_young_pod_one_knows_that_its_token_is_not_due() -> None:
    assert first_renewal_in(3600.0, 100.0) == pytest.approx(2770.0)
    assert first_renewal_in(3600.0, 5000.0) == 0.0


def test_one_that_could_not_be_had_is_asked_for_again() -> None:
    held, _ = tokens()
    assert held.fallback(need()) is None
    assert held.fresh(need()) is None
    assert held.renewal_in("u") == pytest.approx(45.0)
    held.forget("u")
    assert held.renewal_in("u") is None
