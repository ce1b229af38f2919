"""Keeps the node Leases of all virtual nodes alive, from one queue.

Theory of operation. Each node is one key in a `WorkQueue`; a fixed number of workers take what
is due and make one PUT each, as the kubelet does (client-go's lease controller): optimistic,
with the resourceVersion of the last answer, no GET. First renewals are spread over the renew
interval and each one jitters by 4 %, so that a thousand nodes do not beat in step.

==========  ===============================  ============================================
state       request                          next
==========  ===============================  ============================================
unknown     POST                             201 → held; AlreadyExists → GET, PUT → held
held        PUT (resourceVersion)            200 → held; 404, 409 → unknown, at once
either      any other failure                same state, after back-off (at most 7 s)
==========  ===============================  ============================================

(A Lease that somebody deleted needs no state: the API server creates Leases on PUT.)

A Lease stands for the agent's life, not the pool's: a kubelet whose container runtime is dead
goes on renewing and says Ready=False. We do the same for a pool that is unreachable or a cell
that is unhealthy. Were the renewals stopped instead, the node lifecycle controller would take
the whole lease duration (40 s) to notice, and overwrite our reason with Unknown; and it would
count every such node in the zone's "all kubelets lost" arithmetic, which stops evictions when
too many are gone. The condition says it at once, with the cause.

The Lease is owned by its Node (as SetNodeOwnerFunc in kubelet does), so it goes with it. A Node
that was recreated has another UID: `add` with the new one writes it into the Lease, or garbage
collection would delete the Lease under us.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NoReturn

import msgspec
import structlog

from vknode.agent.wheel import WorkQueue
from vknode.kube.backoff import Backoff
from vknode.kube.client import KubeClient
from vknode.kube.errors import ApiError, KubeError

log = structlog.get_logger()

NAMESPACE = "kube-node-lease"
COLLECTION = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases"
JITTER = 0.04
# The longest back-off, and by which share they are spread.
MAX_BACKOFF = 7.0
BACKOFF_SPREAD = 0.5
CONFLICTS_TO_WARN = 3


class _LeaseMeta(msgspec.Struct, rename="camel"):
    resource_version: str = ""
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None


class _Lease(msgspec.Struct):
    metadata: _LeaseMeta


_decode = msgspec.json.Decoder(_Lease).decode
_encode = msgspec.json.Encoder().encode


@dataclass
class LeaseStats:
    """Counters since start."""

    creates: int = 0
    renewals: int = 0
    conflicts: int = 0
    failures: int = 0


@dataclass
class _Held:
    node_uid: str
    backoff: Backoff
    meta: _LeaseMeta | None = None
    conflicts: int = 0
    # time.monotonic of the last success; of the adding before there is one
    renewed: float = field(default_factory=time.monotonic)


class LeaseKeeper:
    """`add` and `remove` nodes at any time; `run` renews until cancelled. Seconds throughout."""

    def __init__(
        self,
        client: KubeClient,
        *,
        duration: int = 40,
        renew: float = 10.0,
        concurrency: int = 8,
        rand: Callable[[], float] = random.random,
    ) -> None:
        self.stats = LeaseStats()
        self._client = client
        self._duration = duration
        self._renew = renew
        self._concurrency = concurrency
        self._rand = rand
        self._leases: dict[str, _Held] = {}
        self._queue: WorkQueue[str] = WorkQueue()

    def __len__(self) -> int:
        return len(self._leases)

    @property
    def duration(self) -> int:
        """Seconds that a Lease lives after a renewal."""
        return self._duration

    def add(self, node: str, node_uid: str) -> None:
        """Keeps the node's Lease from now on; again with another UID after a recreation."""
        held = self._leases.get(node)
        if held is None:
            backoff = Backoff(
                base=0.2,
                maximum=MAX_BACKOFF / (1 + BACKOFF_SPREAD),
                jitter=BACKOFF_SPREAD,
                rand=self._rand,
            )
            self._leases[node] = _Held(node_uid, backoff)
        elif held.node_uid == node_uid:
            return
        else:
            held.node_uid = node_uid
        self._queue.add(node)

    def remove(self, node: str) -> None:
        """Stops renewing. The Lease itself goes with its Node."""
        if self._leases.pop(node, None) is not None:
            self._queue.forget(node)

    def oldest_renewal_age(self) -> float:
        """Seconds since the least recently renewed Lease was renewed; 0 without leases."""
        now = time.monotonic()
        return max((now - held.renewed for held in self._leases.values()), default=0.0)

    async def run(self) -> NoReturn:
        """Renews what is due. Ends only by cancellation or a bug's exception."""
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(self._concurrency):
                    group.create_task(self._work(), name=f"lease-{number}")
        finally:
            self._queue.close()
        raise AssertionError("lease workers never end")

    async def _work(self) -> NoReturn:
        while True:
            node = await self._queue.get()
            try:
                await self._keep(node)
            finally:
                self._queue.done(node)

    async def _keep(self, node: str) -> None:
        held = self._leases.get(node)
        if held is None:
            return
        fresh = held.meta is None
        try:
            await self._renew_once(node, held)
        except KubeError as error:
            self.stats.failures += 1
            at_least = error.retry_after if isinstance(error, ApiError) else None
            delay = held.backoff.next(at_least)
            # One line a node and try would be a flood when the API server is away.
            if held.backoff.failures in (1, 5) or held.backoff.failures % 20 == 0:
                log.warning(
                    "lease_renewal_failed",
                    node=node,
                    failures=held.backoff.failures,
                    error=str(error),
                    retry_in=round(delay, 2),
                )
        else:
            held.backoff.reset()
            held.renewed = time.monotonic()
            # The first interval is cut at random to spread the nodes over it.
            spread = 0.5 + self._rand() / 2 if fresh else 1 + JITTER * (2 * self._rand() - 1)
            delay = self._renew * spread
        if node in self._leases:
            self._queue.add_after(node, delay)

    async def _renew_once(self, node: str, held: _Held) -> None:
        if held.meta is not None:
            try:
                await self._put(node, held)
            except ApiError as error:
                if not (error.is_conflict or error.is_not_found):
                    raise
                # A PUT whose answer was lost, somebody's edit, or a deleted Lease.
                held.meta = None
                if error.is_conflict:
                    self._note_conflict(node, held)
            else:
                held.conflicts = 0
                return
        await self._ensure(node, held)

    async def _ensure(self, node: str, held: _Held) -> None:
        try:
            body = await self._client.create(
                COLLECTION, self._lease(node, held), timeout=self._timeout, retry=False
            )
        except ApiError as error:
            if not error.is_already_exists:
                raise
        else:
            self.stats.creates += 1
            held.meta = _decode(body).metadata
            return
        path = f"{COLLECTION}/{node}"
        held.meta = _decode(
            await self._client.get(path, timeout=self._timeout, retry=False)
        ).metadata
        await self._put(node, held)

    async def _put(self, node: str, held: _Held) -> None:
        body = await self._client.put(
            f"{COLLECTION}/{node}", self._lease(node, held), timeout=self._timeout, retry=False
        )
        self.stats.renewals += 1
        held.meta = _decode(body).metadata

    @property
    def _timeout(self) -> float:
        # A renewal slower than its interval is as good as lost; the next one may do better.
        return max(1.0, min(10.0, self._renew))

    def _note_conflict(self, node: str, held: _Held) -> None:
        self.stats.conflicts += 1
        held.conflicts += 1
        if held.conflicts == CONFLICTS_TO_WARN:
            log.warning(
                "lease_contended",
                node=node,
                hint="somebody else renews this Lease: does a second agent run with these nodes?",
            )

    def _lease(self, node: str, held: _Held) -> bytes:
        meta: dict[str, Any] = {
            "name": node,
            "namespace": NAMESPACE,
            "ownerReferences": [
                {"apiVersion": "v1", "kind": "Node", "name": node, "uid": held.node_uid}
            ],
        }
        if held.meta is not None:
            meta["resourceVersion"] = held.meta.resource_version
            if held.meta.labels:
                meta["labels"] = held.meta.labels
            if held.meta.annotations:
                meta["annotations"] = held.meta.annotations
        return _encode(
            {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": meta,
                "spec": {
                    "holderIdentity": node,
                    "leaseDurationSeconds": self._duration,
                    "renewTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
                },
            }
        )
