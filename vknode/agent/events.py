"""Records core/v1 Events as a kubelet does, and never makes the caller wait.

`event` correlates at once (`event_correlator`) and leaves the Event to be written in a bounded,
coalescing queue: an Event that is waiting already only changes. One task writes them, creating
with POST and raising counts with PATCH. When the queue is full new Events are dropped and
counted: events are for people, they must never slow a Pod.

The source component is `kubelet`, because people's filters and upstream's conformance tests
select `source=kubelet`; `reportingComponent` says who it was in truth.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NoReturn

import msgspec
import structlog

from vknode.agent.event_correlator import EventCorrelator, ObjectRef, Record
from vknode.kube.backoff import Backoff
from vknode.kube.client import MERGE_PATCH, KubeClient
from vknode.kube.errors import ApiError, Unreachable

__all__ = ["NORMAL", "WARNING", "EventRecorder", "ObjectRef", "node_ref"]

log = structlog.get_logger()

NORMAL = "Normal"
WARNING = "Warning"
MAX_PENDING = 1000
MAX_TRIES = 12
# Seconds between the first Event of a series and its writing. The Events of a Pod's start come
# together with its status; people can wait for the one, controllers should not for the other.
WRITE_AFTER = 0.2
NAME_STEM = 200  # of the 253 of an object's name


@dataclass
class EventStats:
    """Counters since start."""

    created: int = 0
    patched: int = 0
    dropped_full: int = 0
    failed: int = 0


class EventRecorder:
    """`event` anywhere in the loop; `run` in a task; `drain` before the end."""

    def __init__(
        self,
        client: KubeClient,
        *,
        component: str = "kubelet",
        reporter: str = "vknode",
        max_pending: int = MAX_PENDING,
        after: float = WRITE_AFTER,
    ) -> None:
        """`after`: seconds an Event may wait; see `WRITE_AFTER`."""
        self.stats = EventStats()
        self._client = client
        self._component = component
        self._reporter = reporter
        self._max_pending = max_pending
        self._after = after
        self._correlator = EventCorrelator(make_name=self._make_name)
        self._pending: OrderedDict[str, Record] = OrderedDict()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._last_ns = 0

    @property
    def dropped(self) -> int:
        """Occurrences left out: over an object's rate, or the queue was full."""
        return self._correlator.dropped + self.stats.dropped_full

    def event(self, ref: ObjectRef, node: str, type: str, reason: str, message: str) -> None:
        """Notes one occurrence. `node` is the Node it happened on (`source.host`)."""
        record = self._correlator.observe(ref, node, type, reason, message, time.time())
        if record is None or record.name in self._pending:
            return
        if len(self._pending) >= self._max_pending:
            self.stats.dropped_full += 1
            if self.stats.dropped_full in (1, 10, 100) or self.stats.dropped_full % 1000 == 0:
                log.warning("events_dropped", total=self.stats.dropped_full, reason="queue full")
            return
        self._pending[record.name] = record
        self._idle.clear()
        self._wake.set()

    async def drain(self, timeout: float = 2.0) -> bool:
        """Waits until all is written or `timeout` seconds are over; whether all was."""
        try:
            async with asyncio.timeout(timeout):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def run(self) -> NoReturn:
        """Writes what is pending. Ends only by cancellation or a bug's exception."""
        while True:
            if not self._pending:
                self._idle.set()
                self._wake.clear()
                await self._wake.wait()
                await asyncio.sleep(self._after)
            _, record = self._pending.popitem(last=False)
            await self._write(record)

    async def _write(self, record: Record) -> None:
        backoff = Backoff(base=0.5, maximum=10.0)
        while True:
            try:
                if record.written:
                    await self._patch(record)
                else:
                    await self._create(record)
            except Unreachable as error:
                # Nothing else would get through either: hold here, the queue is bounded.
                if backoff.failures >= MAX_TRIES:
                    self._give_up(record, error)
                    return
                await asyncio.sleep(backoff.next())
            except ApiError as error:
                if error.is_not_found and record.written:
                    record.written = False  # expired meanwhile (events live for an hour)
                    continue
                self._give_up(record, error)
                return
            else:
                return

    def _give_up(self, record: Record, error: Exception) -> None:
        self.stats.failed += 1
        # A namespace that is going away takes no events; nobody misses them.
        terminating = isinstance(error, ApiError) and "NamespaceTerminating" in error.causes
        if not terminating:
            log.warning(
                "event_not_written",
                object=f"{record.ref.kind}/{record.ref.namespace}/{record.ref.name}",
                reason=record.reason,
                error=str(error),
            )

    async def _create(self, record: Record) -> None:
        namespace = _namespace(record.ref)
        ref = record.ref
        involved: dict[str, Any] = {"kind": ref.kind, "name": ref.name, "uid": ref.uid}
        involved["apiVersion"] = ref.api_version
        if ref.namespace:
            involved["namespace"] = ref.namespace
        if ref.resource_version:
            involved["resourceVersion"] = ref.resource_version
        if ref.field_path:
            involved["fieldPath"] = ref.field_path
        document = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": record.name, "namespace": namespace},
            "involvedObject": involved,
            "type": record.type,
            "reason": record.reason,
            "message": record.message,
            "count": record.count,
            "firstTimestamp": _time(record.first),
            "lastTimestamp": _time(record.last),
            "source": {"component": self._component, "host": record.host},
            "reportingComponent": self._reporter,
            "reportingInstance": record.host,
        }
        # Counts may go on rising while we wait; what is sent now is what was true now.
        try:
            await self._client.create(
                f"/api/v1/namespaces/{namespace}/events", msgspec.json.encode(document)
            )
        except ApiError as error:
            if not error.is_already_exists:
                raise  # else: a replay whose answer was lost
        record.written = True
        self.stats.created += 1

    async def _patch(self, record: Record) -> None:
        body = {
            "count": record.count,
            "lastTimestamp": _time(record.last),
            "message": record.message,
        }
        await self._client.patch(
            f"/api/v1/namespaces/{_namespace(record.ref)}/events/{record.name}",
            msgspec.json.encode(body),
            content_type=MERGE_PATCH,
        )
        self.stats.patched += 1

    def _make_name(self, stem: str) -> str:
        self._last_ns = max(self._last_ns + 1, time.time_ns())
        return f"{stem[:NAME_STEM].rstrip('.-')}.{self._last_ns:x}"


def node_ref(name: str, uid: str) -> ObjectRef:
    """A Node as the object of an event."""
    return ObjectRef("Node", "", name, uid)


def _namespace(ref: ObjectRef) -> str:
    return ref.namespace or "default"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
