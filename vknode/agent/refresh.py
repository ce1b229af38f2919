"""Decides when a running sandbox must be looked at again: its content may be old.

Theory of operation. A Pod is *stale* when something that its sandbox was made from may have
changed: then PodSync builds its spec anew, as at the start and as its own node, and sends it if
it differs from the one sent last. So everything here may cry wolf, and nothing here knows content.

===================  ======================================================================
source               when
===================  ======================================================================
ConfigMap, Secret    its watch tells a change (`reference_watches.py`); of one that only gives
                     variables, too, at `PACE`: the pool has them before a container is started
                     again, mostly, and PodSync looks after those that crash sooner
image                it cannot be pulled, or can be now: pull secrets are followed meanwhile
token                its renewal is due (`tokens.py`)
root CA              its one watch tells a change (`root_ca.py`): all Pods, at `PACE`, from
                     `ROOT_CA_SPREAD` on, when all namespaces have the new one
trust bundle         its informer tells a change (`trust_bundles.py`): at `PACE`
Pod certificate      it was issued, or its renewal is due (`pod_certificates.py`)
adopted sandbox      an earlier agent made it, so nobody knows what it holds: at `PACE` after
                     the start, unless all it holds is a token that cannot be due yet
===================  ======================================================================

Times are one heap entry a Pod and one timer for all. Whoever has been told that something changed
is looked at, also if it is sent something meanwhile: that may have been read before the change.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import NoReturn

from vknode.agent.pod_certificates import PodCertificates
from vknode.agent.pod_store import PodObject
from vknode.agent.reference_index import Uses
from vknode.agent.reference_watches import ReferenceWatches
from vknode.agent.references import ROOT_CA, References
from vknode.agent.root_ca import RootCa, mentions_root_ca
from vknode.agent.tokens import LEAST_LIMIT, first_renewal_in
from vknode.agent.trust_bundles import TrustBundles
from vknode.agent.wheel import DelayQueue
from vknode.kube.client import KubeClient
from vknode.kube.reflector import ReflectorOptions, ReflectorStats
from vknode.translate.facts import TokenNeed
from vknode.translate.needs import may_start_again, needs

# Sandboxes looked at again each second, where many are due for one reason.
PACE = 100.0
ADOPTED_AFTER = 1.0
ROOT_CA_SPREAD = 10.0
# As a kubelet tries again what fails at a sync.
REFUSED_AGAIN = (60.0, 90.0)
# How long a reader may meet an old root CA after one was seen to change.
ROOT_CA_CHANGES = 180.0


class Refresher:
    """Told by PodSteps and PodSync; `run` in a task."""

    def __init__(
        self,
        client: KubeClient,
        references: References,
        living: Callable[[], Iterable[PodObject]],
        *,
        limit: int,
        trust: TrustBundles | None = None,
        certificates: PodCertificates | None = None,
        options: ReflectorOptions | None = None,
    ) -> None:
        """`living`: the Pods that run on our nodes. `limit`: watches of references at once."""
        self._references = references
        self._living = living
        self._stale: Callable[[str], None] = lambda uid: None
        self._loop = asyncio.get_running_loop()
        self.watches = ReferenceWatches(client, self._tell, self.soon, limit=limit, options=options)
        self._trust = trust or TrustBundles(client, options)
        self._trust.on_changed(self.soon)
        self.certificates = certificates or PodCertificates(client, lambda node: None, options)
        self.certificates.on_changed(self._tell)
        self._root_ca = RootCa(client, living, self._root_ca_changed, options)
        self._due: DelayQueue[str] = DelayQueue()
        # Those that something has changed for, and when they will be looked at for it.
        self._changed: dict[str, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._next_slot = 0.0
        # By seconds asked for: adopted Pods that have a token of which we do not know the life.
        self._unseen: dict[int, set[str]] = {}

    def on_stale(self, callback: Callable[[str], None]) -> None:
        """Who looks at a Pod again, by UID."""
        self._stale = callback

    @property
    def counts(self) -> dict[str, float]:
        return {**self.watches.counts, "tokens": float(len(self._references.tokens))}

    @property
    def watch_stats(self) -> dict[str, ReflectorStats]:
        """Of all watches that are opened for what Pods use."""
        return {
            "references": self.watches.watch_stats,
            "root_ca": self._root_ca.watch_stats,
            "trust_bundles": self._trust.watch_stats,
            "pod_certificates": self.certificates.watch_stats,
        }

    @property
    def root_ca_seen(self) -> bool:
        """Its watch is open: changes are told."""
        return self._root_ca.seen

    async def run(self) -> NoReturn:
        """Serves until cancelled."""
        try:
            await self.watches.run()
        finally:
            if self._timer is not None:
                self._timer.cancel()
            await self._root_ca.close()
            await self._trust.close()
            await self.certificates.close()

    # -- what is told ----------------------------------------------------------------------

    def sent(self, uid: str, node: str, uses: Uses, *, in_want: bool) -> bool:
        """The sandbox has content that was made from this. `in_want`: some container waits for
        a change of it. Returns whether every change will be told at once."""
        told = self.watches.use(uid, node, uses.given, uses.for_restarts, urgent=in_want)
        self._trust.use(uid, uses.trust)
        if uses.root_ca:
            self._root_ca.used()
        for unseen in self._unseen.values():
            unseen.discard(uid)
        self._see_grants()
        renewal = self._renewal_in(uid)
        times = [] if renewal is None else [self._loop.time() + renewal]
        if uid in self._changed:
            times.append(self._changed[uid])
        if times:
            self._due.schedule(uid, min(times))
        else:
            self._due.cancel(uid)
        self._arm()
        return told

    def refused(self, uid: str, node: str, uses: Uses) -> None:
        """The pool does not take what was made from this. Its tokens will end, so it is asked
        again before long, and at each change."""
        self.sent(uid, node, uses, in_want=False)
        if self._renewal_in(uid) is not None:
            self._due.schedule_by(uid, self._loop.time() + random.uniform(*REFUSED_AGAIN))
            self._arm()

    def waits(self, uid: str, node: str, uses: Uses) -> bool:
        """The Pod cannot go on before one of these changes. Returns whether that will be told
        at once; else somebody must look again and again."""
        self._trust.use(uid, uses.trust)
        return self.watches.use(uid, node, uses.given, urgent=True)

    def adopted(self, pod: PodObject) -> None:
        """An earlier agent made its sandbox, and it needs nothing that is known."""
        document = pod.decode()
        need = needs(document)
        restarts = may_start_again(document)
        references = (*need.config_maps.items(), *need.secrets.items())
        delays = [self._first_renewal_in(token, pod) for token in need.tokens]
        fixed = not (need.trust or need.certificates)
        if not fixed or any(
            name != ROOT_CA and (ref.mounted or (ref.env and restarts)) for name, ref in references
        ):
            delays.append(0.0)
        if ROOT_CA in need.config_maps:
            self._root_ca.used()
        if delays:
            delay = min(delays)
            when = self._loop.time() + delay if delay else self._slot(ADOPTED_AFTER)
            self._due.schedule_by(pod.uid, when)
            self._arm()

    def _first_renewal_in(self, need: TokenNeed, pod: PodObject) -> float:
        """The token that an adopted Pod has was granted to another agent: what the API server
        made of such a request shows when this one makes it, too."""
        asked = need.expiration_seconds
        life = self._references.tokens.granted(asked)
        if life is None:
            self._unseen.setdefault(asked, set()).add(pod.uid)
            life = min(float(asked), LEAST_LIMIT)
        return first_renewal_in(life, _age(pod))

    def _see_grants(self) -> None:
        """Adopted Pods whose tokens live shorter than was thought are looked at soon."""
        tokens = self._references.tokens
        for asked in [asked for asked in self._unseen if tokens.granted(asked) is not None]:
            uids, life = self._unseen.pop(asked), tokens.granted(asked)
            if life is not None and life < min(asked, LEAST_LIMIT):
                for uid in uids:
                    self.soon(uid)

    def soon(self, uid: str) -> None:
        """It is stale, perhaps one of many that are for one reason."""
        self._look(uid, 0.0)
        self._arm()

    def forget(self, uid: str) -> None:
        """Its sandbox has ended, or will."""
        self.watches.drop(uid)
        self._trust.drop(uid)
        self.certificates.forget(uid)
        self._due.cancel(uid)
        self._changed.pop(uid, None)
        self._references.forget(uid)

    # -- inside ----------------------------------------------------------------------------

    def _renewal_in(self, uid: str) -> float | None:
        """Seconds until a token or certificate of the Pod must be renewed."""
        found = [
            seconds
            for seconds in (
                self._references.tokens.renewal_in(uid),
                self.certificates.renewal_in(uid),
            )
            if seconds is not None
        ]
        return min(found, default=None)

    def _tell(self, uid: str) -> None:
        self._stale(uid)

    def _look(self, uid: str, after: float) -> None:
        """At the earliest in `after` seconds, whatever is sent before."""
        known = self._changed.get(uid)
        if known is None or known < self._loop.time() + after:
            self._changed[uid] = when = self._slot(after)
            self._due.schedule_by(uid, when)

    def _root_ca_changed(self) -> None:
        self._references.distrust_root_ca(ROOT_CA_CHANGES)
        for pod in self._living():
            if mentions_root_ca(pod):
                self._look(pod.uid, ROOT_CA_SPREAD)
        self._arm()

    def _slot(self, after: float) -> float:
        """The next free time, at the earliest in `after` seconds."""
        self._next_slot = max(self._loop.time() + after, self._next_slot + 1 / PACE)
        return self._next_slot

    def _arm(self) -> None:
        when = self._due.next_time()
        if self._timer is not None:
            if when is not None and self._timer.when() == when:
                return
            self._timer.cancel()
            self._timer = None
        if when is not None:
            self._timer = self._loop.call_at(when, self._fire)

    def _fire(self) -> None:
        self._timer = None
        now = self._loop.time()
        while (uid := self._due.pop_due(now)) is not None:
            when = self._changed.get(uid)
            if when is not None and when > now:
                self._due.schedule(uid, when)  # a renewal came first
            else:
                self._changed.pop(uid, None)
            self._tell(uid)
        self._arm()


def _age(pod: PodObject) -> float:
    created = pod.metadata.creation_timestamp
    return time.time() - datetime.fromisoformat(created).timestamp() if created else 1e9
