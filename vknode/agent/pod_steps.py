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
import random
import re
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Protocol

import structlog

from vknode.agent.admission import UNSUPPORTED, Rejection, rejection
from vknode.agent.claims import Claims
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
from vknode.agent.reference_index import Uses
from vknode.agent.spec_builder import Built, NotReady, SpecBuilder
from vknode.agent.status_writer import StatusWriter
from vknode.agent.sync_core import Action, remaining_grace
from vknode.kube.backoff import Backoff
from vknode.kube.errors import ApiError, KubeError
from vknode.pool.errors import NO_CAPACITY, NOT_FOUND, PoolFailure
from vknode.pool.v1 import spec_pb2
from vknode.translate.paths import pool_path_to_pod_path

log = structlog.get_logger()

# A state between "accepted" and "running" is written only if it lasts: a quick start is one PATCH.
PROGRESS_DELAY = 1.0
SETTLE_TIMEOUT = 10.0
NODE_AWAY = 60.0
# What is named may be made any moment: asked often, and seldom enough not to be a burden.
MISSING_BASE, MISSING_MAX = 0.25, 3.0
# The same where a watch tells of it: only a fallback.
WATCHED_AGAIN = (30.0, 60.0)
# Something changed while it was being read: read it again, but never in a tight circle.
CHANGED_MEANWHILE = 0.25
FAILURE_BASE, FAILURE_MAX = 0.3, 15.0

NO_DNS = (
    'kubelet does not have ClusterDNS IP configured and cannot create Pod using "ClusterFirst" '
    'policy. Falling back to "Default" policy: set kubelet.clusterDNS in the agent\'s configuration'
)

# What a user can change of a Pod that runs, as paths of the pool.
_CHANGEABLE = re.compile(
    r"((init_)?containers\[\d+\]\.(image|resources)|resources)\b"
    r"|active_deadline_seconds|ephemeral_containers$"
)

Decide = Callable[[PodRecord], Action]


class Events(Protocol):
    def event(self, ref: ObjectRef, node: str, type: str, reason: str, message: str) -> None: ...


class Admits(Protocol):
    """The part of `Admitter` that is used here."""

    async def admit(
        self, record: PodRecord, pod: dict[str, Any], place: Placement
    ) -> Rejection | None: ...

    def taken(self, record: PodRecord, pod: PodObject) -> None: ...

    def left(self, record: PodRecord) -> None: ...


