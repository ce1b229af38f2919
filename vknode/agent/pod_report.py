"""Makes the status of a Pod at the moment it is written, and takes in what was written.

The status comes from the newest state of three things: the Pod as the API server last showed it,
the sandbox as the pool last told it, and our own word where there is no sandbox (`Override`).
A phase that is final for the API server stays: whoever wrote it (we, the Pod garbage collector,
an eviction) meant it, and nothing may come back to life.
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
from vknode.translate.status import lost_status, pod_status, rejected_status, waiting_status

log = structlog.get_logger()


class _Sent(NamedTuple):
    at: int
    running: bool


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

    def render(self, uid: str) -> Write | None:
        record, pod = self._records.get(uid), self._store.get(uid)
        if record is None or pod is None:
            return None
        if record.sandbox is None and record.override is None:
            return None
        place = self._place(pod.node)
        if place is None:
            return None
        document = pod.decode()
        old: dict[str, Any] = document.get("status") or {}
        new = self._status(record, document, old, place)
        before, after = old.get("phase"), new.get("phase")
        if before in TERMINAL_PHASES and after != before:
            return None
        body = status_patch(uid, old, new)
        if body is None:
            return None
        running = after == "Running" and before != "Running"
        return Write(pod.path, body, pod.node, _Sent(time.time_ns(), running))

    def _status(
        self, record: PodRecord, pod: dict[str, Any], old: dict[str, Any], place: Placement
    ) -> dict[str, Any]:
        facts = StatusFacts(rfc3339(int(time.time())), place.host_ips)
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
        if record is not None:
            record.written = pod.metadata.resource_version
        self._store.refresh(pod)
        if isinstance(write.token, _Sent) and write.token.running:
            self._timings.running_written(uid, write.token.at, time.time_ns())

    def dropped(self, uid: str, write: Write, error: ApiError) -> None:
        log.info("status_dropped", uid=uid, path=write.path, status=error.status)
