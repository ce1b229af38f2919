"""Sandboxes whose Pod does not exist: found, doubted, confirmed, and only then deleted.

Theory of operation. Deleting is the dangerous direction: a list that came from a restored etcd,
or from the wrong cluster, names none of the Pods that run. So a sandbox passes four gates:

=========  ============================================================================
suspected  a sandbox of our owner, in a cell whose node is ours, has no Pod in the store
           while the store is synced and the pool's view is current
seen       it still is one, `AGAIN_AFTER` seconds later
confirmed  a GET of its namespace/name answers 404, or an object with another UID
allowed    at most max(`brake_minimum`, `brake_share` of the sandboxes of ours in that pool)
           are due at once; if more are, none is deleted and the brake is on
=========  ============================================================================

Leaving the first condition at any time leads back to the start. While the brake is on, the same
sandboxes are looked at again every `BRAKED_AGAIN_AFTER` seconds, so that it comes off by itself
once Pods are back, or a person has raised the share in the configuration.

A Pod whose DELETED event was seen does not come this way: that is certain already.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from vknode.kube.errors import KubeError

log = structlog.get_logger()

AGAIN_AFTER = 20.0
BRAKED_AGAIN_AFTER = 60.0
CONFIRMATIONS_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Suspect:
    """A sandbox without a Pod."""

    uid: str
    namespace: str
    name: str
    pool: str
    node: str


@dataclass(frozen=True, slots=True)
class Brake:
    """Too much at once in one pool: `count` orphans where `allowed` may go."""

    pool: str
    count: int
    allowed: int
    total: int


@dataclass
class OrphanRule:
    """The pure part: which suspects have been seen for long enough, and how many may go."""

    brake_share: float
    brake_minimum: int
    again_after: float = AGAIN_AFTER
    _first_seen: dict[str, float] = field(default_factory=dict)

    def observe(self, suspects: Iterable[str], now: float) -> None:
        """The UIDs that are suspect now; whoever is not among them is cleared."""
        self._first_seen = {uid: self._first_seen.get(uid, now) for uid in suspects}

    def due(self, now: float) -> list[str]:
        return [uid for uid, at in self._first_seen.items() if now - at >= self.again_after]

    def next_look(self, now: float) -> float | None:
        """Seconds until the next suspect is due; None without suspects."""
        waiting = [at + self.again_after - now for at in self._first_seen.values()]
        return max(0.0, min(waiting)) if waiting else None

    def forget(self, uid: str) -> None:
        self._first_seen.pop(uid, None)

    def allowed(self, total: int) -> int:
        return max(self.brake_minimum, int(self.brake_share * total))


def divide(
    rule: OrphanRule, confirmed: Iterable[Suspect], totals: Mapping[str, int]
) -> tuple[list[Suspect], list[Brake]]:
    """What may be deleted now, and the pools that hold back. `totals`: our sandboxes by pool."""
    by_pool: dict[str, list[Suspect]] = {}
    for suspect in confirmed:
        by_pool.setdefault(suspect.pool, []).append(suspect)
    go: list[Suspect] = []
    brakes: list[Brake] = []
    for pool, suspects in by_pool.items():
        total = totals.get(pool, 0)
        allowed = rule.allowed(total)
        if len(suspects) > allowed:
            brakes.append(Brake(pool, len(suspects), allowed, total))
        else:
            go.extend(suspects)
    return go, brakes


class OrphanSource(Protocol):
    """What the driver asks of the agent."""

    def suspects(self) -> Collection[Suspect]:
        """The present ones; empty while the store or the views are not trustworthy."""

    def totals(self) -> Mapping[str, int]: ...

    async def confirm(self, suspect: Suspect) -> bool:
        """True only if the API server has no such Pod. Raises `KubeError` if it cannot say."""

    def collect(self, suspect: Suspect) -> None:
        """It is certain: end the sandbox."""

    def brake(self, brakes: list[Brake]) -> None:
        """The pools that hold back now; called at every change, and with [] when it is over."""


class OrphanCollector:
    """The driver: looks when told to (`look_soon`) and while there are suspects; never polls."""

    def __init__(
        self,
        rule: OrphanRule,
        source: OrphanSource,
        *,
        braked_again_after: float = BRAKED_AGAIN_AFTER,
        clock: Callable[[], float] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._rule = rule
        self._source = source
        self._braked_again_after = braked_again_after
        self._clock = clock or asyncio.get_running_loop().time
        self._sleep = sleep
        self._wanted = asyncio.Event()
        self._braked: list[Brake] = []

    def look_soon(self) -> None:
        """Something made sandboxes or Pods appear or go: look at all of them."""
        self._wanted.set()

    async def run(self) -> None:
        """Serves until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            while (delay := await self.look()) is not None:
                await self._sleep(delay)

    async def look(self) -> float | None:
        """One look. Returns the seconds to the next one, None if there are no suspects."""
        suspects = {suspect.uid: suspect for suspect in self._source.suspects()}
        self._rule.observe(suspects, self._clock())
        due = [suspects[uid] for uid in self._rule.due(self._clock())]
        if due:
            await self._settle(due)
        elif not suspects:
            self._set_brakes([])
        return self._next_delay()

    def _next_delay(self) -> float | None:
        delay = self._rule.next_look(self._clock())
        if delay is None:
            return None
        # Those that are overdue are held by the brake, or could not be confirmed.
        return delay if delay > 0 else self._braked_again_after

    async def _settle(self, due: list[Suspect]) -> None:
        totals = self._source.totals()
        # The brake needs no questions: what is too much unconfirmed is not asked for either.
        maybe, brakes = divide(self._rule, due, totals)
        self._set_brakes(brakes)
        gate = asyncio.Semaphore(CONFIRMATIONS_AT_ONCE)

        async def ask(suspect: Suspect) -> bool:
            async with gate:
                try:
                    return await self._source.confirm(suspect)
                except KubeError as error:
                    log.warning("orphan_unconfirmed", uid=suspect.uid, error=str(error))
                    return False

        answers = await asyncio.gather(*(ask(suspect) for suspect in maybe))
        # While we asked, Pods may have appeared.
        still = {suspect.uid for suspect in self._source.suspects()}
        for suspect, gone in zip(maybe, answers, strict=True):
            if gone and suspect.uid in still:
                log.info(
                    "orphan_collected",
                    uid=suspect.uid,
                    pod=f"{suspect.namespace}/{suspect.name}",
                    pool=suspect.pool,
                )
                self._rule.forget(suspect.uid)
                self._source.collect(suspect)

    def _set_brakes(self, brakes: list[Brake]) -> None:
        if brakes == self._braked:
            return
        self._braked = brakes
        for brake in brakes:
            log.error(
                "deletion_brake_on",
                pool=brake.pool,
                orphans=brake.count,
                allowed=brake.allowed,
                sandboxes=brake.total,
            )
        self._source.brake(brakes)
