"""The actions on one Pod: create, update, delete, finish, lost. One runs at a time for a UID.

Each method does one action and says what comes next:

========  ==============================================================================
None      decide again now
seconds   decide again then at the latest (news may be earlier, but for `retry_at`)
========  ==============================================================================

Waiting for something that may never come (`Wait.FOR_NEWS`) is a very long time: news will wake it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import datetime
from typing import Protocol

import structlog

from vknode.agent.admission import Rejection, rejection
from vknode.agent.event_correlator import ObjectRef
from vknode.agent.events import WARNING, node_ref
from vknode.agent.metrics import AgentMetrics
from vknode.agent.pod_record import (
    Override,
    OverrideKind,
    Placement,
    PodRecord,
    is_plain_progress,
)
from vknode.agent.pod_store import PodObject, PodStore
from vknode.agent.spec_builder import Built, NotReady, SpecBuilder
from vknode.agent.status_writer import StatusWriter
from vknode.agent.sync_core import Action, remaining_grace
from vknode.kube.backoff import Backoff
from vknode.kube.errors import ApiError, KubeError
from vknode.pool.errors import NOT_FOUND, Kind, PoolFailure

log = structlog.get_logger()

# A state between "accepted" and "running" is written only if it lasts: a quick start is one PATCH.
PROGRESS_DELAY = 1.0
SETTLE_TIMEOUT = 10.0
NODE_AWAY = 60.0
# What is named may be made any moment: asked often, and seldom enough not to be a burden.
MISSING_BASE, MISSING_MAX = 0.25, 3.0
FAILURE_BASE, FAILURE_MAX = 0.3, 15.0

NO_DNS = (
    'kubelet does not have ClusterDNS IP configured and cannot create Pod using "ClusterFirst" '
    'policy. Falling back to "Default" policy: set kubelet.clusterDNS in the agent\'s configuration'
)

Decide = Callable[[PodRecord], Action]


class Events(Protocol):
    def event(self, ref: ObjectRef, node: str, type: str, reason: str, message: str) -> None: ...


class DeletePod(Protocol):
    """The part of `KubeClient` that is used here."""

    async def delete(
        self,
        path: str,
        *,
        uid: str | None = None,
        grace_period_seconds: int | None = None,
        impersonate: str | None = None,
        timeout: float = 30.0,
        retry: bool = True,
    ) -> bytes: ...


class PodSteps:
    def __init__(
        self,
        *,
        client: DeletePod,
        store: PodStore,
        place: Callable[[str], Placement | None],
        builder: SpecBuilder,
        writer: StatusWriter,
        events: Events,
        metrics: AgentMetrics,
        owner: str,
    ) -> None:
        self.events = events
        self._client = client
        self._store = store
        self._place = place
        self._builder = builder
        self._writer = writer
        self._metrics = metrics
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._without_dns: set[str] = set()  # UIDs of Nodes that have been told

    async def carry_out(self, action: Action, record: PodRecord, decide: Decide) -> float | None:
        if action is Action.CREATE:
            return await self._create(record, decide)
        if action is Action.UPDATE:
            return await self._update(record, decide)
        if action is Action.DELETE:
            return await self._delete(record)
        if action is Action.FINISH:
            return await self._finish(record)
        if action is Action.LOST:
            self._lost(record)
            return None
        raise AssertionError(f"{action} is not a step")

    def grace(self, record: PodRecord, pod: PodObject) -> int:
        """Seconds that a deletion would give now."""
        if not pod.deleting:
            return max(1, pod.spec_grace)
        meta = pod.metadata
        sent = record.memory.grace_sent
        if sent is not None and record.grace_asked == meta.deletion_grace_period_seconds:
            return sent  # what is left shrinks with the clock: that is no new request
        deadline = None
        if not record.seen_alive and meta.deletion_timestamp:
            deadline = datetime.fromisoformat(meta.deletion_timestamp).timestamp()
        return remaining_grace(
            meta.deletion_grace_period_seconds,
            pod.spec_grace,
            deadline=deadline,
            now=time.time(),
            seen_alive=record.seen_alive,
        )

    # -- create and update -----------------------------------------------------------------

    async def _create(self, record: PodRecord, decide: Decide) -> float | None:
        uid = record.uid
        pod = self._store.get(uid)
        if pod is None:
            return None
        place = self._place(pod.node)
        if place is None or place.facts.cell not in record.link.cells:
            return NODE_AWAY  # `node_changed` and `cells_changed` tell when it is there
        document = pod.decode()
        try:
            built = await self._builder.build(document, place)
        except KubeError as error:
            return self._api_failed(record, "references_not_fetched", error)
        if decide(record) is not Action.CREATE:
            return None  # meanwhile deleted, or seen in the pool
        if isinstance(built, Rejection):
            self._reject(record, pod, built)
            return None
        if isinstance(built, NotReady):
            return self._not_ready(record, pod, built)
        self._warn(pod, place, built)
        timings = self._metrics.timings
        # From here on the pool may have it, whatever we hear; and the stream, which may be faster
        # than the answer, does not tell of an adopted sandbox.
        record.memory.fingerprint_sent = pod.fingerprint
        record.config_errors = ()
        timings.mark(uid, "sandbox_asked", time.time_ns())
        try:
            sandbox, created = await record.link.client.create(built.spec, self._owner)
        except PoolFailure as failure:
            return self._create_failed(record, pod, document, failure)
        timings.mark(uid, "sandbox_accepted", time.time_ns())
        if not created:
            log.info("sandbox_adopted", uid=uid, pod=f"{pod.namespace}/{pod.name}")
        self._sent(record, pod, built)
        record.memory.grace_sent = None
        if record.sandbox is None or record.memory.gone:
            newest = record.link.adopt(sandbox)
            record.observe(newest)
            self._writer.mark(uid, PROGRESS_DELAY if is_plain_progress(newest) else 0.0)
        return None

    async def _update(self, record: PodRecord, decide: Decide) -> float | None:
        pod = self._store.get(record.uid)
        if pod is None:
            return None
        place = self._place(pod.node)
        if place is None:
            return NODE_AWAY
        document = pod.decode()
        try:
            built = await self._builder.build(document, place)
        except KubeError as error:
            return self._api_failed(record, "references_not_fetched", error)
        if decide(record) is not Action.UPDATE:
            return None
        if isinstance(built, Rejection):
            self._update_refused(record, pod, built)
            return None
        if isinstance(built, NotReady):
            return self._not_ready(record, pod, built)
        same_content = record.memory.fingerprint_sent == pod.fingerprint
        if same_content and built.config_errors == record.config_errors:
            return self._again(record, MISSING_BASE, MISSING_MAX)
        try:
            await record.link.client.update(built.spec)
        except PoolFailure as failure:
            return self._update_failed(record, pod, document, failure)
        self._sent(record, pod, built)
        return None

    def _warn(self, pod: PodObject, place: Placement, built: Built) -> None:
        """Events of what does not stop a start, in a kubelet's words."""
        for message in built.pull_warnings:
            self._event(pod, "FailedToRetrieveImagePullSecret", message)
        if built.lacks_dns and place.node_uid not in self._without_dns:
            # A kubelet tells the Pod as well; but here a pool may resolve the cluster's names by
            # itself, and who can configure it looks at Nodes: once for each will do.
            self._without_dns.add(place.node_uid)
            ref = node_ref(place.node, place.node_uid)
            self.events.event(ref, place.node, WARNING, "MissingClusterDNS", NO_DNS)

    def _sent(self, record: PodRecord, pod: PodObject, built: Built) -> None:
        """The pool has this content."""
        record.memory.fingerprint_sent = pod.fingerprint
        record.backoff = None
        record.retry_at = 0.0
        if built.config_errors != record.config_errors:
            record.config_errors = built.config_errors
            for container, message in built.config_errors:
                self._metrics.missing_references.inc()
                self._event(pod, "Failed", f"Error: {message}", f"spec.containers{{{container}}}")
        if record.config_errors:
            self._again(record, MISSING_BASE, MISSING_MAX)

    def _not_ready(self, record: PodRecord, pod: PodObject, why: NotReady) -> float:
        self._metrics.missing_references.inc()
        self._event(pod, why.reason, why.message)
        self._wait_visibly(record)
        return self._again(record, MISSING_BASE, MISSING_MAX)

    def _reject(self, record: PodRecord, pod: PodObject, why: Rejection) -> None:
        log.info(
            "pod_rejected",
            uid=record.uid,
            pod=f"{pod.namespace}/{pod.name}",
            reason=why.reason,
            message=why.message,
        )
        record.memory.given_up = True
        record.config_errors = ()
        record.override = Override(OverrideKind.REJECTED, why.reason, why.message)
        self._metrics.refused.labels(why.reason).inc()
        self._event(pod, why.reason, why.message)
        self._writer.mark(record.uid)

    def _create_failed(
        self, record: PodRecord, pod: PodObject, document: dict[str, object], failure: PoolFailure
    ) -> float | None:
        self._count(record, failure)
        why = rejection(document, failure)
        if why is not None:
            self._reject(record, pod, why)
            return None
        self._event(
            pod, "FailedCreatePodSandBox", f"Failed to create pod sandbox: {failure.message}"
        )
        self._wait_visibly(record)
        return self._again(record, FAILURE_BASE, FAILURE_MAX, failure.retry_after)

    def _update_failed(
        self, record: PodRecord, pod: PodObject, document: dict[str, object], failure: PoolFailure
    ) -> float | None:
        self._count(record, failure)
        if failure.kind == NOT_FOUND:
            record.memory.gone = True
            record.link.sandboxes.pop(record.uid, None)
            return None
        why = rejection(document, failure)
        if why is not None:
            self._update_refused(record, pod, why)
            return None
        log.warning("sandbox_update_failed", uid=record.uid, error=failure.message)
        return self._again(record, FAILURE_BASE, FAILURE_MAX, failure.retry_after)

    def _update_refused(self, record: PodRecord, pod: PodObject, why: Rejection) -> None:
        """The sandbox goes on as it is; the same content is not sent again."""
        record.memory.fingerprint_sent = pod.fingerprint
        record.config_errors = ()
        self._event(pod, why.reason, f"the change is not carried out: {why.message}")

    # -- delete and finish -----------------------------------------------------------------

    async def _delete(self, record: PodRecord) -> float | None:
        uid = record.uid
        pod = self._store.get(uid) or record.last
        grace = None if pod is None else self.grace(record, pod)
        try:
            found = await record.link.client.delete(uid, grace, "Killing")
        except PoolFailure as failure:
            self._count(record, failure)
            log.warning(
                "sandbox_delete_failed", uid=uid, pool=record.link.name, error=failure.message
            )
            return self._again(record, FAILURE_BASE, FAILURE_MAX, failure.retry_after)
        record.backoff = None
        if found:
            # Without a Pod the pool takes the spec's own grace.
            record.memory.grace_sent = 0 if grace is None else grace
            if pod is not None:
                record.grace_asked = pod.metadata.deletion_grace_period_seconds
        else:
            record.memory.gone = True
            record.link.sandboxes.pop(uid, None)
        return None

    async def _finish(self, record: PodRecord) -> float | None:
        pod = self._store.get(record.uid)
        if pod is None:
            return None
        uid = record.uid
        if record.sandbox is None and record.override is None and pod.started and not pod.terminal:
            # It ran, but whatever the pool knew of its end was told to nobody.
            record.override = Override(OverrideKind.LOST)
        self._writer.mark(uid)
        try:
            async with asyncio.timeout(SETTLE_TIMEOUT):
                await self._writer.settled(uid)
        except TimeoutError:
            return 0.5  # the API server is away; the last status must come first
        try:
            await self._client.delete(
                pod.path, uid=uid, grace_period_seconds=0, impersonate=pod.node, retry=False
            )
        except ApiError as error:
            if error.is_conflict:
                record.finished = True  # another Pod has the name: the watch will tell
                return None
            # 404: gone, or the API server's own admission has not seen the Pod yet.
            if not error.is_not_found:
                log.warning("pod_not_deleted", uid=uid, error=str(error))
            return self._again(record, FAILURE_BASE, FAILURE_MAX, error.retry_after)
        except KubeError as error:
            return self._api_failed(record, "pod_not_deleted", error)
        record.finished = True
        record.backoff = None
        return None

    def _lost(self, record: PodRecord) -> None:
        pod = self._store.get(record.uid)
        record.memory.given_up = True
        record.config_errors = ()
        record.override = Override(OverrideKind.LOST)
        if pod is None:
            return
        log.warning("sandbox_lost", uid=record.uid, pod=f"{pod.namespace}/{pod.name}")
        self._metrics.refused.labels("SandboxLost").inc()
        self._event(pod, "SandboxLost", f"pool {record.link.name} no longer has the sandbox")
        self._writer.mark(record.uid)

    # -- what they share -------------------------------------------------------------------

    def _api_failed(self, record: PodRecord, what: str, error: KubeError) -> float:
        log.warning(what, uid=record.uid, error=str(error))
        at_least = error.retry_after if isinstance(error, ApiError) else None
        return self._again(record, FAILURE_BASE, FAILURE_MAX, at_least)

    def _again(
        self, record: PodRecord, base: float, maximum: float, at_least: float | None = None
    ) -> float:
        if record.backoff is None:
            record.backoff = Backoff(base=base, maximum=maximum)
        delay = record.backoff.next(at_least)
        record.retry_at = self._loop.time() + delay
        return delay

    def _wait_visibly(self, record: PodRecord) -> None:
        """Without a sandbox, people see ContainerCreating while it is tried again."""
        if record.sandbox is None:
            record.override = Override(OverrideKind.WAITING)
            self._writer.mark(record.uid)

    def _count(self, record: PodRecord, failure: PoolFailure) -> None:
        kind = Kind.Name(failure.kind).removeprefix("KIND_").lower()
        self._metrics.pool_errors.labels(record.link.name, kind).inc()

    def _event(self, pod: PodObject, reason: str, message: str, field_path: str = "") -> None:
        ref = ObjectRef(
            "Pod",
            pod.namespace,
            pod.name,
            pod.uid,
            resource_version=pod.metadata.resource_version,
            field_path=field_path,
        )
        self.events.event(ref, pod.node, WARNING, reason, message)
