"""Exponential back-off with jitter. Pure: no clock, no loop; randomness is passed in."""

from __future__ import annotations

import random
from collections.abc import Callable


class Backoff:
    """Delays in seconds: base·factor^n up to `maximum`, each spread by ±`jitter` share.

    >>> b = Backoff(base=1.0, maximum=8.0, jitter=0.0)
    >>> [b.next() for _ in range(5)]
    [1.0, 2.0, 4.0, 8.0, 8.0]
    """

    __slots__ = ("_base", "_factor", "_jitter", "_maximum", "_random", "failures")

    def __init__(
        self,
        *,
        base: float = 0.8,
        maximum: float = 30.0,
        factor: float = 2.0,
        jitter: float = 0.5,
        rand: Callable[[], float] = random.random,
    ) -> None:
        if base <= 0 or maximum < base or factor < 1 or not 0 <= jitter < 1:
            raise ValueError("back-off needs 0 < base <= maximum, factor >= 1, 0 <= jitter < 1")
        self._base = base
        self._maximum = maximum
        self._factor = factor
        self._jitter = jitter
        self._random = rand
        self.failures = 0

    def next(self, at_least: float | None = None) -> float:
        """The delay before the next try; `at_least` is a server's Retry-After.

        Jitter is only ever added on top of Retry-After: many clients told the same second
        must not come back in the same millisecond, and none may come early.
        """
        # The exponent is capped, or 2**n overflows after weeks of an absent server.
        delay = min(self._maximum, self._base * self._factor ** min(self.failures, 64))
        self.failures += 1
        delay *= 1 + self._jitter * (2 * self._random() - 1)
        if at_least is not None and delay < at_least:
            delay = at_least * (1 + self._jitter * self._random() / 2)
        return delay

    def reset(self) -> None:
        self.failures = 0
