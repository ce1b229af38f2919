"""The three probes of one container instance: when to ask, and what an answer means. Pure.

Theory of operation. Each probe of a running instance is one `ProbeState`. `base` is the
moment its questions begin: the start of the instance plus `initial_delay_seconds`, but for
the others not before the startup probe has succeeded. From then on:

| questions | when                                           | a failure             |
|-----------|------------------------------------------------|-----------------------|
| early     | `base` + 0, 0.1, 0.3, 0.7, 1.5 s (exec: + 0)   | counts as not asked   |
| regular   | `base` + 1, 2, 3 … periods                     | counts, and is told   |

A kubelet asks once a period from a moment that has nothing to do with the start, so its
first answer comes anywhere within the first period, and most Pods are ready seconds after
they could be. Kubernetes' documentation allows further readiness questions while a container
is not ready; we ask them where they are cheap, and never let one of them fail a container:
a regular failure comes no sooner than the latest a kubelet's could. Early questions end with
the first success and with the first regular question. Liveness has none.

`result` is what the thresholds have settled: None (nothing yet), True or False. A probe that
has failed its container (liveness, startup) or passed it (startup) is at rest.

Sources: pkg/kubelet/prober/worker.go, prober.go, prober_manager.go.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from vknode.pool.engine.backoff import SECOND
from vknode.pool.runtimes.facts import ProbeOutcome, ProbeResult
from vknode.pool.v1 import spec_pb2

EARLY_NETWORK = tuple(round(s * SECOND) for s in (0, 0.1, 0.3, 0.7, 1.5))
EARLY_EXEC = (0,)


class Kind(enum.Enum):
    """Values are a kubelet's words in events."""

    STARTUP = "Startup"
    READINESS = "Readiness"
    LIVENESS = "Liveness"


class Verdict(enum.Enum):
    """What an answer changes."""

    NOTHING = "nothing"
    CHANGED = "changed"  # started or ready has turned
    KILL = "kill"  # the instance must be restarted


@dataclass(slots=True)
class ProbeState:
    """One probe of one instance."""

    kind: Kind
    spec: spec_pb2.Probe
    result: bool | None = None
    op: int = 0  # asked and not answered
    base: int | None = None  # None: its time has not come
    asked_at: int = 0
    early_asked: int = 0
    asked_early: bool = False  # of the question under way
    regular_at: int = 0
    last: bool | None = None
    run: int = 0
    at_rest: bool = False

    def begin(self, base: int) -> None:
        self.base = base
        self.regular_at = base + self._period

    @property
    def _period(self) -> int:
        return max(1, self.spec.period_seconds) * SECOND

    def _early(self) -> int | None:
        """When the next early question is due; None where there is none any more."""
        if self.kind is Kind.LIVENESS or self.last is not None or self.base is None:
            return None
        offsets = EARLY_EXEC if self.spec.handler.HasField("exec") else EARLY_NETWORK
        if self.early_asked >= len(offsets):
            return None
        at = self.base + offsets[self.early_asked]
        return at if at < self.regular_at else None

    def due_at(self) -> int | None:
        """When the next question is due; None: not before something else has happened."""
        if self.base is None or self.at_rest or self.op:
            return None
        early = self._early()
        return self.regular_at if early is None else early

    def ask(self, op: int, now: int) -> None:
        """A question leaves."""
        self.op, self.asked_at = op, now
        self.asked_early = self._early() is not None and now < self.regular_at
        if self.asked_early:
            self.early_asked += 1
        else:
            # A question that took longer than a period delays the next one, not more.
            self.regular_at = max(self.regular_at + self._period, now + self._period // 2)

    def answered(self, outcome: ProbeOutcome) -> Verdict:
        self.op = 0
        if outcome.result is ProbeResult.ERROR:
            return Verdict.NOTHING
        success = outcome.result is not ProbeResult.FAILURE
        if self.asked_early and not success:
            return Verdict.NOTHING
        if self.asked_early:
            self.regular_at = self.asked_at + self._period
        self.run = self.run + 1 if self.last is success else 1
        self.last = success
        threshold = self.spec.success_threshold if success else self.spec.failure_threshold
        if self.run < max(1, threshold):
            return Verdict.NOTHING
        before, self.result = self.result, success
        if self.kind is Kind.READINESS:
            return Verdict.CHANGED if before is not success else Verdict.NOTHING
        if self.kind is Kind.LIVENESS:
            self.at_rest = not success
            return Verdict.NOTHING if success else Verdict.KILL
        self.at_rest = True
        return Verdict.CHANGED if success else Verdict.KILL

    def tells(self, outcome: ProbeOutcome) -> bool:
        """Whether this answer, just taken in, is worth an event."""
        if outcome.result is ProbeResult.FAILURE:
            return not self.asked_early
        return outcome.result is not ProbeResult.SUCCESS


@dataclass(slots=True)
class Probes:
    """All probes of one instance. `begin` when it counts as running."""

    states: tuple[ProbeState, ...]
    began: bool = False
    initial: dict[Kind, int] = field(default_factory=dict)

    @classmethod
    def of(cls, container: spec_pb2.Container) -> Probes:
        found = []
        if container.HasField("startup_probe"):
            found.append(ProbeState(Kind.STARTUP, container.startup_probe))
        if container.HasField("readiness_probe"):
            found.append(ProbeState(Kind.READINESS, container.readiness_probe))
        if container.HasField("liveness_probe"):
            found.append(ProbeState(Kind.LIVENESS, container.liveness_probe))
        return cls(tuple(found))

    def get(self, kind: Kind) -> ProbeState | None:
        return next((s for s in self.states if s.kind is kind), None)

    def begin(self, started_at: int, now: int) -> None:
        """The instance runs since `started_at`."""
        self.began = True
        startup = self.get(Kind.STARTUP)
        for state in self.states:
            base = started_at + state.spec.initial_delay_seconds * SECOND
            self.initial[state.kind] = base
            if startup is None or state is startup:
                state.begin(max(base, now))

    def resume(self, *, started: bool, ready: bool, started_at: int, now: int, spread: int) -> None:
        """For an instance of an earlier process, whose `started` and `ready` hold until
        the probes say otherwise. Questions begin `spread` ns after `now` at the earliest,
        so that those of a whole pool do not come all at once."""
        self.begin(started_at, now + spread)
        startup = self.get(Kind.STARTUP)
        if startup is not None and started:
            startup.result, startup.at_rest = True, True
            self._after_startup(now + spread)
        readiness = self.get(Kind.READINESS)
        if readiness is not None and ready:
            readiness.result = readiness.last = True

    def _after_startup(self, now: int) -> None:
        for state in self.states:
            if state.base is None:
                state.begin(max(self.initial[state.kind], now))

    def find(self, op: int) -> ProbeState | None:
        return next((s for s in self.states if s.op == op), None)

    def answered(self, state: ProbeState, outcome: ProbeOutcome, now: int) -> Verdict:
        verdict = state.answered(outcome)
        if state.kind is Kind.STARTUP and verdict is Verdict.CHANGED:
            self._after_startup(now)
        return verdict

    @property
    def started(self) -> bool:
        """The startup probe has succeeded, or there is none."""
        startup = self.get(Kind.STARTUP)
        return startup is None or startup.result is True

    @property
    def ready(self) -> bool:
        readiness = self.get(Kind.READINESS)
        return self.started and (readiness is None or readiness.result is True)
