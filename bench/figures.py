"""What a cold-start run has measured, and its summary."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

BURSTS = (4, 16, 40)
RAW_WIDTHS = (2, 4, 6)
RAW_CALLS = ("run_sandbox", "create_container", "start_container")
PHASES = (
    "bound",
    "seen",
    "sandbox_asked",
    "sandbox_ready",
    "container_started",
    "status_written",
    "running_seen",
)


@dataclass
class Figures:
    """Everything measured: milliseconds, and Pods a second."""

    serial: list[float] = field(default_factory=list)
    raw_serial: list[float] = field(default_factory=list)
    raw_calls: dict[str, list[float]] = field(default_factory=lambda: {c: [] for c in RAW_CALLS})
    bursts: dict[int, list[float]] = field(default_factory=lambda: {n: [] for n in BURSTS})
    burst_times: dict[int, list[float]] = field(default_factory=lambda: {n: [] for n in BURSTS})
    raw_bursts: dict[int, list[float]] = field(default_factory=lambda: {w: [] for w in RAW_WIDTHS})
    phases: dict[str, list[float]] = field(default_factory=lambda: {p: [] for p in PHASES})

    @property
    def raw_best_width(self) -> int:
        return max(self.raw_bursts, key=lambda w: statistics.median(self.raw_bursts[w]))

    def summary(self, rounds: int) -> dict[str, Any]:
        serial, raw = statistics.median(self.serial), statistics.median(self.raw_serial)
        best = statistics.median(self.raw_bursts[self.raw_best_width])
        burst = statistics.median(self.bursts[max(BURSTS)])
        return {
            "serial_p50_ms": round(serial, 1),
            "serial_spread_ms": spread(self.serial),
            "raw_serial_p50_ms": round(raw, 1),
            "raw_serial_spread_ms": spread(self.raw_serial),
            "serial_ratio": round(serial / raw, 3),
            "burst_pods_per_s": round(burst, 2),
            "burst_spread": spread(self.bursts[max(BURSTS)], 2),
            "raw_best_pods_per_s": round(best, 2),
            "raw_best_width": self.raw_best_width,
            "raw_best_spread": spread(self.raw_bursts[self.raw_best_width], 2),
            "burst_ratio": round(burst / best, 3),
            "bursts_pods_per_s": {
                str(n): round(statistics.median(v), 2) for n, v in self.bursts.items()
            },
            "burst_p50_ms": {
                str(n): round(statistics.median(v)) for n, v in self.burst_times.items()
            },
            "phases_p50_ms": {
                name: round(statistics.median(v), 1) for name, v in self.phases.items() if v
            },
            "raw_calls_p50_ms": {
                name: round(statistics.median(v), 1) for name, v in self.raw_calls.items()
            },
            "rounds": rounds,
        }


def spread(values: Iterable[float], digits: int = 1) -> list[float]:
    """The quartiles around the median."""
    low, _, high = statistics.quantiles(values, n=4)
    return [round(low, digits), round(high, digits)]
