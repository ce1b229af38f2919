"""How much is tried: the same examples each time in CI, others for as long as one likes by hand
(`make fuzz`). So a run fails for what has changed and not by luck."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy

#: Examples of one round.
ROUND = 25


def hold(hostile: Callable[..., None], *what: SearchStrategy[Any], examples: int = ROUND) -> None:
    """Requires `hostile` to hold for `examples` of `what`, or, where FUZZ_SECONDS is set, for as
    many as come in a tenth of that: there are many tests."""
    by_hand = os.environ.get("FUZZ_SECONDS")
    a_round = settings(
        max_examples=examples,
        deadline=None,
        derandomize=by_hand is None,
        # Found again from one run to the next by shrinking what is printed, not by a database.
        database=None,
        suppress_health_check=list(HealthCheck),
    )(given(*what)(hostile))
    over = time.monotonic() + float(by_hand or 0) / 10
    a_round()
    while time.monotonic() < over:
        a_round()
