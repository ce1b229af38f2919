"""What a machine knows of one container.

| stage    | meaning                                                | `attempt` is          |
|----------|--------------------------------------------------------|-----------------------|
| IDLE     | no instance; one is to be started when all is ready    | the next instance's   |
| STARTING | the runtime was asked (`op`)                           | the asked one's       |
| RUNNING  | runs (perhaps being stopped: `stop_op`)                | the running one's     |
| EXITED   | ended; what comes next is undecided or nothing         | the ended one's       |
| UNSURE   | a start's outcome is unknown until the next inventory  | the asked one's       |
| CLEARING | an instance that was created but never ran is removed  | the removed one's     |
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from vknode.pool.engine import policy, wording
from vknode.pool.engine.backoff import CrashLoop, ImageBackoff, Retry
from vknode.pool.engine.probe_counts import ProbeCounts
from vknode.pool.engine.probes import Kind, Probes
from vknode.pool.runtimes.facts import ContainerExit, ContainerExited, ContainerRef, Image
from vknode.pool.v1 import spec_pb2

KILLED_EXIT_CODE = 137


class Role(enum.Enum):
    """What a container is for; decides its turn and whether it is restarted."""

    INIT = "init"  # runs to its end before the next one
    SIDECAR = "sidecar"  # an init container that stays
    MAIN = "main"
    EPHEMERAL = "ephemeral"  # for debugging; never restarted, nobody waits for it


class Stage(enum.Enum):
    IDLE = "idle"
    STARTING = "starting"
    RUNNING = "running"
    EXITED = "exited"
    UNSURE = "unsure"
    CLEARING = "clearing"


class ImageStage(enum.Enum):
    NONE = "none"
    LOOKING = "looking"  # quick look, no network
    PULLING = "pulling"
    READY = "ready"
    FAILED = "failed"  # until retry_at, where there is one


@dataclass(slots=True)
class ImageWork:
    """Getting the image for the next instance."""

    stage: ImageStage = ImageStage.NONE
    op: int = 0
    image: Image | None = None
    asked_at: int = 0
    retry_at: int | None = None
    # ErrImagePull becomes ImagePullBackOff at this time.
    backs_off_at: int | None = None
    reason: str = ""
    message: str = ""
    backoff: ImageBackoff = field(default_factory=ImageBackoff)

    def drop(self) -> None:
        """Nothing is asked any more; what was last said stays said."""
        self.stage = ImageStage.NONE
        self.op = 0
        self.image = None
        self.retry_at = self.backs_off_at = None

    def again(self) -> None:
        """Forget the result, keep the back-off: the next instance looks anew."""
        self.drop()
        self.reason = self.message = ""


@dataclass(frozen=True, slots=True)
class Ended:
    """An instance that has ended."""

    attempt: int
    exit: ContainerExit
    ref: ContainerRef | None  # None: it failed to start and left nothing


class HookStage(enum.Enum):
    NONE = "none"  # there is none, or it is done
    WANTED = "wanted"
    RUNNING = "running"


@dataclass(slots=True)
class HookRun:
    """A post-start or pre-stop hook of the running instance."""

    stage: HookStage = HookStage.NONE
    op: int = 0  # 0 while it only sleeps
    until: int = 0  # the end of a sleep

    def done(self) -> None:
        self.stage, self.op, self.until = HookStage.NONE, 0, 0


@dataclass(frozen=True, slots=True)
class Kill:
    """The running instance is to end although the sandbox goes on."""

    message: str  # of the event
    grace: int  # nanoseconds
    restart: bool  # run it again whatever its policy says of the exit code
    # Counts for the back-off like a crash of the instance before, as a kubelet does it.
    lenient_backoff: bool = False
    hooks: bool = True


@dataclass(slots=True)
class ContainerRecord:
    spec: spec_pb2.Container
    role: Role
    stage: Stage = Stage.IDLE
    attempt: int = 0
    op: int = 0
    # The machine learned of the running instance at this time.
    known_at: int = 0
    ref: ContainerRef | None = None
    started_at: int = 0
    user: tuple[int, int, tuple[int, ...]] | None = None
    image: Image | None = None  # of the newest instance
    # Of the start that is under way; the spec may change meanwhile.
    starting: Image | None = None
    starting_reference: str = ""
    ended: Ended | None = None
    ended_before: Ended | None = None
    # Came before the answer to the start.
    early_exit: ContainerExited | None = None

    probes: Probes = field(default_factory=lambda: Probes(()))
    # Over all instances; only of probes that have answered.
    probe_counts: dict[Kind, ProbeCounts] = field(default_factory=dict)
    post_start: HookRun = field(default_factory=HookRun)
    # What its post-start hook said when it failed; shown once the instance has ended.
    post_start_error: str = ""
    pre_stop: HookRun = field(default_factory=HookRun)

    # Stopping the running instance.
    kill: Kill | None = None
    kill_deadline: int = 0
    stop_op: int = 0
    stop_deadline: int | None = None
    stop_at_once: bool = False  # the grace was nothing: no hook, no least grace
    stop_retry_at: int | None = None
    # The runtime said that it has ended, but how is not known yet.
    stopped_at: int | None = None

    # Resources of the running instance; None: not known. `in_force_pod` are those of the
    # whole sandbox by which they were reckoned.
    in_force: spec_pb2.Resources | None = None
    in_force_pod: spec_pb2.Resources = field(default_factory=spec_pb2.Resources)
    resize_op: int = 0
    resize_sent: spec_pb2.Resources | None = None
    resize_sent_pod: spec_pb2.Resources = field(default_factory=spec_pb2.Resources)
    resize_retry_at: int | None = None

    # Why it does not run, where there is more to say than "not yet".
    waiting_reason: str = ""
    waiting_message: str = ""
    # No start before; None with `held` set: none until the spec changes.
    retry_at: int | None = None
    held: bool = False
    # Restart whatever the policy says: its definition changed, a probe failed.
    forced: bool = False
    # The back-off counts from the end of the instance before the newest one.
    lenient_backoff: bool = False
    ran_in_this_sandbox: bool = False
    # An init container that the next one need not wait for any more.
    passed: bool = False

    work: ImageWork = field(default_factory=ImageWork)
    crash_loop: CrashLoop = field(default_factory=CrashLoop)
    retry: Retry = field(default_factory=Retry)

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def init(self) -> bool:
        """Listed under init containers."""
        return self.role in (Role.INIT, Role.SIDECAR)

    @property
    def live(self) -> bool:
        """Something of it runs or may run."""
        return self.stage in (Stage.STARTING, Stage.RUNNING, Stage.UNSURE, Stage.CLEARING)

    @property
    def running(self) -> bool:
        """Runs, and its post-start hook is done: it counts as running for others."""
        return self.stage is Stage.RUNNING and self.post_start.stage is HookStage.NONE

    @property
    def started(self) -> bool:
        return self.running and self.probes.started

    @property
    def ready(self) -> bool:
        return self.running and self.probes.ready

    @property
    def succeeded(self) -> bool:
        """The newest instance ended well (for an init container: is done)."""
        if self.stage is not Stage.EXITED or self.ended is None:
            return False
        end = self.ended.exit
        return end.exit_code == 0 and not (self.init and end.reason == "OOMKilled")

    def restart_wanted(self, spec: spec_pb2.SandboxSpec) -> bool:
        """Whether an ended container is to run once more."""
        if self.role is Role.EPHEMERAL:
            return False
        if self.forced or self.role is Role.SIDECAR:
            return True
        if self.ended is None or (self.role is Role.INIT and self.succeeded):
            return False
        return policy.should_restart(
            self.spec,
            spec.restart_policy,
            self.ended.exit.exit_code,
            failed=not self.succeeded,
        )

    def asks_restart_of_all(self) -> bool:
        """The newest instance has ended with a code for which all are to be restarted."""
        return (
            self.stage is Stage.EXITED
            and self.ended is not None
            and policy.asks_restart_of_all(self.spec, self.ended.exit.exit_code)
        )

    def next_instance(self) -> None:
        """From EXITED to IDLE: the next one may be prepared."""
        self.stage = Stage.IDLE
        self.attempt += 1
        self.forced = self.lenient_backoff = False
        self.retry_at = None
        self.held = False
        self.clear_waiting()
        self.work.again()

    def clear_waiting(self) -> None:
        self.waiting_reason = self.waiting_message = ""

    def wait(self, reason: str, message: str) -> None:
        self.waiting_reason, self.waiting_message = reason, message

    def has_ended(self, exit_: ContainerExit) -> None:
        """The newest instance has ended."""
        self.ended_before = self.ended
        self.ended = Ended(self.attempt, exit_, self.ref)
        self.stage = Stage.EXITED
        self.op = 0
        self.ref = None
        self.early_exit = None
        self.probes = Probes(())
        self.post_start.done()
        self.pre_stop.done()
        if self.kill is not None:
            self.forced = self.forced or self.kill.restart
            self.lenient_backoff = self.kill.lenient_backoff
            self.kill = None
        self.stop_op = self.resize_op = 0
        self.stop_deadline = self.stop_retry_at = self.stopped_at = None
        self.stop_at_once = False
        self.in_force = self.resize_sent = self.resize_retry_at = None


def unknown_exit(started_at: int, now: int) -> ContainerExit:
    """For an instance that vanished without a word."""
    return ContainerExit(
        exit_code=KILLED_EXIT_CODE,
        reason=wording.UNKNOWN_REASON,
        started_at=started_at,
        finished_at=now,
        message=wording.UNKNOWN_MESSAGE,
    )
