"""How long to wait before the next attempt. Times and spans in nanoseconds.

Crash loop and image back-off follow client-go's flowcontrol.Backoff as a kubelet
uses it: the first restart is immediate, then 10 s doubling to 300 s, counted from
the end of the last instance; an instance that ended more than 10 min after the
last restart starts the row anew.
"""

from __future__ import annotations

SECOND = 1_000_000_000
INITIAL = 10 * SECOND
LIMIT = 300 * SECOND
CRASH_RESET = 600 * SECOND
IMAGE_RESET = 2 * LIMIT


class CrashLoop:
    """Back-off between two instances of one container."""

    __slots__ = ("span", "updated")

    def __init__(self) -> None:
        self.span = 0  # 0: no entry
        self.updated = 0

    def until(self, finished: int) -> int:
        """The earliest start after an instance that ended at `finished`."""
        if not self.span or finished - self.updated > CRASH_RESET:
            return finished
        return finished + self.span

    def restarted(self, finished: int, now: int) -> None:
        """A restart goes ahead after the instance that ended at `finished`."""
        if not self.span or finished - self.updated > CRASH_RESET:
            self.span = INITIAL
        else:
            self.span = min(self.span * 2, LIMIT)
        self.updated = now

    def reset(self) -> None:
        self.span = self.updated = 0

    def approximate(self, restarts: int, started: int) -> None:
        """After a restart of the pool: as if every restart so far had been a crash."""
        if restarts > 0:
            self.span = min(INITIAL * 2 ** min(restarts - 1, 10), LIMIT)
            self.updated = started


class ImageBackoff:
    """Back-off between two pulls of one container's image."""

    __slots__ = ("span", "updated")

    def __init__(self) -> None:
        self.span = 0
        self.updated = 0

    def failed(self, now: int) -> int:
        """A pull failed; returns when the next one may begin."""
        if not self.span or now - self.updated > IMAGE_RESET:
            self.span = INITIAL
        else:
            self.span = min(self.span * 2, LIMIT)
        self.updated = now
        return now + self.span


class Retry:
    """For calls that a kubelet repeats with its next sync: 1 s doubling to 10 s.

    A kubelet waits about 10 s at once; the first second is given away because most
    such failures (an address pool or a lock under load) are over by then.
    """

    __slots__ = ("span",)

    def __init__(self) -> None:
        self.span = 0

    def failed(self, now: int) -> int:
        self.span = min(max(self.span * 2, SECOND), 10 * SECOND)
        return now + self.span

    def reset(self) -> None:
        self.span = 0
