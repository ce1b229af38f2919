"""How long it goes on: seconds in CI, as long as one likes by hand (`make fuzz`)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy

#: Examples of one round: so many are tried in any case.
ROUND = 15


def hold(
    hostile: Callable[..., None],
    *what: SearchStrategy[Any],
    seconds: float,
    examples: int = ROUND,
) -> None:
    """Requires `hostile` to hold for examples of `what`, in rounds until the time is over.

    A tenth of FUZZ_SECONDS, where it is set, is used instead of `seconds`: there are many tests.
    """
    by_hand = os.environ.get("FUZZ_SECONDS")
    over = time.monotonic() + (seconds if by_hand is None else float(by_hand) / 10)
    a_round = settings(
        max_examples=examples,
        deadline=None,
        # Found again from one run to the next by shrinking what is printed, not by a database.
        database=None,
        suppress_health_check=list(HealthCheck),
    )(given(*what)(hostile))
    a_round()
    while time.monotonic() < over:
        a_round()
