"""Time that passes only for tests: what takes hours takes none, and a busy machine changes nothing.

The event loop's clock stands still while there is anything to do, and goes on to the next timer
when there is not. The time of day goes with it (`time.time_ns`), `time.monotonic` does not. Only
for what waits for timers and nothing else: neither threads nor other processes.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec
from unittest import mock

P = ParamSpec("P")


class SteppedLoop(asyncio.SelectorEventLoop):
    """`time()` begins at 0, in seconds."""

    def __init__(self) -> None:
        self._now = 0.0
        super().__init__()

    def time(self) -> float:
        return self._now

    def _run_once(self) -> None:
        if not self._ready:  # type: ignore[attr-defined]  # of the base class, as what follows
            self._process_events(self._selector.select(0))  # type: ignore[attr-defined]
        if not self._ready:  # type: ignore[attr-defined]
            timers = [one.when() for one in self._scheduled if not one.cancelled()]  # type: ignore[attr-defined]
            self._now = max(self._now, min(timers, default=self._now))
        super()._run_once()  # type: ignore[misc]


def stepped(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """An async test on a loop of its own whose time is stepped."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        begin = time.time_ns()
        with asyncio.Runner(loop_factory=SteppedLoop) as runner:
            loop = runner.get_loop()
            with mock.patch("time.time_ns", lambda: begin + round(loop.time() * 1e9)):
                runner.run(test(*args, **kwargs))

    return run
