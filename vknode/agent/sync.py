"""Brings every Pod of our nodes and its sandbox together, one step after another.

Theory of operation. Three sources tell news, synchronously: the Pod watch (`upsert`, `deleted`,
`synced`), the pools' links (`sandbox_changed`, `sandbox_gone`, …), and the nodes
(`node_changed`). News only changes a record and puts its UID into the queue of its pool, if
`sync_core.decide` wants something done; a status that may have changed is marked in the writer
in the same turn. A fixed number of workers a pool takes UIDs and carries out one action after
another (`pod_steps.py`) until there is none. So a Pod at rest has no task and no timer, one UID
is never worked on twice at the same time, and a pool that hangs holds up nobody else's Pods.

A sandbox that is lost waits before that is told (`losses.py`).

What fails is tried again with a back-off of the record's own (`retry_at`). News meanwhile does
not break it; only a pool that is back does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import NoReturn, Protocol

import structlog

from vknode.agent.admitter import occupies
from vknode.agent.authority import Wrong
from vknode.agent.claims import Claims
from vknode.agent.event_correlator import ObjectRef
from vknode.agent.events import WARNING, node_ref
from vknode.agent.links import Link
from vknode.agent.losses import DOUBT, Losses
from vknode.agent.metrics import AgentMetrics
from vknode.agent.pod_record import (
    ENDED,
    Placement,
    PodRecord,
    is_plain_progress,
    lacks_image,
    restarts_awaited,
)
from vknode.agent.pod_steps import PROGRESS_DELAY, PodSteps
from vknode.agent.pod_store import Change, Gone, PodObject, PodStore
from vknode.agent.status_writer import StatusWriter
from vknode.agent.sync_core import Action, Desired, decide
from vknode.agent.wheel import WorkQueue
from vknode.kube.models import ObjectKey
from vknode.pool.v1 import status_pb2

log = structlog.get_logger()

WORKERS_PER_POOL = 16
# Actions in one turn of a worker; then the UID goes to the back of the queue.
STEPS_AT_ONCE = 8


class Admits(Protocol):
    """The part of `Admitter` that is used here."""

    def taken(self, record: PodRecord, pod: PodObject) -> None: ...

    def left(self, record: PodRecord) -> None: ...


class Refreshes(Protocol):
    """The part of `Refresher` that is used here."""

    def adopted(self, pod: PodObject) -> None: ...

    def soon(self, uid: str) -> None: ...

    def forget(self, uid: str) -> None: ...


class PodSync:
    """Handler of the Pod reflector and of all links. `run` in a task, once all is wired."""

    def __init__(
        self,
        *,
        store: PodStore,
        records: dict[str, PodRecord],
        links: Iterable[Link],
        place: Callable[[str], Placement | None],
        steps: PodSteps,
        admitter: Admits,
        refresher: Refreshes,
        writer: StatusWriter,
        metrics: AgentMetrics,
        owner: str,
        losses: Losses,
        claims: Claims,
        workers: int = WORKERS_PER_POOL,
    ) -> None:
        """`place` tells what is behind a node's name, None unless it is registered and ours."""
        self._store = store
        self._records = records
        self._place = place
        self._steps = steps
        self._admitter = admitter
        self._refresher = refresher
        self._writer = writer
        self._metrics = metrics
        self._owner = owner
        self._losses = losses
        self._claims = claims
        # Nodes that were told of doubted losses, by pool.
        self._doubts_told: dict[str, set[str]] = {}
        self._suspicion: Callable[[], None] = lambda: None
        self._workers = workers
        self._loop = asyncio.get_running_loop()
        self._queues: dict[str, WorkQueue[str]] = {link.name: WorkQueue() for link in links}
        self.store_synced = False

    def on_suspicion(self, callback: Callable[[], None]) -> None:
        """Who is called when there may be sandboxes without a Pod."""
        self._suspicion = callback

    def depths(self) -> dict[str, float]:
        """Pods that wait or are being worked on, by pool."""
        return {pool: float(len(queue)) for pool, queue in self._queues.items()}

    async def run(self) -> NoReturn:
        """Works until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                for pool, queue in self._queues.items():
                    for number in range(self._workers):
                        group.create_task(self._serve(queue), name=f"pods-{pool}-{number}")
        finally:
            for queue in self._queues.values():
                queue.close()
        raise AssertionError("workers never end")

    # -- news from the Pod watch -----------------------------------------------------------

    def upsert(self, obj: PodObject) -> None:
        change, displaced = self._store.upsert(obj)
        if displaced is not None:
            self._api_gone(displaced, None)
        if change is Change.STALE:
            return
        record = self._records.get(obj.uid)
        if record is None:
            self._begin(obj)
            return
        if not obj.deleting:
            record.seen_alive = True
        if obj.metadata.resource_version != record.written:
            # Others write to a status, too; what is ours is put right. Of a deletion the end is
            # news: where it comes soon, one PATCH tells that and that it was seen.
            self._writer.mark(obj.uid, PROGRESS_DELAY if obj.deleting else 0.0)
        self._consider(record)

    def deleted(self, key: ObjectKey, last: PodObject | None) -> None:
        result = self._store.delete(key, last)
        if result is None:
            return
        gone, pod = result
        if gone is Gone.GONE:
            self._api_gone(key.uid, pod)
            return
        record = self._records.get(key.uid)
        if record is not None and record.sandbox is None and record.memory.fingerprint_sent is None:
            self._release(record)  # nothing of it was ever in a pool
        self._suspicion()

    def synced(self) -> None:
        self.store_synced = True
        self._suspicion()

    def _begin(self, pod: PodObject) -> None:
        """A Pod we have not worked on, if it is bound to one of our nodes."""
        place = self._place(pod.node) if pod.node else None
        if place is None:
            return  # somebody else's, or `node_changed` will tell
        uid = pod.uid
        record = PodRecord(uid, pod.node, place.link, place.facts.cell, seen_alive=not pod.deleting)
        self._records[uid] = record
        sandbox = place.link.sandboxes.get(uid)
        if sandbox is not None and self._claims.believes(place.link.name, sandbox, record):
            record.observe(sandbox)
            self._note_images(record, pod)
            self._admitter.taken(record, pod)
            self._writer.mark(uid)
        elif not (pod.terminal or pod.started or pod.deleting):
            seen = time.time_ns()
            self._metrics.timings.begin(uid, pod.namespace, pod.name, seen, _bound(pod))
        self._consider(record)

    def _api_gone(self, uid: str, last: PodObject | None) -> None:
        """The API server certainly has no such Pod any more."""
        self._store.settle(uid)
        record = self._records.get(uid)
        if record is None:
            return
        record.api_gone = True
        record.last = last
        self._writer.forget(uid)
        self._consider(record)

    # -- news from the pools ---------------------------------------------------------------

    def sandbox_changed(self, link: Link, sandbox: status_pb2.Sandbox) -> bool:
        record = self._records.get(sandbox.uid)
        if record is None:
            if sandbox.owner == self._owner:
                there = sandbox.cell in link.cells or link.may_have(sandbox.cell)
                if link.reachable and not there:
                    self._claims.foreign_cell(link.name, sandbox)
                if sandbox.uid not in self._store:
                    self._suspicion()
            return True
        if not self._claims.believes(link.name, sandbox, record):
            return False
        resized = record.sandbox is not None and record.sandbox.HasField("resize")
        record.observe(sandbox)
        pod = self._store.get(record.uid)
        if pod is not None:
            if resized or sandbox.HasField("resize"):
                self._admitter.taken(record, pod)
            self._note_images(record, pod)
        self._metrics.timings.pool_phases(sandbox.uid, sandbox.phases)
        self._prepare_restart(record, sandbox)
        self._writer.mark(sandbox.uid, PROGRESS_DELAY if is_plain_progress(sandbox) else 0.0)
        self._consider(record)
        return True

    def _note_images(self, record: PodRecord, pod: PodObject) -> None:
        """While an image cannot be pulled, the pull secrets are followed: whoever makes one, or
        puts it right, finds the next try to succeed, as on a kubelet, which reads them each time.
        Afterwards nobody looks at them any more. A registry that is away concerns many Pods."""
        lacks = record.sandbox is not None and lacks_image(record.sandbox)
        if lacks != record.lacks_image:
            record.lacks_image = lacks
            if pod.has_pull_secrets:
                self._refresher.soon(record.uid)

    def _prepare_restart(self, record: PodRecord, sandbox: status_pb2.Sandbox) -> None:
        """A kubelet looks variables up at each start of a container. Here it is done while the
        pool waits for the next one, so that it comes up with what the objects hold now."""
        awaited = restarts_awaited(sandbox)
        if not awaited or awaited == record.restarts_prepared:
            return
        record.restarts_prepared = awaited
        pod = self._store.get(record.uid)
        if pod is not None and pod.shows_objects:
            record.stale += 1

    def sandbox_gone(self, link: Link, uid: str, last: status_pb2.Sandbox | None) -> None:
        record = self._records.get(uid)
        if record is None:
            return
        if record.link is not link:
            if last is not None:  # only then the pool says it; else its own snapshot forgot it
                self._claims.sandbox(link.name, Wrong.OTHER_POOL, record, "tells its end")
            return
        if last is not None and not self._claims.believes(link.name, last, record):
            last = None  # that it is gone is the pool's to say, what became of another is not
        record.observe_gone(last)
        if uid not in self._store and not record.api_gone:
            self._release(record)  # a list left the Pod out, and now the sandbox is gone, too
            return
        self._writer.mark(uid)
        self._consider(record)

    def sandbox_event(self, link: Link, event: status_pb2.SandboxEvent) -> None:
        pod, record = self._store.get(event.uid), self._records.get(event.uid)
        if pod is None or record is None:
            return
        if record.link is not link:
            self._claims.sandbox(link.name, Wrong.OTHER_POOL, record, "tells events of it")
            return
        ref = ObjectRef(
            "Pod",
            pod.namespace,
            pod.name,
            pod.uid,
            resource_version=pod.metadata.resource_version,
            field_path=event.field_path,
        )
        self._steps.events.event(ref, pod.node, event.type, event.reason, event.message)

    def snapshot_taken(self, link: Link) -> None:
        """The pool is back, or seen for the first time: whatever waited for it goes on."""
        for record in self._records.values():
            if record.link is not link:
                continue
            record.retry_at = 0.0
            sandbox = record.sandbox
            if not record.memory.gone and (sandbox is None or not sandbox.deleting):
                # A pool that lost our request must hear it again; one that has it says so. And
                # what went before the snapshot is told by nobody, but by the answer to it.
                record.memory.grace_sent = None
            self._consider(record)
        self._suspicion()

    def cells_changed(self, link: Link) -> None:
        """Cells may have come that a creation waits for."""
        for record in self._records.values():
            if record.link is link and record.sandbox is None:
                self._consider(record)

    # -- news from the nodes and from the orphan collector ---------------------------------

    def node_changed(self, node: str) -> None:
        """The node was registered, changed or removed."""
        if self._place(node) is None:
            return
        for pod in list(self._store.on_node(node)):
            record = self._records.get(pod.uid)
            if record is None:
                self._begin(pod)
            else:
                self._consider(record)
        self._suspicion()

    def refresh(self, uid: str) -> None:
        """Something that the Pod's sandbox was made from may have changed, or is there now."""
        record = self._records.get(uid)
        if record is None:
            return
        record.stale += 1
        if record.waits_for_news:
            record.retry_at = 0.0
        self._consider(record)

    def collect(self, uid: str, node: str, link: Link) -> None:
        """It is certain that this sandbox has no Pod: end it."""
        sandbox, record = link.sandboxes.get(uid), self._records.get(uid)
        if uid in self._store or (record is not None and record.link is not link):
            return  # its Pod has come meanwhile, or it is another pool's
        if record is None:
            cell = "" if sandbox is None else sandbox.cell
            record = self._records[uid] = PodRecord(uid, node, link, cell)
        if record.sandbox is None and sandbox is not None:
            record.observe(sandbox)
        self._metrics.orphans.inc()
        self._api_gone(uid, self._store.vanished.get(uid))

    # -- deciding and working --------------------------------------------------------------

    def _decide(self, record: PodRecord) -> Action:
        pod = self._store.get(record.uid)
        if pod is None:
            if not record.api_gone:
                return Action.NOTHING  # a list left it out: the orphan collector finds out
            return decide(None, record.actual(), record.memory, view_current=True)
        desired = Desired(
            deleting=pod.deleting,
            terminal=pod.terminal,
            started=pod.started,
            grace=self._steps.grace(record, pod),
            generation=pod.metadata.generation,
            fingerprint=pod.fingerprint,
            shows_metadata=record.memory.fingerprint_sent is None and pod.shows_metadata,
        )
        action = decide(
            desired, record.actual(), record.memory, view_current=record.link.view_current
        )
        if action is Action.FINISH and record.finished:
            return Action.NOTHING
        if action is Action.NOTHING and _lives(record, pod):
            memory = record.memory
            if memory.fingerprint_sent is None:
                if memory.fingerprint_adopted is None:
                    self._refresher.adopted(pod)
                memory.fingerprint_adopted = pod.fingerprint
            if record.config_errors or record.stale != record.fresh:
                return Action.UPDATE
        return action

    def _consider(self, record: PodRecord) -> None:
        """Queues the Pod if there is something to do."""
        action = self._decide(record)
        self._note_loss(action, record)
        if not self._may_need_news(record):
            self._refresher.forget(record.uid)
        if not occupies(record, self._store.get(record.uid)):
            self._admitter.left(record)
        if action is Action.NOTHING:
            return
        self._queues[record.link.name].add_after(record.uid, self._delay(action, record))

    def _may_need_news(self, record: PodRecord) -> bool:
        pod, sandbox = self._store.get(record.uid), record.sandbox
        if pod is None or pod.deleting or pod.terminal or record.memory.given_up:
            return False
        return sandbox is None or not (sandbox.deleting or sandbox.state in ENDED)

    def _delay(self, action: Action, record: PodRecord) -> float:
        if action in (Action.CREATE, Action.UPDATE):
            return max(0.0, record.retry_at - self._loop.time())
        if action is Action.LOST:
            link = record.link
            living = len(link.sandboxes)
            return self._losses.wait(link.name, record.uid, living, self._loop.time())
        return 0.0

    def _note_loss(self, action: Action, record: PodRecord) -> None:
        pool = record.link.name
        if action is Action.LOST:
            self._losses.note(pool, record.uid, self._loop.time())
            return
        self._losses.forget(pool, record.uid)
        if not self._losses.count(pool):
            self._doubts_told.pop(pool, None)

    def _tell_doubt(self, record: PodRecord) -> None:
        """Many sandboxes of a pool are missing at once: said once for each node."""
        pool, living = record.link.name, len(record.link.sandboxes)
        if not self._losses.is_doubted(pool, living):
            return
        told = self._doubts_told.setdefault(pool, set())
        if not told:
            lost = self._losses.count(pool)
            log.error(
                "sandbox_loss_doubted", pool=pool, lost=lost, living=living, for_seconds=DOUBT
            )
        place = self._place(record.node)
        if place is None or place.node in told:
            return
        told.add(place.node)
        self._steps.events.event(
            node_ref(place.node, place.node_uid),
            place.node,
            WARNING,
            "SandboxLossDoubted",
            f"pool {pool} no longer has many of its sandboxes; "
            f"unless they are back within {DOUBT:g} s, their Pods fail",
        )

    async def _serve(self, queue: WorkQueue[str]) -> NoReturn:
        while True:
            uid = await queue.get()
            try:
                await self._work(uid, queue)
            except Exception:  # a defect of ours with one Pod; the others go on, this one later
                log.exception("pod_sync_failed", uid=uid)
                queue.add_after(uid, 30.0)
            finally:
                queue.done(uid)

    async def _work(self, uid: str, queue: WorkQueue[str]) -> None:
        for _ in range(STEPS_AT_ONCE):
            record = self._records.get(uid)
            if record is None:
                return
            action = self._decide(record)
            self._note_loss(action, record)
            if action is Action.NOTHING:
                return
            delay = self._delay(action, record)
            if delay > 0:
                if action is Action.LOST:
                    self._tell_doubt(record)
                queue.add_after(uid, delay)
                return
            with self._metrics.sync_seconds.labels(action.value).time():
                if action is Action.RELEASE:
                    self._release(record)
                    return
                again = await self._steps.carry_out(action, record, self._decide)
            if again is not None:
                queue.add_after(uid, again)
                return
        queue.add(uid)

    def _release(self, record: PodRecord) -> None:
        self._losses.forget(record.link.name, record.uid)
        self._refresher.forget(record.uid)
        self._admitter.left(record)
        self._records.pop(record.uid, None)
        self._store.settle(record.uid)
        self._writer.forget(record.uid)
        self._queues[record.link.name].forget(record.uid)


def _bound(pod: PodObject) -> int | None:
    """When the scheduler bound it, in nanoseconds; whole seconds are all there is."""
    for condition in (pod.decode().get("status") or {}).get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition.get("lastTransitionTime"):
            at = datetime.fromisoformat(condition["lastTransitionTime"])
            return int(at.timestamp()) * 1_000_000_000
    return None


def _lives(record: PodRecord, pod: PodObject) -> bool:
    sandbox = record.sandbox
    return (
        sandbox is not None
        and not (pod.deleting or pod.terminal or sandbox.deleting or record.memory.gone)
        and sandbox.state not in ENDED
    )
