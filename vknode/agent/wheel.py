"""One queue of delays for many keys: the pure heap, and the workers' side of it.

Theory of operation. `DelayQueue` is a heap of (when, key); each key is in it at most once.
`WorkQueue` puts one timer of the event loop before it, however many keys there are, and hands
due keys to a fixed number of workers. A key costs a heap entry: no task, no timer.

What `WorkQueue` does with a key:

==========  =======================  ===================  ==========================
state       add / add_after          get                  done
==========  =======================  ===================  ==========================
absent      → waiting                                     -
waiting     earlier time wins        → processing if due  -
processing  remembered (earliest)                         → waiting if remembered,
                                                            else absent
==========  =======================  ===================  ==========================

So the same key is never processed by two workers at once, and what is added while it is being
processed is not lost.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class DelayQueue(Generic[K]):
    """Keys with times, pure. Times are any monotonic seconds; ties leave in order of arrival."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, K]] = []
        # key -> the one live heap entry; others of the key in the heap are dead
        self._live: dict[K, tuple[float, int]] = {}
        self._order = itertools.count()

    def __len__(self) -> int:
        return len(self._live)

    def __contains__(self, key: K) -> bool:
        return key in self._live

    def when(self, key: K) -> float | None:
        entry = self._live.get(key)
        return entry[0] if entry else None

    def schedule(self, key: K, when: float) -> None:
        """Sets the key's time, whatever it was before."""
        entry = (when, next(self._order))
        self._live[key] = entry
        heapq.heappush(self._heap, (*entry, key))
        # Dead entries must not outgrow the live ones.
        if len(self._heap) > 64 and len(self._heap) > 2 * len(self._live):
            self._heap = [(*live, k) for k, live in self._live.items()]
            heapq.heapify(self._heap)

    def schedule_by(self, key: K, when: float) -> None:
        """Sets the key's time unless it is due earlier already."""
        current = self.when(key)
        if current is None or when < current:
            self.schedule(key, when)

    def cancel(self, key: K) -> bool:
        return self._live.pop(key, None) is not None

    def next_time(self) -> float | None:
        """When the first key is due; None when there is none."""
        self._drop_dead()
        return self._heap[0][0] if self._heap else None

    def pop_due(self, now: float) -> K | None:
        """Takes the key that has been due the longest, if one is due."""
        self._drop_dead()
        if not self._heap or self._heap[0][0] > now:
            return None
        _, _, key = heapq.heappop(self._heap)
        del self._live[key]
        return key

    def _drop_dead(self) -> None:
        heap = self._heap
        while heap:
            when, order, key = heap[0]
            if self._live.get(key) == (when, order):
                return
            heapq.heappop(heap)


class WorkQueue(Generic[K]):
    """Due keys for a fixed number of workers. Use within one event loop; `close` at the end."""

    def __init__(self) -> None:
        self._queue: DelayQueue[K] = DelayQueue()
        self._processing: dict[K, float | None] = {}
        self._waiters: list[asyncio.Future[None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    def __len__(self) -> int:
        """Keys waiting or being processed."""
        return len(self._queue) + sum(1 for key in self._processing if key not in self._queue)

    def add(self, key: K) -> None:
        """Due now."""
        self.add_after(key, 0.0)

    def add_after(self, key: K, delay: float) -> None:
        """Due in `delay` seconds, or earlier if it already is to be."""
        when = self._loop.time() + max(0.0, delay)
        if key in self._processing:
            current = self._processing[key]
            self._processing[key] = when if current is None else min(current, when)
            return
        self._queue.schedule_by(key, when)
        self._arm()

    def forget(self, key: K) -> None:
        """Drops what is waiting for the key (a worker that has it is not disturbed)."""
        self._queue.cancel(key)
        if key in self._processing:
            self._processing[key] = None

    async def get(self) -> K:
        """Waits for a due key and takes it. The worker must call `done` with it."""
        while True:
            key = self._queue.pop_due(self._loop.time())
            if key is not None:
                self._processing[key] = None
                self._arm()
                return key
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._waiters.append(waiter)
            self._arm()
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter in self._waiters:
                    self._waiters.remove(waiter)
                self._arm()  # if it had just been woken, another worker takes over
                raise

    def done(self, key: K) -> None:
        again = self._processing.pop(key)
        if again is not None:
            self._queue.schedule_by(key, again)
            self._arm()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        """One timer for the earliest key, only while a worker waits."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._waiters:
            return
        when = self._queue.next_time()
        if when is None:
            return
        if when <= self._loop.time():
            self._wake()
        else:
            self._timer = self._loop.call_at(when, self._wake)

    def _wake(self) -> None:
        self._timer = None
        while self._waiters:
            waiter = self._waiters.pop(0)
            if not waiter.done():
                waiter.set_result(None)
                return
