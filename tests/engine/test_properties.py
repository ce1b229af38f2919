"""Whatever happens in whatever order, a sandbox keeps its promises."""

from __future__ import annotations

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

from tests.engine.world import SECOND, World, make_spec
from vknode.pool.engine import report, steps
from vknode.pool.runtimes.facts import ContainerExited, ContainerRef, ObservedState
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
}


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
    )
    def begin(self, deadline: int | None, present: bool, **options: Any) -> None:
        spec = make_spec(deadline=deadline, **options)
        self.world = World(spec, present={"app:0", "init:0"} | ({"app:1"} if present else set()))
        self.highest = 0
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
        for container in (*status.init_containers, *status.containers):
            for state in (container.state, container.last_termination):
                if state.WhichOneof("state") != "terminated":
                    continue
                end = state.terminated
                real = self.world.all_exits.get(end.container_id.removeprefix("test://"))
                if real is not None and end.reason != "ContainerStatusUnknown":
                    assert (end.exit_code, end.reason) == (real.exit_code, real.reason)
                    assert end.finished_at.ToNanoseconds() == real.finished_at
                    assert end.started_at.ToNanoseconds() == real.started_at
                else:
                    assert end.reason in ("ContainerStatusUnknown", "StartError", "Completed")

    @invariant()
    def nothing_starts_in_a_deleted_one(self) -> None:
        # Calls that were already made may still succeed: one start at most.
        if getattr(self, "deleted_at_starts", None) is not None:
            assert self.deleted_at_starts is not None
            assert len(self.world.starts) <= self.deleted_at_starts + 1

    @invariant()
    def graces_fit(self) -> None:
        if not hasattr(self, "world"):
            return
        limit = self.world.persisted.deletion_deadline
        for action in self.world.pending.values():
            if isinstance(action, steps.StopContainer):
                assert action.grace_seconds >= 0
                if limit is not None and action.op == max(self.world.pending):
                    assert action.grace_seconds <= max(40, 30)

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


Lifecycle.TestCase.settings = settings(
    max_examples=200,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestLifecycle = Lifecycle.TestCase
