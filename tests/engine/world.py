"""A runtime as plain data, driven step by step: the truth a machine is held against."""

from __future__ import annotations

from dataclasses import dataclass, field

from vknode.pool.engine import steps
from vknode.pool.engine.container import Role
from vknode.pool.engine.machine import SandboxMachine
from vknode.pool.engine.steps import Persisted
from vknode.pool.runtimes.facts import (
    ContainerExit,
    ContainerExited,
    ContainerRef,
    Image,
    ObservedContainer,
    ObservedSandbox,
    ObservedState,
    ProbeOutcome,
    ProbeResult,
    RunningSandbox,
    SandboxDied,
    StartedContainer,
)
from vknode.pool.v1 import spec_pb2, status_pb2

SECOND = 1_000_000_000
SUCCESS = ProbeOutcome(ProbeResult.SUCCESS)
FAILURE = ProbeOutcome(ProbeResult.FAILURE, "it said no")
START = 1_700_000_000 * SECOND


def make_spec(
    *,
    inits: int = 0,
    sidecars: int = 0,
    mains: int = 1,
    policy: spec_pb2.RestartPolicy.ValueType = spec_pb2.RESTART_POLICY_ALWAYS,
    grace: int = 30,
    pull: spec_pb2.ImagePullPolicy.ValueType = spec_pb2.IMAGE_PULL_POLICY_IF_NOT_PRESENT,
    deadline: int | None = None,
    uid: str = "u1",
) -> spec_pb2.SandboxSpec:
    spec = spec_pb2.SandboxSpec(
        uid=uid,
        namespace="default",
        name="web",
        cell="az1-a",
        tenant="default",
        generation=1,
        restart_policy=policy,
        termination_grace_period_seconds=grace,
    )
    if deadline is not None:
        spec.active_deadline_seconds = deadline
    for index in range(inits):
        spec.init_containers.add(name=f"i{index}", image=f"init:{index}", image_pull_policy=pull)
    for index in range(sidecars):
        spec.init_containers.add(
            name=f"s{index}",
            image=f"side:{index}",
            image_pull_policy=pull,
            restart_policy=spec_pb2.RESTART_POLICY_ALWAYS,
        )
    for index in range(mains):
        spec.containers.add(name=f"c{index}", image=f"app:{index}", image_pull_policy=pull)
    return spec


@dataclass
class Instance:
    ref: ContainerRef
    image: Image
    started_at: int
    state: ObservedState = ObservedState.RUNNING
    exit: ContainerExit | None = None
    sandbox_id: str = ""


