"""Everything a sandbox machine remembers, and the small verbs that change it."""

from __future__ import annotations

import dataclasses
import enum

from vknode.pool.engine import resources, steps
from vknode.pool.engine.backoff import SECOND, Retry
from vknode.pool.engine.container import ContainerRecord, HookRun, Kill, Role, Stage
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


@dataclasses.dataclass(frozen=True, slots=True)
class Ending:
    """It is decided how the sandbox ends; what still runs is stopped by `deadline`."""

    state: status_pb2.SandboxState.ValueType
    reason: str
    message: str
    deadline: int


def failing(persisted: Persisted) -> Ending | None:
    """The end that was decided before, which nothing that happens meanwhile changes."""
    if persisted.failing_deadline is None or persisted.ended:
        return None
    return Ending(
        status_pb2.SANDBOX_STATE_FAILED,
        persisted.failing_reason,
        persisted.failing_message,
        persisted.failing_deadline,
    )


@dataclasses.dataclass(frozen=True, slots=True)
class ResizeError:
    """Why the last attempt to put resources in force failed."""

    message: str
    generation: int


class SandboxFacts:
    """The memory of one machine. Only the modules of this package touch it."""

    def __init__(self, spec: spec_pb2.SandboxSpec, persisted: Persisted, scheme: str) -> None:
        # What was asked for, and what holds: the same but for resources that cannot be
        # set aside (`pending`: reason, message).
        self.wanted = spec
        self.spec = spec
        if persisted.allocated:
            known = spec_pb2.SandboxSpec.FromString(bytes.fromhex(persisted.allocated))
            self.spec = resources.with_resources(spec, known)
        # Why the first one did not fit is not kept: whoever adopts it looks again.
        self.pending = ("Deferred", "") if persisted.allocated else ("", "")
        self.pending_generation = spec.generation
        self.resizing = persisted.resizing
        self.resizing_generation = spec.generation
        self.resize_error: ResizeError | None = None
        # Of the whole sandbox; None: not known.
        self.in_force: spec_pb2.Resources | None = None
        self.resize_op = 0
        self.resize_sent: spec_pb2.Resources | None = None
        self.resize_retry_at: int | None = None
        self.persisted = persisted
        self.scheme = scheme
        self.now = persisted.created_at
        self.out: list[Action] = []
        self.wake_at: int | None = None
        self.version = 1  # rises with every change that a status shows

        self.inits = [ContainerRecord(c, init_role(c)) for c in self.spec.init_containers]
        self.mains = [ContainerRecord(c, Role.MAIN) for c in self.spec.containers]
        self.ephemerals = [
            ContainerRecord(c, Role.EPHEMERAL) for c in self.spec.ephemeral_containers
        ]
        self.containers = {c.name: c for c in (*self.inits, *self.mains, *self.ephemerals)}

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
        # Instances to be removed, those being removed by op, and when what failed is tried
        # again.
        self.garbage: list[ContainerRef] = []
        self.collecting: dict[int, ContainerRef] = {}
        self.collect_at = 0

        self.hold = False
        self.hold_since = 0
        self.observe_asked = False

        self.initialized = not self.inits
        self.state = persisted.ended or status_pb2.SANDBOX_STATE_CREATING
        self.ending: Ending | None = failing(persisted)
        self.restarting_all = persisted.restarting_all
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
        return next((record for record in self.inits if not record.passed), None)

    def sidecars(self) -> list[ContainerRecord]:
        return [record for record in self.inits if record.role is Role.SIDECAR]

    def reached(self, record: ContainerRecord) -> bool:
        """Its turn has come, by the order of init containers."""
        if record.role is Role.EPHEMERAL or record.passed:
            return True
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
        event = status_pb2.SandboxEvent(
            uid=self.spec.uid,
            type="Warning" if warning else "Normal",
            reason=reason,
            message=message,
            field_path=self._field_path(container) if container else "",
        )
        event.at.FromNanoseconds(self.now)
        self.act(steps.Emit(event))

    def _field_path(self, container: str) -> str:
        role = self.containers[container].role
        group = {Role.MAIN: "containers", Role.EPHEMERAL: "ephemeralContainers"}.get(
            role, "initContainers"
        )
        return f"spec.{group}{{{container}}}"

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
        self.ending = None
        ran = self.persisted.ran or any(c.ended is not None for c in self.mains)
        self.persist(ended=state, ended_reason=reason, ended_message=message, ran=ran)
        self.touch()

    def state_by_exit_codes(self) -> status_pb2.SandboxState.ValueType:
        """Of the main containers, all of which have ended."""
        good = all(c.ended is not None and c.ended.exit.exit_code == 0 for c in self.mains)
        return status_pb2.SANDBOX_STATE_SUCCEEDED if good else status_pb2.SANDBOX_STATE_FAILED

    def begin_anew(self) -> None:
        """No init container has done its work yet."""
        self.initialized = not self.inits
        for record in self.inits:
            record.passed = False

    def passed_at_adoption(self) -> None:
        """Which init containers are done, from what has run: each runs only after all
        before it were done, and what is missing of those was collected. What ran in an
        earlier sandbox tells nothing of the one there is."""
        ready = self.stage is SandboxStage.READY
        ran = [
            record.ran_in_this_sandbox
            if ready
            else record.ended is not None or record.stage is Stage.RUNNING
            for record in (*self.inits, *self.mains)
        ]
        count = len(self.inits)
        if any(ran[count:]):
            done = count
        else:
            done = max((index for index, yes in enumerate(ran[:count]) if yes), default=0)
        for record in self.inits[:done]:
            record.passed = True
        self.initialized = done == count
        for record in (*self.inits, *self.mains):
            if record.name not in self.persisted.killing:
                continue
            record.forced = record.stage is Stage.EXITED
            if record.stage is Stage.RUNNING:
                text = f"Stopping container {record.name}"
                self.kill(record, Kill(text, self.grace, restart=True))

    def kill(self, record: ContainerRecord, kill: Kill) -> None:
        """The running instance is to end; `plan` sees to it."""
        record.kill = kill
        record.kill_deadline = self.now + kill.grace
        if kill.restart and record.name not in self.persisted.killing:
            self.persist(killing=(*self.persisted.killing, record.name))

    def killed(self, record: ContainerRecord) -> None:
        """It runs again, or will: its kill need not be kept any more."""
        if record.name in self.persisted.killing:
            left = tuple(name for name in self.persisted.killing if name != record.name)
            self.persist(killing=left)

    def hold_still(self) -> None:
        """Something is unknown: no further step before an inventory."""
        self.hold = True
        self.hold_since = self.now

    def exited(self, record: ContainerRecord, exit_: ContainerExit) -> None:
        started = exit_.started_at or record.started_at
        finished = exit_.finished_at or self.now
        if (started, finished) != (exit_.started_at, exit_.finished_at):
            exit_ = dataclasses.replace(exit_, started_at=started, finished_at=finished)
        self.drop_questions(record)
        before = record.ended_before
        if before is not None and before.ref is not None:
            self.garbage.append(before.ref)  # nobody can ask for it any more
        record.has_ended(exit_)
        if record.post_start_error:
            record.wait("PostStartHookError", record.post_start_error)
            record.post_start_error = ""
        self.touch()

    def drop_questions(self, record: ContainerRecord) -> None:
        """Nobody wants the answers of probes and hooks of this instance any more."""
        ops = [state.op for state in record.probes.states]
        ops += [record.post_start.op, record.pre_stop.op]
        for op in filter(None, ops):
            self.ops.pop(op, None)
            self.act(steps.Cancel(op))

    def drop_hook(self, hook: HookRun) -> None:
        if hook.op:
            self.ops.pop(hook.op, None)
            self.act(steps.Cancel(hook.op))
        hook.done()

    def drop_image_work(self, record: ContainerRecord) -> None:
        if record.work.op:
            self.ops.pop(record.work.op, None)
            self.act(steps.Cancel(record.work.op))
            record.work.drop()

    def cancel(self, op: int) -> None:
        if op in self.ops and op not in self.cancelled:
            self.cancelled.add(op)
            self.act(steps.Cancel(op))


def init_role(container: spec_pb2.Container) -> Role:
    """Of an init container."""
    always = container.restart_policy == spec_pb2.RESTART_POLICY_ALWAYS
    return Role.SIDECAR if always else Role.INIT
