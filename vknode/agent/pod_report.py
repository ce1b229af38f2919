"""Makes the status of a Pod at the moment it is written, and takes in what was written.

The status comes from the newest state of three things: the Pod as the API server last showed it,
the sandbox as the pool last told it, and our own word where there is no sandbox (`Override`).
A phase that is final for the API server stays: whoever wrote it (we, the Pod garbage collector,
an eviction) meant it, and nothing may come back to life.

A body that was taken and is wanted again at once means that somebody undoes it: an API server that
does not know a field, or another writer. It is repeated every `REPEAT_AFTER` seconds, no faster.
It is the same body if only the time in it has changed that says "since now".
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import structlog

from vknode.agent.pod_record import OverrideKind, Placement, PodRecord
from vknode.agent.pod_store import TERMINAL_PHASES, PodObject, PodStore
from vknode.agent.status_writer import Write
from vknode.agent.timing import StartTimings
from vknode.kube.errors import ApiError
from vknode.translate.facts import StatusFacts, rfc3339
from vknode.translate.patch import status_patch
from vknode.translate.status import (
    ended_status,
    lost_status,
    pod_status,
    rejected_status,
    waiting_status,
)

log = structlog.get_logger()


REPEAT_AFTER = 10.0


class _Sent(NamedTuple):
    at: int
    now: str
    running: bool
    body: bytes


class PodReport:
    """The `StatusSource` of the writer."""

    def __init__(
        self,
        store: PodStore,
        records: Mapping[str, PodRecord],
        place: Callable[[str], Placement | None],
        timings: StartTimings,
    ) -> None:
        self._store = store
        self._records = records
        self._place = place
        self._timings = timings
        self._later: Callable[[str, float], None] = lambda uid, delay: None

    def on_repeat(self, later: Callable[[str, float], None]) -> None:
        """Who asks again for a status after a delay: the writer's `mark`."""
        self._later = later

    def render(self, uid: str) -> Write | None:
        record, pod = self._records.get(uid), self._store.get(uid)
        if record is None or pod is None:
            return None
        # Nothing is left of it, and it shall go: it gets its last word, whatever is known of it.
        going = pod.deleting and record.memory.gone
        if record.sandbox is None and record.override is None and not going:
            return None
        place = self._place(pod.node)
        if place is None:
            return None
        document = pod.decode()
        old: dict[str, Any] = document.get("status") or {}

        def made(now: str) -> tuple[dict[str, Any], bytes | None]:
            facts = StatusFacts(now, place.host_ips)
            new = self._status(record, document, old, facts)
            if going:
                new = ended_status(document, facts, old=new)
            return new, status_patch(uid, old, new)

        now = rfc3339(int(time.time()))
        new, body = made(now)
        before, after = old.get("phase"), new.get("phase")
        if before in TERMINAL_PHASES and after != before:
            return None
        if body is None:
            return None
        wait = record.written_at + REPEAT_AFTER - time.monotonic()
        # Times are equally long: most that differ are told apart without being made again.
        if wait > 0 and len(body) == record.written_length:
            again = body if now == record.written_now else made(record.written_now)[1]
            if hash(again) == record.written_body:
                self._later(uid, wait)
                return None
        running = after == "Running" and before != "Running"
        return Write(pod.path, body, pod.node, _Sent(time.time_ns(), now, running, body))

    def _status(
        self, record: PodRecord, pod: dict[str, Any], old: dict[str, Any], facts: StatusFacts
    ) -> dict[str, Any]:
        override = record.override
        if override is None:
            return pod_status(pod, record.sandbox, facts, old)
        if override.kind is OverrideKind.REJECTED:
            return rejected_status(pod, override.reason, override.message, facts, old)
        if override.kind is OverrideKind.LOST:
            if override.message:
                return lost_status(pod, facts, override.reason, override.message, old=old)
            return lost_status(pod, facts, old=old)
        return waiting_status(pod, facts, override.reason or "ContainerCreating", "", old=old)

    def written(self, uid: str, write: Write, answer: bytes) -> None:
        pod = PodObject(answer)
        record = self._records.get(uid)
        self._store.refresh(pod)
        sent = write.token
        if record is None or not isinstance(sent, _Sent):
            return
        record.written = pod.metadata.resource_version
        record.written_body = hash(sent.body)
        record.written_length = len(sent.body)
        record.written_now = sent.now
        record.written_at = time.monotonic()
        if sent.running:
            self._timings.running_written(uid, sent.at, time.time_ns())

    def dropped(self, uid: str, write: Write, error: ApiError) -> None:
        log.info("status_dropped", uid=uid, path=write.path, status=error.status)
