"""All timers of a pool in one heap and one handle of the event loop."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable

# The wall clock is looked at least so often, in case somebody set it.
_LONGEST_SLEEP = 60.0


class Alarms:
    """At most one alarm a key; setting it again replaces it."""

    def __init__(self, clock: Callable[[], int], ring: Callable[[str], None]) -> None:
        """`clock` gives nanoseconds; `ring` is called with the key."""
        self._clock = clock
        self._ring = ring
        self._due: dict[str, int] = {}
        self._heap: list[tuple[int, str]] = []  # may hold replaced ones, too
        self._handle: asyncio.TimerHandle | None = None
        self._closed = False

    def set(self, key: str, at: int | None) -> None:
        """Ring for `key` at the time `at` (ns); None: not at all."""
        if at is None:
            self._due.pop(key, None)
            return
        if self._due.get(key) == at:
            return
        self._due[key] = at
        if len(self._heap) > 2 * len(self._due) + 64:  # mostly replaced ones: a deadline in a year
            self._heap = [(due, key) for key, due in self._due.items()]
            heapq.heapify(self._heap)
        else:
            heapq.heappush(self._heap, (at, key))
        if self._heap[0] == (at, key):
            self._arm()

    def close(self) -> None:
        self._closed = True
        if self._handle is not None:
            self._handle.cancel()

    def _arm(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        if self._heap and not self._closed:
            delay = max(0.0, (self._heap[0][0] - self._clock()) / 1e9)
            loop = asyncio.get_running_loop()
            self._handle = loop.call_later(min(delay, _LONGEST_SLEEP), self._look)

    def _look(self) -> None:
        self._handle = None
        try:
            while self._heap and self._heap[0][0] <= self._clock():
                at, key = heapq.heappop(self._heap)
                if self._due.get(key) == at:
                    del self._due[key]
                    self._ring(key)
        finally:
            self._arm()
