"""Bounds how many begin at once, without letting those that hang shut out the others."""

from __future__ import annotations

import asyncio
from types import TracebackType


class Turnstile:
    """At most `width` within their first `hold` seconds; the order is first come, first
    served. Beginning is what costs; who only waits any longer gives its place away.

        async with turnstile.entry():
            …
    """

    def __init__(self, width: int, hold: float = 1.0) -> None:
        self._places = asyncio.Semaphore(width)
        self._hold = hold

    def entry(self) -> _Entry:
        return _Entry(self._places, self._hold)


class _Entry:
    def __init__(self, places: asyncio.Semaphore, hold: float) -> None:
        self._places = places
        self._hold = hold
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> None:
        await self._places.acquire()
        self._timer = asyncio.get_running_loop().call_later(self._hold, self._give_back)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._give_back()

    def _give_back(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._places.release()