@dataclass
class World:
    """One sandbox in a runtime, and the machine that drives it."""

    spec: spec_pb2.SandboxSpec
    now: int = START
    present: set[str] = field(
        default_factory=lambda: {
            *("app:0", "app:1", "app:2", "init:0", "init:1", "side:0", "side:1", "debug:0")
        }
    )
    pending: dict[int, steps.Action] = field(default_factory=dict)
    queue: list[ContainerExited | SandboxDied] = field(default_factory=list)
    delivered: list[ContainerExited | SandboxDied] = field(default_factory=list)
    instances: list[Instance] = field(default_factory=list)
    all_exits: dict[str, ContainerExit] = field(default_factory=dict)
    sandbox: RunningSandbox | None = None
    sandbox_alive: bool = False
    emitted: list[status_pb2.SandboxEvent] = field(default_factory=list)
    removed: bool = False
    observe_wanted: bool = False
    serial: int = 0
    starts: list[str] = field(default_factory=list)
    # What the probes of a container are answered; else success.
    outcomes: dict[str, ProbeOutcome] = field(default_factory=dict)
    asked: list[tuple[str, int]] = field(default_factory=list)  # probes: container, when
    hooks: list[tuple[str, str]] = field(default_factory=list)  # that were carried out
    resized: list[str] = field(default_factory=list)
    # Instances whose end the runtime has told or shown.
    told: set[str] = field(default_factory=set)
    # Stops, the moment each was asked for, and the Pod's deadline at that moment.
    stops_asked: list[tuple[steps.StopContainer, int, int | None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.persisted = Persisted("agent", self.now)
        self.machine = SandboxMachine(self.spec, self.persisted, scheme="test")
        self.feed(steps.Tick())

    # -- machine side -----------------------------------------------------------

    def feed(self, event: steps.Event) -> None:
        if isinstance(event, ContainerExited):
            self.told.add(event.ref.id)
        elif isinstance(event, steps.Observed) and event.sandbox is not None:
            self.told |= {one.ref.id for one in event.sandbox.containers if one.exit is not None}
        for action in self.machine.handle(event, self.now):
            self.take(action)

    def take(self, action: steps.Action) -> None:
        if isinstance(action, steps.Emit):
            self.emitted.append(action.event)
        elif isinstance(action, steps.Persist):
            self.persisted = action.state
        elif isinstance(action, steps.Observe):
            self.observe_wanted = True
        elif isinstance(action, steps.Cancel):
            self.cancel(action.op)
        else:
            if isinstance(action, steps.StartContainer):
                assert not self.machine.deleting, "a start after a deletion was asked"
                assert self.sandbox is not None and action.sandbox.id == self.sandbox.id
            if isinstance(action, steps.StopContainer):
                self._sidecars_end_last(action)
                deadline = self.persisted.deletion_deadline
                self.stops_asked.append((action, self.now, deadline))
            self.pending[action.op] = action

    def _sidecars_end_last(self, action: steps.StopContainer) -> None:
        record = self.machine._facts.containers[action.ref.name]
        if record.role is not Role.SIDECAR or record.kill is not None:
            return
        assert record.stop_deadline is not None
        mains = [c.name for c in self.spec.containers if self.running(c.name)]
        # What has ended without the machine knowing it yet is no longer here.
        assert not mains or self.now >= record.stop_deadline, "a sidecar ends before a main one"

    def cancel(self, op: int) -> None:
        action = self.pending.get(op)
        if isinstance(action, steps.EnsureImage | steps.Probe | steps.RunHook):
            del self.pending[op]
        elif action is not None and op % 2:  # every other one has not begun
            del self.pending[op]
            self.late_cancel = op
            self.feed(steps.Cancelled(op))

    def pass_time(self, nanoseconds: int) -> None:
        """To that moment, with every tick on the way."""
        target = self.now + nanoseconds
        for _ in range(10_000):
            wake = self.machine.wake_at
            if wake is None or wake > target:
                break
            self.now = max(self.now, wake)
            self.feed(steps.Tick())
        else:
            raise AssertionError("the machine never stops ticking")
        self.now = target

    def live(self, seconds: float) -> None:
        """So much time passes, and all that can happen on the way happens at once."""
        target = self.now + round(seconds * SECOND)
        self.settle()
        for _ in range(10_000):
            wake = self.machine.wake_at
            if wake is None or wake > target:
                break
            self.now = max(self.now, wake)
            self.feed(steps.Tick())
            self.settle()
        else:
            raise AssertionError("the machine never stops ticking")
        self.now = target

    def event(self, reason: str) -> str:
        """The message of the only event with this reason."""
        (message,) = [e.message for e in self.emitted if e.reason == reason]
        return message

    # -- runtime side -----------------------------------------------------------

    def running(self, name: str | None = None) -> list[Instance]:
        return [
            i
            for i in self.instances
            if i.state is ObservedState.RUNNING and name in (None, i.ref.name)
        ]

    def carry_out(self, action: steps.Action) -> steps.Event | None:
        """What the runtime does and answers; None: nothing waits for an answer."""
        if isinstance(action, steps.EnsureImage):
            here = action.reference in self.present
            if action.policy == spec_pb2.IMAGE_PULL_POLICY_NEVER and not here:
                return steps.Failed(
                    action.op,
                    "ErrImageNeverPull",
                    f"Container image {action.reference} is not present with pull policy Never",
                )
            self.present.add(action.reference)
            image = Image(
                action.reference, f"{action.reference}@sha256:1", uid=1000, pulled=not here
            )
            return steps.ImageReady(action.op, image)
        if isinstance(action, steps.RunSandbox):
            self.serial += 1
            self.now += 1  # no two things happen at the same moment
            for instance in self.instances:
                assert instance.state is not ObservedState.RUNNING, "left in an old sandbox"
            self.sandbox = RunningSandbox(
                self.spec.uid, f"s{self.serial}", action.attempt, ("10.0.0.1",), self.now
            )
            self.sandbox_alive = True
            return steps.SandboxReady(action.op, self.sandbox)
        if isinstance(action, steps.StartContainer):
            return self._start(action)
        if isinstance(action, steps.StopContainer):
            for instance in self.running():
                if instance.ref.id == action.ref.id:
                    self.end(instance, 143)
            return steps.Done(action.op)
        if isinstance(action, steps.RemoveContainer):
            if any(i.ref.id == action.ref.id for i in self.running()):
                shown = self.machine.instance(action.ref.name)
                assert shown is None or shown.id != action.ref.id, "it is stopped first"
            self.instances = [i for i in self.instances if i.ref.id != action.ref.id]
            return steps.Done(action.op)
        if isinstance(action, steps.StopSandbox):
            assert not self.running()
            self.sandbox_alive = False
            return steps.Done(action.op)
        if isinstance(action, steps.RemoveSandbox):
            self.instances.clear()
            self.sandbox, self.sandbox_alive, self.removed = None, False, True
            return steps.Done(action.op)
        if isinstance(action, steps.UpdateSandbox):
            return steps.Done(action.op)
        if isinstance(action, steps.RunHook):
            self.hooks.append((action.ref.name, action.handler.exec.command[0]))
            return steps.Done(action.op)
        if isinstance(action, steps.ResizeContainer):
            self.resized.append(action.ref.name)
            return steps.Done(action.op)
        if isinstance(action, steps.ResizeSandbox):
            self.resized.append("")
            return steps.Done(action.op)
        if isinstance(action, steps.Probe):
            name = action.ref.name
            self.asked.append((name, self.now))
            return steps.Probed(action.op, self.outcomes.get(name, SUCCESS))
        raise AssertionError(action)

    def _start(self, action: steps.StartContainer) -> steps.Event:
        name = action.container.name
        if not self.sandbox_alive:
            return steps.Failed(action.op, "CreateContainerError", "sandbox is not ready")
        assert not self.running(name), "two running instances of one container"
        assert all(i.ref.attempt < action.attempt for i in self.instances if i.ref.name == name), (
            "an attempt number was used twice"
        )
        if name in {c.name for c in self.spec.containers}:
            self._inits_are_done(len(self.spec.init_containers))
        for index, init in enumerate(self.spec.init_containers):
            if init.name == name:
                self._inits_are_done(index)
        self.serial += 1
        assert self.sandbox is not None
        ref = ContainerRef(self.spec.uid, name, action.attempt, f"k{self.serial}")
        self.starts.append(name)
        self.instances.append(Instance(ref, action.image, self.now, sandbox_id=self.sandbox.id))
        return steps.Started(action.op, StartedContainer(ref, self.now))

    def _inits_are_done(self, count: int) -> None:
        """The first `count` init containers have done their work, sidecars have started."""
        for init in self.spec.init_containers[:count]:
            if init.restart_policy == spec_pb2.RESTART_POLICY_ALWAYS:
                assert init.name in self.starts, "started before a sidecar"
                continue
            assert not self.running(init.name), "started beside an init container"
            ends = [i.exit for i in self.instances if i.ref.name == init.name and i.exit]
            assert not ends or ends[-1].exit_code == 0, "started after a failed init container"

    def end(self, instance: Instance, code: int, reason: str = "") -> None:
        instance.state = ObservedState.EXITED
        reason = reason or ("Completed" if code == 0 else "Error")
        instance.exit = ContainerExit(code, reason, instance.started_at, self.now)
        self.all_exits[instance.ref.id] = instance.exit
        self.queue.append(ContainerExited(instance.ref, instance.exit))

    def kill_sandbox(self) -> None:
        if self.sandbox is not None and self.sandbox_alive:
            self.sandbox_alive = False
            for instance in self.running():
                self.end(instance, 137)
            self.queue.append(SandboxDied(self.spec.uid, self.sandbox.id))

    def observed(self) -> ObservedSandbox | None:
        if self.sandbox is None:
            return None
        return ObservedSandbox(
            self.spec.uid,
            self.sandbox.id,
            self.sandbox.attempt,
            self.sandbox_alive,
            self.sandbox.ips,
            self.sandbox.created_at,
            tuple(
                ObservedContainer(i.ref, i.state, i.image, i.started_at, i.exit)
                for i in self.instances
            ),
        )

    def observe(self) -> None:
        self.observe_wanted = False
        self.feed(steps.Observed(self.observed(), self.now))

    def deliver(self, index: int = 0) -> None:
        event = self.queue.pop(index)
        self.delivered.append(event)
        self.feed(event)

    def answer(self, op: int) -> None:
        answer = self.carry_out(self.pending.pop(op))
        if answer is not None:
            self.feed(answer)

    def fail(self, op: int, reason: str, message: str, *, retryable: bool = True) -> None:
        action = self.pending.pop(op)
        if isinstance(action, steps.StartContainer) and reason == "RunContainerError":
            # As containerd does: the instance stays, ended.
            self.serial += 1
            ref = ContainerRef(
                self.spec.uid, action.container.name, action.attempt, f"k{self.serial}"
            )
            end = ContainerExit(128, "StartError", 0, self.now, message=message)
            self.all_exits[ref.id] = end
            self.instances.append(Instance(ref, action.image, 0, ObservedState.EXITED, end))
        self.feed(steps.Failed(op, reason, message, retryable))

    def lose(self, op: int, *, carried_out: bool) -> None:
        """The runtime goes away in the middle of the call."""
        action = self.pending.pop(op)
        if carried_out:
            self.carry_out(action)
        self.feed(steps.Failed(op, "RuntimeUnavailable", "gone", away=True))

    def restart_pool(self) -> None:
        """The pool's process dies; another one adopts. Calls and events are lost."""
        self.pending.clear()
        self.queue.clear()
        self.observe_wanted = False
        self.machine = SandboxMachine.adopt(
            self.machine.spec, self.persisted, self.observed(), self.now, scheme="test"
        )
        self.feed(steps.Tick())

    def settle(self) -> None:
        """Everything that can happen at this moment happens."""
        for _ in range(1000):
            if self.queue:
                self.deliver()
            elif self.pending:
                self.answer(next(iter(self.pending)))
            elif self.observe_wanted:
                self.now += 1
                self.observe()
            elif self.machine.wake_at is not None and self.machine.wake_at <= self.now:
                self.feed(steps.Tick())
            else:
                return
        raise AssertionError("never settles")

    # -- looking ----------------------------------------------------------------

    def status(self) -> status_pb2.Sandbox:
        return self.machine.status()

    def main(self, index: int = 0) -> status_pb2.ContainerStatus:
        return self.status().containers[index]

    def side(self, index: int = 0) -> status_pb2.ContainerStatus:
        sidecars = [c for c in self.status().init_containers if c.name.startswith("s")]
        return sidecars[index]

    def said(self) -> list[str]:
        return [e.reason for e in self.emitted]

    def crash(self, name: str, code: int = 1, reason: str = "") -> None:
        (instance,) = self.running(name)
        self.end(instance, code, reason)
        self.settle()
