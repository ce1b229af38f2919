"""Whatever happens in whatever order, a sandbox keeps its promises."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from tests.engine.world import FAILURE, SECOND, SUCCESS, World, make_spec
from vknode.pool.engine import report, steps
from vknode.pool.runtimes.facts import (
    ContainerExited,
    ContainerRef,
    ObservedState,
    ProbeOutcome,
    ProbeResult,
    SandboxOverLimit,
)
from vknode.pool.v1 import spec_pb2, status_pb2

_FAILURES = {
    steps.EnsureImage: ["ErrImagePull", "InvalidImageName"],
    steps.RunSandbox: ["FailedCreatePodSandBox"],
    steps.StartContainer: ["CreateContainerError", "RunContainerError"],
    steps.StopContainer: ["KillContainerError"],
    steps.RemoveContainer: ["RemoveContainerError"],
    steps.StopSandbox: ["KillPodSandboxError"],
    steps.RemoveSandbox: ["KillPodSandboxError"],
    steps.UpdateSandbox: ["UpdateError"],
    steps.Probe: ["RuntimeError"],
    steps.RunHook: ["HookError"],
    steps.ResizeContainer: ["ResizeFailed"],
    steps.ResizeSandbox: ["ResizeFailed"],
}
_ERROR = ProbeOutcome(ProbeResult.ERROR, "cannot ask")


class Lifecycle(RuleBasedStateMachine):
    world: World

    @initialize(
        inits=st.integers(0, 2),
        mains=st.integers(1, 3),
        policy=st.sampled_from(
            [
                spec_pb2.RESTART_POLICY_ALWAYS,
                spec_pb2.RESTART_POLICY_ON_FAILURE,
                spec_pb2.RESTART_POLICY_NEVER,
            ]
        ),
        pull=st.sampled_from(
            [
                spec_pb2.IMAGE_PULL_POLICY_ALWAYS,
                spec_pb2.IMAGE_PULL_POLICY_IF_NOT_PRESENT,
                spec_pb2.IMAGE_PULL_POLICY_NEVER,
            ]
        ),
        present=st.booleans(),
        deadline=st.sampled_from([None, None, 100]),
        sidecars=st.integers(0, 2),
        extras=st.sets(
            st.sampled_from(
                ["startup", "readiness", "liveness", "post_start", "pre_stop", "sleep", "rules"]
            )
        ),
        shuffle=st.randoms(use_true_random=False),
    )
    def begin(
        self,
        deadline: int | None,
        present: bool,
        extras: set[str],
        shuffle: random.Random,
        **options: Any,
    ) -> None:
        spec = make_spec(deadline=deadline, **options)
        inits = list(spec.init_containers)
        shuffle.shuffle(inits)
        del spec.init_containers[:]
        spec.init_containers.extend(inits)
        for container in (*spec.init_containers, *spec.containers):
            if shuffle.random() < 0.5:
                _add(container, extras)
        images = {"app:0", "init:0", "side:0", "side:1", "debug:0"}
        self.world = World(spec, present=images | ({"app:1"} if present else set()))
        self.highest = 0
        self.counts: dict[str, int] = {}
        self.deleted_at_starts: int | None = None
        self.deadline: int | None = None

    # -- what can happen --------------------------------------------------------

    @precondition(lambda self: self.world.pending)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        self.world.answer(data.draw(st.sampled_from(sorted(self.world.pending))))

    @precondition(lambda self: self.world.pending)
    @rule(data=st.data(), retryable=st.booleans())
    def fail(self, data: st.DataObject, retryable: bool) -> None:
        op = data.draw(st.sampled_from(sorted(self.world.pending)))
        reason = data.draw(st.sampled_from(_FAILURES[type(self.world.pending[op])]))
        self.world.fail(op, reason, "it broke", retryable=retryable)

    @precondition(lambda self: self.world.pending)
    @rule(data=st.data(), carried_out=st.booleans())
    def lose(self, data: st.DataObject, carried_out: bool) -> None:
        op = data.draw(st.sampled_from(sorted(self.world.pending)))
        self.world.lose(op, carried_out=carried_out)

    @precondition(lambda self: self.world.queue)
    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        self.world.deliver(data.draw(st.integers(0, len(self.world.queue) - 1)))

    @precondition(lambda self: self.world.delivered)
    @rule(data=st.data())
    def deliver_again(self, data: st.DataObject) -> None:
        self.world.feed(data.draw(st.sampled_from(self.world.delivered)))

    @rule(op=st.integers(1, 30), kind=st.sampled_from([steps.Done, steps.Cancelled]))
    def stale_answer(self, op: int, kind: type[steps.Done]) -> None:
        if op not in self.world.pending:
            self.world.feed(kind(op))
            self.world.feed(steps.Failed(op, "CreateContainerError", "late"))

    @rule(attempt=st.integers(0, 3))
    def foreign_exit(self, attempt: int) -> None:
        from vknode.pool.runtimes.facts import ContainerExit

        if self.world.machine._facts.containers["c0"].stage.value != "unsure":
            ref = ContainerRef(self.world.spec.uid, "c0", attempt, "nobody")
            self.world.feed(ContainerExited(ref, ContainerExit(99, "Error", 1, 2)))

    @precondition(lambda self: self.world.running())
    @rule(data=st.data(), code=st.sampled_from([0, 0, 1, 137]))
    def crash(self, data: st.DataObject, code: int) -> None:
        instance = data.draw(st.sampled_from(range(len(self.world.running()))))
        self.world.end(self.world.running()[instance], code)

    @precondition(lambda self: self.world.running())
    @rule(data=st.data())
    def ask_for_all(self, data: st.DataObject) -> None:
        """An end with the code for which a rule restarts all containers."""
        instance = data.draw(st.sampled_from(range(len(self.world.running()))))
        self.world.end(self.world.running()[instance], 42)

    @rule(
        name=st.sampled_from(["c0", "c1", "s0"]),
        outcome=st.sampled_from([SUCCESS, FAILURE, _ERROR]),
    )
    def answers_change(self, name: str, outcome: ProbeOutcome) -> None:
        self.world.outcomes[name] = outcome

    @rule(
        cpu=st.sampled_from(["100m", "200m", "9"]),
        pending=st.sampled_from(["", "", "Deferred", "Infeasible"]),
        debug=st.booleans(),
    )
    def update(self, cpu: str, pending: str, debug: bool) -> None:
        machine = self.world.machine
        if machine.gone or machine.deleting or machine.terminal:
            return
        newer = spec_pb2.SandboxSpec()
        newer.CopyFrom(machine.wanted)
        newer.generation += 1
        newer.containers[0].resources.requests["cpu"] = cpu
        newer.resources.limits["cpu"] = cpu
        if debug and not newer.ephemeral_containers:
            newer.ephemeral_containers.add(
                name="debug",
                image="debug:0",
                image_pull_policy=spec_pb2.IMAGE_PULL_POLICY_IF_NOT_PRESENT,
            )
        self.world.spec = newer
        self.world.feed(steps.Update(newer, pending, "no room" if pending else ""))

    @rule(pending=st.sampled_from(["", "Deferred"]))
    def reconsider(self, pending: str) -> None:
        self.world.feed(steps.Reconsidered(pending, "no room" if pending else ""))

    @rule()
    def comes_up(self) -> None:
        """All init containers do their work, if nothing else goes wrong."""
        for _ in range(4):
            self.world.settle()
            for instance in self.world.running():
                if instance.ref.name.startswith("i"):
                    self.world.end(instance, 0)
        self.world.settle()

    @rule()
    def over_limit(self) -> None:
        self.world.feed(SandboxOverLimit(self.world.spec.uid, "too much"))

    @rule()
    def drained(self) -> None:
        self.world.feed(steps.Drained())

    @rule(seconds=st.sampled_from([1, 11, 40]))
    def live(self, seconds: float) -> None:
        self.world.live(seconds)

    @rule()
    def sandbox_dies(self) -> None:
        self.world.kill_sandbox()

    @rule(seconds=st.sampled_from([0.001, 1, 10, 61, 700]))
    def time(self, seconds: float) -> None:
        self.world.pass_time(round(seconds * SECOND))

    @rule()
    def runtime_lost(self) -> None:
        self.world.feed(steps.RuntimeLost())
        self.world.observe_wanted = True

    @rule()
    def observe(self) -> None:
        self.world.now += 1
        self.world.observe()

    @rule()
    def settle(self) -> None:
        self.world.settle()

    @rule(grace=st.sampled_from([None, 0.0, 5.0, 40.0]))
    def delete(self, grace: float | None) -> None:
        self.world.feed(steps.Delete(grace))
        if self.deleted_at_starts is None:
            self.deleted_at_starts = len(self.world.starts)
        before, now = self.deadline, self.world.persisted.deletion_deadline
        assert now is not None
        if not self.world.machine.gone:
            assert before is None or now <= before, "a deletion was put off"
        self.deadline = now

    @rule()
    def restart_pool(self) -> None:
        if not self.world.machine.gone:
            self.world.restart_pool()

    # -- what must hold ---------------------------------------------------------

    @invariant()
    def one_instance_each(self) -> None:
        if hasattr(self, "world"):
            for name in {i.ref.name for i in self.world.running()}:
                assert len(self.world.running(name)) == 1

    @invariant()
    def states_move_down(self) -> None:
        if not hasattr(self, "world"):
            return
        state = self.world.status().state
        assert state >= self.highest or not self.world.instances, "a state went up"
        if self.highest >= status_pb2.SANDBOX_STATE_SUCCEEDED:
            assert state == self.highest, "an ended sandbox came back"
        self.highest = max(self.highest, state)

    @invariant()
    def status_is_current(self) -> None:
        if hasattr(self, "world"):
            machine = self.world.machine
            told, true = status_pb2.Sandbox(), report.build(machine._facts)
            told.CopyFrom(machine.status())
            for status in (told, true):  # images_ready alone is no news
                status.phases.ClearField("images_ready")
            assert told == true, "a change was not noted"

    @invariant()
    def ends_are_real(self) -> None:
        if not hasattr(self, "world"):
            return
        status = self.world.status()
        for container in (
            *status.init_containers,
            *status.containers,
            *status.ephemeral_containers,
        ):
            for state in (container.state, container.last_termination):
                if state.WhichOneof("state") != "terminated":
                    continue
                end = state.terminated
                real = self.world.all_exits.get(end.container_id.removeprefix("test://"))
                if end.reason == "ContainerStatusUnknown":
                    # Only where the runtime forgot it before it could say how it ended.
                    assert end.container_id.removeprefix("test://") not in self.world.told
                elif real is not None:
                    assert (end.exit_code, end.reason) == (real.exit_code, real.reason)
                    assert end.finished_at.ToNanoseconds() == real.finished_at
                    assert end.started_at.ToNanoseconds() == real.started_at
                else:
                    assert end.reason in ("StartError", "Completed")

    @invariant()
    def nothing_starts_in_a_deleted_one(self) -> None:
        # Calls that were already made may still succeed: one start at most.
        if getattr(self, "deleted_at_starts", None) is not None:
            assert self.deleted_at_starts is not None
            assert len(self.world.starts) <= self.deleted_at_starts + 1

    @invariant()
    def ready_means_running(self) -> None:
        if not hasattr(self, "world"):
            return
        status = self.world.status()
        for container in (*status.init_containers, *status.containers):
            state = container.state.WhichOneof("state")
            if container.ready and state != "terminated":
                assert state == "running" and container.started
            if state == "terminated" and container.ready:
                assert container.state.terminated.exit_code == 0

    @invariant()
    def a_hook_comes_before_its_signal(self) -> None:
        if not hasattr(self, "world"):
            return
        hooked = {
            a.ref.id
            for a in self.world.pending.values()
            if isinstance(a, steps.RunHook) and a.timeout_seconds is not None
        }
        stopped = {
            a.ref.id for a in self.world.pending.values() if isinstance(a, steps.StopContainer)
        }
        assert not hooked & stopped

    @invariant()
    def counts_never_fall(self) -> None:
        if not hasattr(self, "world"):
            return
        for container in (*self.world.status().init_containers, *self.world.status().containers):
            before = self.counts.get(container.name, 0)
            assert container.restart_count >= before or not self.world.instances
            self.counts[container.name] = container.restart_count

    @invariant()
    def graces_fit(self) -> None:
        """No stop that is asked for after a deletion reaches beyond its time, but for the
        two seconds that every container has."""
        if not hasattr(self, "world"):
            return
        for action, asked_at, deadline in self.world.stops_asked:
            assert action.grace_seconds >= 0
            if deadline is not None:
                left = (deadline - asked_at) / SECOND
                assert action.grace_seconds <= max(left, 2.0) + 1
        self.world.stops_asked.clear()

    def teardown(self) -> None:
        """With a live runtime a deletion always ends, and leaves nothing."""
        if not hasattr(self, "world"):
            return
        world = self.world
        world.observe()
        world.settle()
        for instance in world.instances:
            if instance.state is ObservedState.RUNNING:
                status = world.status()
                assert status.state not in (
                    status_pb2.SANDBOX_STATE_SUCCEEDED,
                    status_pb2.SANDBOX_STATE_FAILED,
                ), "ended, but something runs"
        world.feed(steps.Delete(0.0))
        for _ in range(200):
            world.settle()
            if world.machine.gone:
                break
            world.pass_time(SECOND)
        assert world.machine.gone
        assert world.removed and not world.running() and not world.pending
        assert world.status().state >= status_pb2.SANDBOX_STATE_SUCCEEDED


def _add(container: spec_pb2.Container, extras: set[str]) -> None:
    sidecar = container.restart_policy == spec_pb2.RESTART_POLICY_ALWAYS
    main = container.name.startswith("c")
    if sidecar or main:
        for name in extras & {"startup", "readiness", "liveness"}:
            one = {
                "startup": container.startup_probe,
                "readiness": container.readiness_probe,
                "liveness": container.liveness_probe,
            }[name]
            one.handler.exec.command.append("true")
            one.period_seconds, one.failure_threshold = 5, 2
        if "post_start" in extras:
            container.post_start.exec.command.append("hello")
        if "sleep" in extras:
            container.pre_stop.sleep.seconds = 3
        elif "pre_stop" in extras:
            container.pre_stop.exec.command.append("bye")
    if "rules" in extras:
        if not container.restart_policy:
            container.restart_policy = spec_pb2.RESTART_POLICY_NEVER
        container.restart_rules.add(
            action=spec_pb2.RestartRule.ACTION_RESTART_ALL_CONTAINERS, exit_codes=[42]
        )


Lifecycle.TestCase.settings = settings(
    max_examples=400,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestLifecycle = Lifecycle.TestCase
