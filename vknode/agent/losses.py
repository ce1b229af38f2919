"""Sandboxes that a pool no longer has: one is believed soon, many at once are doubted. Pure.

Theory of operation. A Pod whose sandbox is lost becomes Failed, which cannot be taken back: its
controller makes another, and should the sandbox be there after all (the pool was started on the
wrong state directory, say, and then on the right one), it is ended. So a loss is looked at twice:

=======  ====================================================  =================================
state    meaning                                               leaves when
=======  ====================================================  =================================
noted    the pool's view is whole and lacks the sandbox of a   it is back → forgotten; after
         Pod that ran                                          `SETTLE` → told, or doubted
doubted  more are noted in this pool than the deletion brake   it is back → forgotten; `DOUBT`
         allows at once                                        after it was noted → told
=======  ====================================================  =================================

Why doubt ends by itself, where orphans stay braked until a person decides: an orphan only costs
money, but Pods whose sandboxes are really gone (a host was rebooted) serve nobody, while
Services still send them traffic. A kubelet would start their containers again at once; its
runtime lost no volumes. `DOUBT` is short beside the 5 minutes after which Kubernetes replaces
the Pods of a node that it does not hear of.
"""

from __future__ import annotations

from collections.abc import Callable

SETTLE = 1.0
DOUBT = 30.0


class Losses:
    """What each pool has lost. Times are monotonic seconds."""

    def __init__(
        self, allowed: Callable[[int], int], *, settle: float = SETTLE, doubt: float = DOUBT
    ) -> None:
        """`allowed` gives the number that may go at once of a pool's total."""
        self._allowed = allowed
        self._settle = settle
        self._doubt = doubt
        self._noted: dict[str, dict[str, float]] = {}

    def note(self, pool: str, uid: str, now: float) -> None:
        """It is missing; again and again is the same."""
        self._noted.setdefault(pool, {}).setdefault(uid, now)

    def forget(self, pool: str, uid: str) -> None:
        """It is back, told, or nobody's concern any more."""
        noted = self._noted.get(pool)
        if noted is not None:
            noted.pop(uid, None)
            if not noted:
                del self._noted[pool]

    def count(self, pool: str) -> int:
        return len(self._noted.get(pool, ()))

    def is_doubted(self, pool: str, living: int) -> bool:
        """`living`: the sandboxes that the pool does have."""
        lost = self.count(pool)
        return lost > self._allowed(lost + living)

    def wait(self, pool: str, uid: str, living: int, now: float) -> float:
        """Seconds until the loss of this one is told."""
        since = self._noted.get(pool, {}).get(uid, now)
        patience = self._settle
        if self.is_doubted(pool, living):
            patience = max(self._settle, self._doubt)
        return max(0.0, since + patience - now)
