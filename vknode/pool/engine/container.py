"""What a machine knows of one container, and how that reads as a ContainerStatus.

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

from vknode.pool.engine import wording
from vknode.pool.engine.backoff import CrashLoop, ImageBackoff, Retry
from vknode.pool.runtimes.facts import ContainerExit, ContainerExited, ContainerRef, Image
from vknode.pool.v1 import spec_pb2, status_pb2

KILLED_EXIT_CODE = 137


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


@dataclass(slots=True)
class ContainerRecord:
    spec: spec_pb2.Container
    init: bool
    stage: Stage = Stage.IDLE
    attempt: int = 0
    op: int = 0
    # The machine learned of the running instance at this time.
    known_at: int = 0
    ref: ContainerRef | None = None
    started_at: int = 0
    user: tuple[int, int, tuple[int, ...]] | None = None
    image: Image | None = None  # of the newest instance
    ended: Ended | None = None
    ended_before: Ended | None = None
    # Came before the answer to the start.
    early_exit: ContainerExited | None = None

    # Stopping the running instance.
    stop_op: int = 0
    stop_deadline: int | None = None
    stop_retry_at: int | None = None
    # The runtime said that it has ended, but how is not known yet.
    stopped_at: int | None = None

    # Why it does not run, where there is more to say than "not yet".
    waiting_reason: str = ""
    waiting_message: str = ""
    # No start before; None with `held` set: none until the spec changes.
    retry_at: int | None = None
    held: bool = False
    # Restart whatever the policy says: its definition changed.
    forced: bool = False
    ran_in_this_sandbox: bool = False

    work: ImageWork = field(default_factory=ImageWork)
    crash_loop: CrashLoop = field(default_factory=CrashLoop)
    retry: Retry = field(default_factory=Retry)

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def live(self) -> bool:
        """Something of it runs or may run."""
        return self.stage in (Stage.STARTING, Stage.RUNNING, Stage.UNSURE, Stage.CLEARING)

    @property
    def succeeded(self) -> bool:
        """The newest instance ended well (for an init container: is done)."""
        if self.stage is not Stage.EXITED or self.ended is None:
            return False
        end = self.ended.exit
        return end.exit_code == 0 and not (self.init and end.reason == "OOMKilled")

    def policy(self, spec: spec_pb2.SandboxSpec) -> spec_pb2.RestartPolicy.ValueType:
        return self.spec.restart_policy or spec.restart_policy

    def restart_wanted(self, spec: spec_pb2.SandboxSpec) -> bool:
        """Whether an ended container is to run once more."""
        if self.forced:
            return True
        policy = self.policy(spec)
        if policy == spec_pb2.RESTART_POLICY_NEVER:
            return False
        if policy == spec_pb2.RESTART_POLICY_ON_FAILURE or self.init:
            return not self.succeeded
        return True

    def next_instance(self) -> None:
        """From EXITED to IDLE: the next one may be prepared."""
        self.stage = Stage.IDLE
        self.attempt += 1
        self.forced = False
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
        self.stop_op = 0
        self.stop_deadline = self.stop_retry_at = self.stopped_at = None

    def status(
        self, spec: spec_pb2.SandboxSpec, scheme: str, *, reached: bool, initialized: bool
    ) -> status_pb2.ContainerStatus:
        """`reached`: its turn has come, so that its own trouble is worth telling."""
        out = status_pb2.ContainerStatus(name=self.name)
        image = self.image
        if image is not None and (self.stage is Stage.RUNNING or self.ended is not None):
            out.image, out.image_id = image.reference, image.id
        else:
            out.image = self.spec.image
        if self.spec.HasField("resources"):
            out.resources.CopyFrom(self.spec.resources)
        if self.stage is Stage.RUNNING and self.ref is not None:
            out.container_id = _id(self.ref, scheme)
            out.restart_count = self.attempt
            out.state.running.started_at.FromNanoseconds(self.started_at)
            out.ready = out.started = True
            if self.ended is not None:
                _terminated(out.last_termination, self.ended, scheme)
            if self.user is not None:
                uid, gid, groups = self.user
                out.user.uid, out.user.gid = uid, gid
                out.user.supplemental_groups.extend(groups)
            return out
        reason, message = self._waiting(reached)
        if self.ended is not None:
            out.container_id = _id(self.ended.ref, scheme)
            out.restart_count = self.ended.attempt
            if reason:
                out.state.waiting.reason, out.state.waiting.message = reason, message
                _terminated(out.last_termination, self.ended, scheme)
            else:
                _terminated(out.state, self.ended, scheme)
                if self.ended_before is not None:
                    _terminated(out.last_termination, self.ended_before, scheme)
                # An init container that has done its work counts as ready.
                out.ready = self.init and self.succeeded
            return out
        if self.init and initialized:
            # Its instance was collected while the pool was away; see _waiting's source.
            out.state.terminated.reason = "Completed"
            out.state.terminated.message = wording.INIT_UNKNOWN_MESSAGE
            out.ready = True
            return out
        if not reason:
            reason = (
                wording.POD_INITIALIZING if spec.init_containers else wording.CONTAINER_CREATING
            )
        out.state.waiting.reason, out.state.waiting.message = reason, message
        return out

    def _waiting(self, reached: bool) -> tuple[str, str]:
        if self.waiting_reason:
            return self.waiting_reason, self.waiting_message
        if not reached or self.stage is not Stage.IDLE:
            return "", ""
        if self.spec.config_error:
            return wording.CONFIG_ERROR, self.spec.config_error
        return self.work.reason, self.work.message


def unknown_exit(started_at: int, now: int) -> ContainerExit:
    """For an instance that vanished without a word."""
    return ContainerExit(
        exit_code=KILLED_EXIT_CODE,
        reason=wording.UNKNOWN_REASON,
        started_at=started_at,
        finished_at=now,
        message=wording.UNKNOWN_MESSAGE,
    )


def _id(ref: ContainerRef | None, scheme: str) -> str:
    return f"{scheme}://{ref.id}" if ref is not None else ""


def _terminated(into: status_pb2.ContainerState, ended: Ended, scheme: str) -> None:
    end = ended.exit
    state = into.terminated
    state.exit_code = end.exit_code
    state.signal = end.signal
    state.reason = end.reason
    state.message = end.message
    state.container_id = _id(ended.ref, scheme)
    if end.started_at:
        state.started_at.FromNanoseconds(end.started_at)
    if end.finished_at:
        state.finished_at.FromNanoseconds(end.finished_at)
