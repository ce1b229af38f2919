"""One sandbox's life as a pure state machine: events in, actions out.

Theory of operation
-------------------
`SandboxMachine` owns what one pool knows of one Pod. `handle(event, now)` does three
things: it takes the event into the facts (`absorb`, `inventory`), decides from the
facts alone what is to be done next (`plan`), and returns that as actions. The host
carries the actions out on a Runtime and brings each answer back as an event with the
action's `op`. Time comes in with every event; `wake_at` says when the machine wants
a `Tick`. There is no asyncio, no clock and no I/O in here.

States of the sandbox as the contract shows them; they only move down:

| state     | entered when                                | what goes on                      |
|-----------|---------------------------------------------|-----------------------------------|
| CREATING  | accepted                                    | sandbox and first images, at once |
| STARTING  | the sandbox has its network                 | init containers, first start      |
| RUNNING   | a main container has come up                | probes, restarts with back-off    |
| SUCCEEDED | all main containers ended with 0, no more   | network goes; logs stay           |
| FAILED    | an end with failure, deadline, no sandbox   | network goes; logs stay           |

Between deciding how it ends and SUCCEEDED or FAILED lies the `ending`: what still runs
(sidecars, mostly) is stopped first. `deleting` lies across all states: from its first
moment nothing is started any more; what runs is stopped by the deadline (a later, sooner
deadline replaces it), then everything is removed and the machine is `gone`.

The runtime's sandbox (`SandboxStage`):

| stage    | next                                                                        |
|----------|-----------------------------------------------------------------------------|
| ABSENT   | RunSandbox → CREATING (after a failure with back-off)                       |
| CREATING | READY, ABSENT (failed, cancelled) or UNSURE (the runtime went away)         |
| READY    | DEAD when it ends unasked; STOPPED after the end                            |
| DEAD     | all in it ends; then ABSENT with the next attempt, or the end, as a kubelet |
| UNSURE   | an inventory tells                                                          |
| STOPPED  | RemoveSandbox when deleted                                                  |

The containers' stages are in `container.py`, the way of a stop in `stopping.py`, probes in
`probes.py`, the restart of all containers in `restarting.py`, resizes in `resizing.py`.
Images of the containers whose turn it is are looked up while the sandbox is created;
those of the next stage while an init container runs. One container is started at a time,
the first that can; the next one waits for its post-start hook as well. An init container
that was `passed` (done, or a sidecar that has started up) is never waited for again.

When the runtime is away (`RuntimeLost`, or an action failed with `away`) the machine
holds still: no failure is counted, no back-off grows. `Observed` with a newer
inventory ends that. `adopt` is the same thing from an empty memory.
"""

from __future__ import annotations

from vknode.pool.engine import report, resizing
from vknode.pool.engine.absorb import absorb
from vknode.pool.engine.container import Stage, unknown_exit
from vknode.pool.engine.facts import SandboxFacts, SandboxStage
from vknode.pool.engine.plan import plan
from vknode.pool.engine.steps import Action, Event, Observed, Persisted
from vknode.pool.runtimes.facts import ContainerRef, ObservedSandbox, RunningSandbox
from vknode.pool.v1 import spec_pb2, stats_pb2, status_pb2