class Refreshes(Protocol):
    """The part of `Refresher` that is used here."""

    def sent(self, uid: str, node: str, uses: Uses, *, in_want: bool) -> bool: ...

    def waits(self, uid: str, node: str, uses: Uses) -> bool: ...

    def refused(self, uid: str, node: str, uses: Uses) -> None: ...


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
        admitter: Admits,
        refresher: Refreshes,
        writer: StatusWriter,
        events: Events,
        metrics: AgentMetrics,
        owner: str,
        claims: Claims,
    ) -> None:
        self.events = events
        self._claims = claims
        self._client = client
        self._store = store
        self._place = place
        self._builder = builder
        self._admitter = admitter
        self._refresher = refresher
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

    def warn(self, uid: str, reason: str, message: str) -> None:
        """An event on a Pod, if there still is one."""
        pod = self._store.get(uid)
        if pod is not None:
            self._event(pod, reason, message)

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
        stale = record.stale
        built: Built | NotReady | Rejection | None
        try:
            built = await self._admitter.admit(record, document, place)
            if built is None:
                built = await self._builder.build(document, place)
        except KubeError as error:
            return self._api_failed(record, "references_not_fetched", error)
        if decide(record) is not Action.CREATE:
            return None  # meanwhile deleted, or seen in the pool
        if isinstance(built, Rejection):
            self._reject(record, pod, built)
            return None
        if isinstance(built, NotReady):
            return self._not_ready(record, pod, built, stale)
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
            return self._create_failed(record, pod, document, failure, place.facts.cell)
        if not_ours := self._claims.answered(record, sandbox, "CreateSandbox"):
            return self._create_failed(record, pod, document, not_ours, place.facts.cell)
        timings.mark(uid, "sandbox_accepted", time.time_ns())
        if created:
            record.spec_sent = _hash(built.spec)
        else:
            log.info("sandbox_adopted", uid=uid, pod=f"{pod.namespace}/{pod.name}")
            record.stale += 1  # whoever made it: it shall have what is true now
        self._sent(record, pod, built, stale)
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
        _leave_out(document, record.left_out)
        stale = record.stale
        try:
            known = _known_debug_containers(record)
            built = await self._builder.build_again(
                document, place, known, lacks_image=record.lacks_image
            )
        except KubeError as error:
            return self._api_failed(record, "references_not_fetched", error)
        if decide(record) is not Action.UPDATE:
            return None
        if isinstance(built, Rejection):
            self._leave_debug_containers_out(record, pod, document, built)
            return None
        content = _hash(built.spec)
        if content != record.spec_sent:
            try:
                sandbox, kept = await record.link.client.update(built.spec)
                if not_ours := self._claims.answered(record, sandbox, "UpdateSandbox"):
                    raise not_ours
            except PoolFailure as failure:
                return self._update_failed(record, pod, document, failure, built, stale)
            self._tell_kept(record, pod, document, kept)
            record.spec_sent = content
            record.debug_taken = _debug_containers(document)
            self._admitter.taken(record, pod)
        self._sent(record, pod, built, stale)
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

    def _sent(self, record: PodRecord, pod: PodObject, built: Built, stale: int) -> None:
        """The pool has this content. `stale`: how often it had been called stale before it was
        read."""
        record.memory.fingerprint_sent = pod.fingerprint
        record.fresh = stale
        incomplete = bool(built.unmounted or built.config_errors)
        if not incomplete:
            record.backoff = None
        record.retry_at = 0.0
        record.waits_for_news = False
        record.refusal = ""
        for message in built.unmounted:
            self._metrics.missing_references.inc()
            self._event(pod, "FailedMount", message)
        # Of a container that runs, or has ended, it counts at its next start, if there is one.
        errors = tuple(one for one in built.config_errors if not _has_started(record, one[0]))
        if errors != record.config_errors:
            record.config_errors = errors
            for container, message in errors:
                self._metrics.missing_references.inc()
                path = f"spec.containers{{{container}}}"
                self._event(pod, "Failed", f"Error: {message}", path)
        in_want = bool(errors)
        told = self._refresher.sent(
            record.uid, pod.node, built.uses, in_want=in_want or record.lacks_image
        )
        if in_want:
            self._wait_for_news(record, told, stale)
        elif incomplete and record.stale != stale:
            # It is there, but not for us (an authorizer says no): never in a tight circle.
            self._again(record, CHANGED_MEANWHILE, FAILURE_MAX)

    def _tell_kept(
        self, record: PodRecord, pod: PodObject, document: dict[str, Any], kept: Sequence[str]
    ) -> None:
        """Fields that the pool leaves as they were. Where a user may have changed them an event
        tells; the others differ since we have another configuration or version."""
        told = [pool_path_to_pod_path(document, one) for one in kept if _CHANGEABLE.match(one)]
        text = ", ".join(told)
        if text and text != record.kept_told:
            message = f"the change of {text} is not carried out: recreate the Pod for it"
            self._event(pod, UNSUPPORTED, message)
        elif kept:
            log.debug("settled_fields_kept", uid=record.uid, fields=list(kept))
        record.kept_told = text

    def _not_ready(
        self, record: PodRecord, pod: PodObject, why: NotReady, stale: int
    ) -> float | None:
        self._metrics.missing_references.inc()
        self._event(pod, why.reason, why.message)
        self._wait_visibly(record)
        named = bool(why.uses.given or why.uses.trust or why.uses.certificates)
        told = named and self._refresher.waits(record.uid, pod.node, why.uses)
        return self._wait_for_news(record, told, stale)

    def _wait_for_news(self, record: PodRecord, told: bool, stale: int) -> float:
        """`told`: a watch will tell when what is missing is there."""
        record.waits_for_news = True
        if record.stale != stale:
            delay = CHANGED_MEANWHILE
        elif told:
            delay = random.uniform(*WATCHED_AGAIN)
        else:
            return self._again(record, MISSING_BASE, MISSING_MAX)
        record.retry_at = self._loop.time() + delay
        return delay

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
        self._admitter.left(record)
        record.override = Override(OverrideKind.REJECTED, why.reason, why.message)
        self._metrics.refused(why.reason)
        self._event(pod, why.reason, why.message)
        self._writer.mark(record.uid)

    def _create_failed(
        self,
        record: PodRecord,
        pod: PodObject,
        document: dict[str, object],
        failure: PoolFailure,
        cell: str,
    ) -> float | None:
        self._count(record, failure)
        why = rejection(document, failure)
        full = failure.kind == NO_CAPACITY and failure.field != "cell"
        if why is not None and not (full and _makes_room(record, cell)):
            self._reject(record, pod, why)
            return None
        self._event(
            pod, "FailedCreatePodSandBox", f"Failed to create pod sandbox: {failure.message}"
        )
        self._wait_visibly(record)
        return self._again(record, FAILURE_BASE, FAILURE_MAX, failure.retry_after)

    def _update_failed(
        self,
        record: PodRecord,
        pod: PodObject,
        document: dict[str, Any],
        failure: PoolFailure,
        built: Built,
        stale: int,
    ) -> float | None:
        self._count(record, failure)
        if failure.kind == NOT_FOUND:
            record.memory.gone = True
            record.link.sandboxes.pop(record.uid, None)
            return None
        why = rejection(document, failure)
        if why is not None:
            if self._leave_debug_containers_out(record, pod, document, why):
                return None
            return self._update_refused(record, pod, built, why, stale)
        log.warning("sandbox_update_failed", uid=record.uid, error=failure.message)
        return self._again(record, FAILURE_BASE, FAILURE_MAX, failure.retry_after)

    def _leave_debug_containers_out(
        self, record: PodRecord, pod: PodObject, document: dict[str, Any], why: Rejection
    ) -> bool:
        """Those that are new: the rest is sent once more without them. False: there are none."""
        new = _debug_containers(document) - _known_debug_containers(record)
        record.left_out |= new
        for name in sorted(new):
            path = f"spec.ephemeralContainers{{{name}}}"
            self._event(pod, why.reason, f"it is not started: {why.message}", path)
        return bool(new)

    def _update_refused(
        self, record: PodRecord, pod: PodObject, built: Built, why: Rejection, stale: int
    ) -> float | None:
        """The sandbox goes on as it is, until there is something else to send."""
        record.memory.fingerprint_sent = pod.fingerprint
        record.fresh = stale
        record.config_errors = ()
        record.waits_for_news = False
        if why.message != record.refusal:
            record.refusal = why.message
            self._event(pod, why.reason, f"the change is not carried out: {why.message}")
        self._refresher.refused(record.uid, pod.node, built.uses)
        if record.stale != stale:
            # Its watch shows an object that is not there for us: never in a tight circle.
            return self._again(record, CHANGED_MEANWHILE, FAILURE_MAX)
        return None

    # -- delete and finish -----------------------------------------------------------------

    async def _delete(self, record: PodRecord) -> float | None:
        uid = record.uid
        pod = self._store.get(uid) or record.last
        grace = None if pod is None else self.grace(record, pod)
        try:
            answer = await record.link.client.delete(uid, grace, "Killing")
        except PoolFailure as failure:
            self._count(record, failure)
            log.warning(
                "sandbox_delete_failed", uid=uid, pool=record.link.name, error=failure.message
            )
            return self._again(record, FAILURE_BASE, FAILURE_MAX, failure.retry_after)
        record.backoff = None
        if answer.found:
            # Without a Pod the pool takes the spec's own grace.
            record.memory.grace_sent = 0 if grace is None else grace
            if pod is not None:
                record.grace_asked = pod.metadata.deletion_grace_period_seconds
        else:
            # It may have ended while no agent was there to hear how.
            last = answer.last
            if last is not None and self._claims.answered(record, last, "DeleteSandbox"):
                last = None
            record.observe_gone(last)
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
        self._metrics.refused("SandboxLost")
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
        self._metrics.pool_error(record.link.name, failure.kind)

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


