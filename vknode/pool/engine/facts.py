"""Everything a sandbox machine remembers, and the small verbs that change it."""

from __future__ import annotations

import dataclasses
import enum

from vknode.pool.engine import steps
from vknode.pool.engine.backoff import SECOND, Retry
from vknode.pool.engine.container import ContainerRecord, Stage
from vknode.pool.engine.steps import Action, Persisted
from vknode.pool.runtimes.facts import ContainerExit, ContainerRef, RunningSandbox
from vknode.pool.v1 import spec_pb2, status_pb2

# How long an exit event may lag behind a finished stop before an inventory is asked.
EXIT_LAG = 2 * SECOND


class SandboxStage(enum.Enum):
    ABSENT = "absent"
    CREATING = "creating"  # the runtime was asked (`sandbox_op`)
    READY = "ready"
    DEAD = "dead"  # ended unasked: everything in it ends, then perhaps another
    UNSURE = "unsure"  # a creation's outcome is unknown until the next inventory
    STOPPED = "stopped"  # let go of after the end


@dataclasses.dataclass(frozen=True, slots=True)
class OpTarget:
    """What an op is about; `container` is empty for the sandbox."""

    kind: str
    container: str = ""


class SandboxFacts:
    """The memory of one machine. Only the modules of this package touch it."""

    def __init__(self, spec: spec_pb2.SandboxSpec, persisted: Persisted, scheme: str) -> None:
        self.spec = spec
        self.persisted = persisted
        self.scheme = scheme
        self.now = persisted.created_at
        self.out: list[Action] = []
        self.wake_at: int | None = None
        self.version = 1  # rises with every change that a status shows

        self.inits = [ContainerRecord(c, init=True) for c in spec.init_containers]
        self.mains = [ContainerRecord(c, init=False) for c in spec.containers]
        self.containers = {c.name: c for c in (*self.inits, *self.mains)}

        self.stage = SandboxStage.ABSENT
        self.attempt = 0  # of the sandbox there is, or the next one
        self.sandbox: RunningSandbox | None = None
        self.sandbox_op = 0  # run, stop or remove
        self.sandbox_known_at = 0
        self.sandbox_retry_at: int | None = None
        self.sandbox_retry = Retry()
        self.early_deaths: set[str] = set()
        self.pod_ips: tuple[str, ...] = ()
        # Why there is no sandbox (yet): reason, message.
        self.trouble = (persisted.ended_reason, persisted.ended_message)

        self.update_from: spec_pb2.SandboxSpec | None = None  # what the runtime has
        self.update_op = 0
        self.update_sent: spec_pb2.SandboxSpec | None = None
        self.update_retry_at: int | None = None

        self.ops: dict[int, OpTarget] = {}
        self.last_op = 0
        self.cancelled: set[int] = set()
        self.garbage: list[ContainerRef] = []

        self.hold = False
        self.hold_since = 0
        self.observe_asked = False

        self.initialized = not self.inits
        self.state = persisted.ended or status_pb2.SANDBOX_STATE_CREATING
        # Decided to fail: reason, message, latest moment of the kill.
        self.failing: tuple[str, str, int] | None = None
        self.dead_deadline = 0
        self.gone = False

        self.images_ready_at = 0
        self.sandbox_ready_at = 0
        self.first_started_at = 0
        self.all_started_at = 0

    # -- reading ----------------------------------------------------------------

    @property
    def deleting(self) -> bool:
        return self.persisted.deletion_deadline is not None

    @property
    def terminal(self) -> bool:
        return self.state in (
            status_pb2.SANDBOX_STATE_SUCCEEDED,
            status_pb2.SANDBOX_STATE_FAILED,
        )

    @property
    def grace(self) -> int:
        """The spec's own, in nanoseconds."""
        return self.spec.termination_grace_period_seconds * SECOND

    def current_init(self) -> ContainerRecord | None:
        """The init container whose turn it is; None when all are done."""
        if self.initialized:
            return None
        for record in self.inits:
            if not record.succeeded:
                return record
        return None

    def reached(self, record: ContainerRecord) -> bool:
        """Its turn has come, by the order of init containers."""
        current = self.current_init()
        if record.init:
            return record is current or record.stage is not Stage.IDLE
        return current is None

    # -- changing ---------------------------------------------------------------

    def touch(self) -> None:
        self.version += 1

    def act(self, action: Action) -> None:
        self.out.append(action)

    def new_op(self, kind: str, container: str = "") -> int:
        self.last_op += 1
        self.ops[self.last_op] = OpTarget(kind, container)
        return self.last_op

    def wake_by(self, at: int) -> None:
        if self.wake_at is None or at < self.wake_at:
            self.wake_at = at

    def persist(self, **changes: object) -> None:
        self.persisted = dataclasses.replace(self.persisted, **changes)  # type: ignore[arg-type]  # the names are Persisted's own
        self.act(steps.Persist(self.persisted))

    def event(
        self, reason: str, message: str, *, warning: bool = False, container: str = ""
    ) -> None:
        group = "initContainers" if container and self.containers[container].init else "containers"
        event = status_pb2.SandboxEvent(
            uid=self.spec.uid,
            type="Warning" if warning else "Normal",
            reason=reason,
            message=message,
            field_path=f"spec.{group}{{{container}}}" if container else "",
        )
        event.at.FromNanoseconds(self.now)
        self.act(steps.Emit(event))

    def move_to(self, state: status_pb2.SandboxState.ValueType) -> None:
        """States only ever move down the contract's list."""
        if state > self.state and not self.terminal:
            self.state = state
            self.touch()

    def finish(
        self, state: status_pb2.SandboxState.ValueType, reason: str = "", message: str = ""
    ) -> None:
        """The sandbox has ended for good."""
        if self.terminal:
            return
        self.state = state
        self.trouble = (reason, message)
        self.failing = None
        ran = self.persisted.ran or any(c.ended is not None for c in self.mains)
        self.persist(ended=state, ended_reason=reason, ended_message=message, ran=ran)
        self.touch()

    def finish_by_exit_codes(self) -> None:
        good = all(c.ended is not None and c.ended.exit.exit_code == 0 for c in self.mains)
        self.finish(status_pb2.SANDBOX_STATE_SUCCEEDED if good else status_pb2.SANDBOX_STATE_FAILED)

    def hold_still(self) -> None:
        """Something is unknown: no further step before an inventory."""
        self.hold = True
        self.hold_since = self.now

    def exited(self, record: ContainerRecord, exit_: ContainerExit) -> None:
        started = exit_.started_at or record.started_at
        finished = exit_.finished_at or self.now
        if (started, finished) != (exit_.started_at, exit_.finished_at):
            exit_ = dataclasses.replace(exit_, started_at=started, finished_at=finished)
        record.has_ended(exit_)
        self.touch()

    def drop_image_work(self, record: ContainerRecord) -> None:
        if record.work.op:
            self.ops.pop(record.work.op, None)
            self.act(steps.Cancel(record.work.op))
            record.work.drop()

    def cancel(self, op: int) -> None:
        if op in self.ops and op not in self.cancelled:
            self.cancelled.add(op)
            self.act(steps.Cancel(op))
