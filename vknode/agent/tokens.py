"""Service-account tokens that sandboxes hold, and when they must be renewed. Pure: no loop.

The rule is a kubelet's (pkg/kubelet/token/token_manager.go, 1.37): a token is asked for anew when
a fifth of its life is left, or when it is 24 hours old, some seconds earlier at random so that
tokens of one moment are not renewed in one moment. While a renewal fails the old token is used as
long as it is valid. The life is what the API server granted (spec.expirationSeconds of its answer,
which it may have cut), the end its status.expirationTimestamp.

Tokens are kept so that an update for another reason (a label, a ConfigMap) asks for none. They
are in no log and no repr.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from vknode.translate.facts import TokenNeed

MAX_AGE = 24 * 3600.0
MAX_JITTER = 10.0
# Between two tries to renew, and the least time between two renewals whatever the clocks say.
RETRY = (45.0, 75.0)
# No API server cuts a token that it signs itself to less than this (the least value of its option
# --service-account-max-token-expiration).
LEAST_LIMIT = 3600.0


@dataclass(frozen=True, slots=True)
class Grant:
    """One token as the API server gave it; times are Unix seconds."""

    token: str = field(repr=False)
    life: float
    expires: float


@dataclass(slots=True)
class _Held:
    """`grant`: None where none was ever given to us."""

    grant: Grant | None
    renew_at: float


class Tokens:
    """By Pod (UID) and need."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.time,
        rand: Callable[[], float] = random.random,
    ) -> None:
        self._clock = clock
        self._rand = rand
        self._held: dict[str, dict[TokenNeed, _Held]] = {}
        self._lives: dict[int, float] = {}

    def __len__(self) -> int:
        return sum(len(held) for held in self._held.values())

    @property
    def now(self) -> float:
        """Unix seconds."""
        return self._clock()

    def fresh(self, need: TokenNeed) -> str | None:
        """A token that need not be renewed yet."""
        held = self._held.get(need.pod_uid, {}).get(need)
        if held is None or held.grant is None or self._clock() >= held.renew_at:
            return None
        return held.grant.token

    def fallback(self, need: TokenNeed) -> str | None:
        """The renewal failed: the old token while it is valid. It will be tried again."""
        held = self._held.setdefault(need.pod_uid, {}).setdefault(need, _Held(None, 0.0))
        held.renew_at = self._clock() + self._again()
        if held.grant is None or self._clock() >= held.grant.expires:
            return None
        return held.grant.token

    def granted(self, asked: int) -> float | None:
        """The life that the API server last gave to who asked for so many seconds."""
        return self._lives.get(asked)

    def keep(self, need: TokenNeed, grant: Grant) -> None:
        self._lives[need.expiration_seconds] = grant.life
        issued = grant.expires - grant.life
        at = min(grant.expires - grant.life // 5, issued + MAX_AGE) - self._rand() * MAX_JITTER
        # A clock that goes wrong must not make a token be renewed without end.
        at = max(at, self._clock() + self._again())
        self._held.setdefault(need.pod_uid, {})[need] = _Held(grant, at)

    def renewal_in(self, uid: str) -> float | None:
        """Seconds until a token of the Pod must be renewed; None where it has none."""
        held = self._held.get(uid)
        if not held:
            return None
        return max(0.0, min(one.renew_at for one in held.values()) - self._clock())

    def forget(self, uid: str) -> None:
        self._held.pop(uid, None)

    def _again(self) -> float:
        low, high = RETRY
        return low + self._rand() * (high - low)


def unix_time(text: str) -> float:
    """An RFC 3339 time of the API server. Raises ValueError."""
    return datetime.fromisoformat(text).timestamp()


def first_renewal_in(life: float, age: float) -> float:
    """Seconds until a token of this granted life must be renewed that a Pod of this age got at
    its start, at the earliest; 0 when nobody can know whether it has been renewed since."""
    due = min(life - life // 5, MAX_AGE) - MAX_JITTER
    return max(0.0, due - age)