def _hash(spec: spec_pb2.SandboxSpec) -> int:
    """Only ever compared within this process; says nothing of the content."""
    return hash(spec.SerializeToString(deterministic=True))


def _makes_room(record: PodRecord, cell: str) -> bool:
    """Something in the cell is just being ended: what does not fit now may fit soon. A kubelet
    admits such a Pod, since what is deleted counts no more."""
    return any(
        sandbox.deleting and sandbox.cell == cell for sandbox in record.link.sandboxes.values()
    )


def _has_started(record: PodRecord, container: str) -> bool:
    """Its newest instance runs or has ended: it does not wait for anything."""
    sandbox = record.sandbox
    return sandbox is not None and any(
        status.name == container and status.state.WhichOneof("state") in ("running", "terminated")
        for statuses in (sandbox.init_containers, sandbox.containers, sandbox.ephemeral_containers)
        for status in statuses
    )


def _debug_containers(document: dict[str, Any]) -> frozenset[str]:
    return frozenset(one["name"] for one in document["spec"].get("ephemeralContainers") or ())


def _known_debug_containers(record: PodRecord) -> frozenset[str]:
    """Those that the pool has taken."""
    seen = record.sandbox.ephemeral_containers if record.sandbox is not None else ()
    return record.debug_taken.union(one.name for one in seen)


def _leave_out(document: dict[str, Any], names: frozenset[str]) -> None:
    """Takes debug containers out of a Pod."""
    if names:
        spec = document["spec"]
        spec["ephemeralContainers"] = [
            one for one in spec.get("ephemeralContainers") or () if one["name"] not in names
        ]
