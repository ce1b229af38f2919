"""How the probes of one container have gone, over all its instances. Pure.

As a kubelet counts (`prober_probe_total` and `prober_probe_duration_seconds`, pkg/kubelet/prober):
its worker outlives the instances, and it takes no time of failures. Of the early questions, which
a kubelet does not ask, only successes count: a failure of one of them means nothing (`probes`).
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

from vknode.pool.engine.probes import Kind
from vknode.pool.runtimes.facts import ProbeOutcome, ProbeResult
from vknode.pool.v1 import stats_pb2

# Upper ends, in ns, of the contract's ProbeStats.durations but the last.
_MILLISECOND = 1_000_000
BOUNDS = tuple(ms * _MILLISECOND for ms in (5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000))

_TYPES = {
    Kind.STARTUP: stats_pb2.PROBE_TYPE_STARTUP,
    Kind.READINESS: stats_pb2.PROBE_TYPE_READINESS,
    Kind.LIVENESS: stats_pb2.PROBE_TYPE_LIVENESS,
}


@dataclass(slots=True)
class ProbeCounts:
    """One probe's."""

    successful: int = 0
    failed: int = 0
    unknown: int = 0
    durations: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    nanoseconds: int = 0

    def count(self, outcome: ProbeOutcome, took: int, *, early: bool) -> None:
        """Takes in an answer that took so many ns."""
        if outcome.result is ProbeResult.FAILURE:
            self.failed += not early
            return
        if outcome.result is ProbeResult.ERROR:
            if early:
                return
            self.unknown += 1
        else:
            self.successful += 1
        self.durations[bisect_left(BOUNDS, took)] += 1
        self.nanoseconds += took

    def stats(self, container: str, kind: Kind) -> stats_pb2.ProbeStats:
        return stats_pb2.ProbeStats(
            container=container,
            type=_TYPES[kind],
            successful=self.successful,
            failed=self.failed,
            unknown=self.unknown,
            durations=self.durations,
            duration_nanoseconds=self.nanoseconds,
        )
