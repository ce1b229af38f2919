"""When each phase of a Pod's start happened, for metrics and for the benchmark. Pure.

All times are nanoseconds of the Unix epoch (`time.time_ns`): the pool's phases come from another
process, so a monotonic clock of ours would not compare.

==================  ================================================================
phase               meaning
==================  ================================================================
bound               condition PodScheduled (the API server keeps whole seconds only)
seen                the watch told us of a Pod bound to one of our nodes
sandbox_asked       CreateSandbox was sent
sandbox_accepted    CreateSandbox was answered
pool_asked          the pool's Phases.asked
images_ready        Phases.images_ready
sandbox_ready       Phases.sandbox_ready
first_container     Phases.first_container_started
container_started   Phases.containers_started
status_sent         the PATCH that says Running left
status_written      the API server answered it
==================  ================================================================
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from vknode.pool.v1 import spec_pb2

KEPT = 1000

# Each histogram is the time from the first phase to the second.
SPANS: dict[str, tuple[str, str]] = {
    "ask": ("seen", "sandbox_asked"),
    "accept": ("sandbox_asked", "sandbox_accepted"),
    "images": ("pool_asked", "images_ready"),
    "sandbox": ("pool_asked", "sandbox_ready"),
    "containers": ("sandbox_ready", "container_started"),
    "report": ("container_started", "status_sent"),
    "write": ("status_sent", "status_written"),
    "total": ("seen", "status_written"),
}

_POOL_PHASES = (
    ("pool_asked", "asked"),
    ("images_ready", "images_ready"),
    ("sandbox_ready", "sandbox_ready"),
    ("first_container", "first_container_started"),
    ("container_started", "containers_started"),
)


class StartTimings:
    """The last `kept` Pods that we have seen start. `finished` is called once for each Pod whose
    Running was written, with its phases."""

    def __init__(
        self, finished: Callable[[dict[str, int]], None] | None = None, *, kept: int = KEPT
    ) -> None:
        self._kept = kept
        self._finished = finished
        self._starts: OrderedDict[str, dict[str, int]] = OrderedDict()
        self._names: dict[str, tuple[str, str]] = {}
        self._done: set[str] = set()

    def begin(
        self, uid: str, namespace: str, name: str, seen: int, bound: int | None = None
    ) -> None:
        """A Pod that has not started yet was seen."""
        if uid in self._starts:
            return
        self._starts[uid] = {"seen": seen} if bound is None else {"bound": bound, "seen": seen}
        self._names[uid] = (namespace, name)
        while len(self._starts) > self._kept:
            old, _ = self._starts.popitem(last=False)
            del self._names[old]
            self._done.discard(old)

    def mark(self, uid: str, phase: str, at: int) -> None:
        """A phase happened; only its first time counts."""
        start = self._starts.get(uid)
        if start is not None:
            start.setdefault(phase, at)

    def pool_phases(self, uid: str, phases: spec_pb2.Phases) -> None:
        start = self._starts.get(uid)
        if start is None or uid in self._done:
            return
        for ours, theirs in _POOL_PHASES:
            if ours not in start and phases.HasField(theirs):  # type: ignore[arg-type]  # see the table
                stamp: Timestamp = getattr(phases, theirs)
                start[ours] = stamp.seconds * 1_000_000_000 + stamp.nanos

    def running_written(self, uid: str, sent: int, at: int) -> None:
        start = self._starts.get(uid)
        if start is None or uid in self._done:
            return
        self._done.add(uid)
        start["status_sent"] = sent
        start["status_written"] = at
        if self._finished is not None:
            self._finished(start)

    def as_json(self) -> list[dict[str, Any]]:
        """Oldest first; for /debug/timings."""
        return [
            {"uid": uid, "namespace": self._names[uid][0], "name": self._names[uid][1], **phases}
            for uid, phases in self._starts.items()
        ]
