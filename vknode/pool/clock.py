"""A clock for timers that also reads as the time of day."""

from __future__ import annotations

import time


class SteadyClock:
    """Nanoseconds since the Unix epoch, as they were when this was made and have passed
    since. A wall clock that is set back or forth (a first contact with a time server, an
    operator) would let back-offs, graces and probes stand still or be over at once."""

    def __init__(self) -> None:
        self._offset = time.time_ns() - time.monotonic_ns()

    def __call__(self) -> int:
        return time.monotonic_ns() + self._offset