class SandboxMachine:
    """The life of one sandbox. Give a new one a `Tick` to begin."""

    def __init__(self, spec: spec_pb2.SandboxSpec, persisted: Persisted, *, scheme: str) -> None:
        """`scheme` is RuntimeInfo.scheme, the prefix of container IDs."""
        self._facts = SandboxFacts(spec, persisted, scheme)
        self._status: status_pb2.Sandbox | None = None
        self._status_version = 0

    @classmethod
    def adopt(
        cls,
        spec: spec_pb2.SandboxSpec,
        persisted: Persisted,
        observed: ObservedSandbox | None,
        now: int,
        *,
        scheme: str,
    ) -> SandboxMachine:
        """A machine for a sandbox of an earlier process, from what the runtime has.

        Nothing that runs is restarted. Give it a `Tick` to go on.
        """
        machine = cls(spec, persisted, scheme=scheme)
        facts = machine._facts
        facts.now = now
        facts.stage = SandboxStage.UNSURE
        for record in facts.containers.values():
            record.stage = Stage.UNSURE
        absorb(facts, Observed(observed, now))
        mains = facts.mains
        facts.passed_at_adoption()
        if persisted.ran and not any(
            c.ended is not None or c.live for c in facts.containers.values()
        ):
            # It has run, and the runtime has lost how that ended.
            for record in mains:
                if record.stage is Stage.IDLE and record.ended is None:
                    facts.exited(record, unknown_exit(0, now))
        if any(volume.WhichOneof("source") == "files" for volume in spec.volumes):
            # An update may have been cut off after its spec was kept and before the
            # content was written; the runtime leaves alone what is as it should be.
            facts.update_from = spec
        return machine

    @property
    def uid(self) -> str:
        return self._facts.spec.uid

    @property
    def spec(self) -> spec_pb2.SandboxSpec:
        """As it holds now: with the resources that are set aside."""
        return self._facts.spec

    @property
    def wanted(self) -> spec_pb2.SandboxSpec:
        """As it was asked for; differs in resources while a resize is pending."""
        return self._facts.wanted

    @property
    def resize_pending(self) -> bool:
        return bool(self._facts.pending[0])

    @property
    def persisted(self) -> Persisted:
        return self._facts.persisted

    def persisted_after(self, spec: spec_pb2.SandboxSpec, reason: str) -> Persisted:
        """What must be kept with a newer spec, before its `Update` (with this reason)."""
        return resizing.outcome(self._facts, spec, reason)

    @property
    def version(self) -> int:
        """Rises whenever `status()` has changed."""
        return self._facts.version

    @property
    def wake_at(self) -> int | None:
        """When a `Tick` is wanted, in ns; None: never."""
        return self._facts.wake_at

    @property
    def deleting(self) -> bool:
        return self._facts.deleting

    @property
    def terminal(self) -> bool:
        """SUCCEEDED or FAILED."""
        return self._facts.terminal

    @property
    def gone(self) -> bool:
        """Ended and removed; nothing happens any more."""
        return self._facts.gone

    @property
    def sandbox(self) -> RunningSandbox | None:
        """The runtime's sandbox while it is ready."""
        facts = self._facts
        return facts.sandbox if facts.stage is SandboxStage.READY else None

    def handle(self, event: Event, now: int) -> list[Action]:
        """Take in one event at the time `now` (ns, never falling; a clock that was
        set back counts as standing still). Returns what is to be done, in order."""
        facts = self._facts
        if facts.gone:
            return []
        facts.now = max(facts.now, now)
        absorb(facts, event)
        plan(facts)
        actions, facts.out = facts.out, []
        return actions

    def status(self) -> status_pb2.Sandbox:
        """What the contract shows. The same object until something changes: it must
        not be written to."""
        if self._status is None or self._status_version != self._facts.version:
            self._status = report.build(self._facts)
            self._status_version = self._facts.version
        return self._status

    def probe_stats(self) -> list[stats_pb2.ProbeStats]:
        """How the probes have gone that were asked."""
        return [
            counts.stats(record.name, kind)
            for record in self._facts.containers.values()
            for kind, counts in record.probe_counts.items()
        ]

    def instance(self, container: str, *, previous: bool = False) -> ContainerRef | None:
        """The newest instance of a container, or the one before it, while the runtime
        has it. Raises KeyError for a container that the spec does not have."""
        record = self._facts.containers[container]
        chain = [record.ref] if record.stage is Stage.RUNNING else []
        chain += [e.ref for e in (record.ended, record.ended_before) if e is not None]
        index = 1 if previous else 0
        return chain[index] if index < len(chain) else None

    def running(self, container: str) -> bool:
        """Raises KeyError for a container that the spec does not have."""
        return self._facts.containers[container].stage is Stage.RUNNING
