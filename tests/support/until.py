"""Waiting for what a user would see, with a deadline and a useful failure."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(
    look: Callable[[], T | None],
    what: str,
    *,
    timeout: float = 60.0,
    every: float = 0.2,
    show: Callable[[], object] | None = None,
) -> T:
    """Call `look` until it returns something true, and return that.

    After `timeout` seconds AssertionError tells `what` was missing and what `show`
    (or `look`'s last answer) said instead.
    """
    deadline = time.monotonic() + timeout
    while True:
        answer = look()
        if answer:
            return answer
        if time.monotonic() >= deadline:
            seen = show() if show else answer
            raise AssertionError(f"after {timeout:g} s still not: {what}\nlast seen: {seen}")
        time.sleep(every)
