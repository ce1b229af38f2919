"""When a pool that does not answer is called unreachable. Pure: time is passed in.

Theory of operation. A broken stream is no reason to call nodes NotReady: the client retries it
with jitter, and a pool that restarts in two seconds should not be noticed. Only a silence of
`unreachable_after` seconds is. Coming back counts at once: the pool has sent a fresh snapshot of
its cells, which is proof, not hope.

===========  ======================  =======================  ===============================
state        nodes' Ready            reachable()              lost() / time
===========  ======================  =======================  ===============================
STARTING     left as found           → REACHABLE              deadline → UNREACHABLE
REACHABLE    as the cells announce   -                        lost() → SUSPECT
SUSPECT      as last announced       → REACHABLE              deadline → UNREACHABLE
UNREACHABLE  False, PoolUnreachable  → REACHABLE              -
===========  ======================  =======================  ===============================

The deadline counts from the first loss: a pool that is lost again within the silence without
having sent a snapshot is not given more time.
"""

from __future__ import annotations

import enum


class PoolState(enum.Enum):
    STARTING = "starting"
    REACHABLE = "reachable"
    SUSPECT = "suspect"
    UNREACHABLE = "unreachable"


class PoolHealth:
    """One pool's state. Times are monotonic seconds, `since` when the state began."""

    def __init__(self, unreachable_after: float, now: float) -> None:
        self._after = unreachable_after
        self.state = PoolState.STARTING
        self.since = now

    @property
    def deadline(self) -> float | None:
        """When `tick` may change something; None when only a report can."""
        if self.state in (PoolState.STARTING, PoolState.SUSPECT):
            return self.since + self._after
        return None

    def observe(self, reachable: bool, now: float) -> bool:
        """Takes in what the link says now, and the time. Returns whether the state changed."""
        before = self.state
        if reachable:
            self._enter(PoolState.REACHABLE, now)
        elif self.state is PoolState.REACHABLE:
            self._enter(PoolState.SUSPECT, now)
        else:
            self.tick(now)
        return self.state is not before

    def tick(self, now: float) -> bool:
        """Lets time pass. Returns whether the state changed."""
        deadline = self.deadline
        if deadline is None or now < deadline:
            return False
        self._enter(PoolState.UNREACHABLE, now)
        return True

    def _enter(self, state: PoolState, now: float) -> None:
        if self.state is not state:
            self.state = state
            self.since = now
