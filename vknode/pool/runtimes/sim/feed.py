"""What the simulation tells its pool, and the outages in which it tells and does nothing."""

from __future__ import annotations

import asyncio
import collections
from collections.abc import AsyncIterator, Iterable

from vknode.pool.runtimes.base import (
    ContainerExited,
    EventsLost,
    HealthChanged,
    RuntimeAway,
    RuntimeEvent,
)
from vknode.pool.runtimes.sim.config import Outage

_MOST_EVENTS = 100_000


class Feed:
    """Events wait until somebody asks for them; what is too much becomes EventsLost."""

    def __init__(self) -> None:
        self._events: collections.deque[RuntimeEvent] = collections.deque()
        self._there = asyncio.Event()
        self._away = False
        self._timers: list[asyncio.TimerHandle] = []

    def begin(self, outages: Iterable[Outage]) -> None:
        """They count from the first connection."""
        if not self._timers:
            loop = asyncio.get_running_loop()
            for outage in outages:
                self._timers.append(loop.call_later(outage.after, self._go_away, outage.duration))

    def close(self) -> None:
        for timer in self._timers:
            timer.cancel()

    def here(self) -> None:
        """Raises RuntimeAway in an outage."""
        if self._away:
            raise RuntimeAway("the simulated runtime is away")

    def emit(self, event: RuntimeEvent) -> None:
        if self._away and isinstance(event, ContainerExited):
            return  # seen in the inventory after the outage
        if len(self._events) >= _MOST_EVENTS:
            self._events.clear()
            event = EventsLost()
        self._events.append(event)
        self._there.set()

    async def events(self) -> AsyncIterator[RuntimeEvent]:
        while True:
            while self._events:
                yield self._events.popleft()
            self._there.clear()
            await self._there.wait()

    def _go_away(self, duration: float) -> None:
        self._away = True
        self.emit(HealthChanged(False, "RuntimeUnavailable", "a simulated outage"))
        self._timers.append(asyncio.get_running_loop().call_later(duration, self._come_back))

    def _come_back(self) -> None:
        self._away = False
        self.emit(HealthChanged(True))
        self.emit(EventsLost())
