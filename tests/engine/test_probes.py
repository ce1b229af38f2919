"""Probes: when they ask, what they decide, what is told."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.world import FAILURE, SECOND, SUCCESS, World, make_spec
from vknode.pool.engine import steps
from vknode.pool.engine.probes import Kind, Probes, ProbeState, Verdict
from vknode.pool.runtimes.facts import ProbeOutcome, ProbeResult
from vknode.pool.v1 import spec_pb2, status_pb2


def probe(
    *,
    delay: int = 0,
    period: int = 10,
    successes: int = 1,
    failures: int = 3,
    grace: int | None = None,
) -> spec_pb2.Probe:
    return spec_pb2.Probe(
        handler=spec_pb2.Handler(tcp_socket=spec_pb2.Handler.TcpSocket(port=80)),
        initial_delay_seconds=delay,
        timeout_seconds=1,
        period_seconds=period,
        success_threshold=successes,
        failure_threshold=failures,
        termination_grace_period_seconds=grace,
    )


def probed_world(**probes: spec_pb2.Probe) -> World:
    spec = make_spec()
    for name, one in probes.items():
        getattr(spec.containers[0], name).CopyFrom(one)
    return World(spec)


def running(**probes: spec_pb2.Probe) -> World:
    world = probed_world(**probes)
    world.settle()
    return world


def test_a_container_is_ready_once_its_readiness_probe_says_so() -> None:
    world = probed_world(readiness_probe=probe())
    world.outcomes["c0"] = FAILURE
    world.settle()
    assert world.main().started and not world.main().ready
    assert world.status().state == status_pb2.SANDBOX_STATE_RUNNING
    world.live(1)
    assert not world.main().ready
    world.outcomes["c0"] = SUCCESS
    world.live(0.6)  # a further question, long before the period is over
    assert world.main().ready
    assert "Unhealthy" not in world.said(), "a question out of turn failed: nobody's trouble"


def test_readiness_turns_after_its_threshold_and_back() -> None:
    world = running(readiness_probe=probe(period=5, failures=2, successes=2))
    assert not world.main().ready, "one success of two"
    world.live(5)
    assert world.main().ready
    world.outcomes["c0"] = FAILURE
    world.live(5)
    assert world.main().ready
    assert world.event("Unhealthy") == "Readiness probe failed: it said no"
    world.live(5)
    assert not world.main().ready
    world.outcomes["c0"] = SUCCESS
    world.live(10)
    assert world.main().ready and world.main().restart_count == 0


def test_the_initial_delay_counts_from_the_start() -> None:
    world = running(readiness_probe=probe(delay=7))
    world.live(6.9)
    assert world.asked == [] and not world.main().ready
    world.live(0.2)
    assert world.main().ready


def test_a_failed_liveness_probe_restarts_the_container() -> None:
    world = running(liveness_probe=probe(period=10, failures=3, grace=4))
    world.outcomes["c0"] = FAILURE
    world.pass_time(0)
    world.live(29.9)
    assert world.main().restart_count == 0
    world.live(0.2)
    assert world.main().restart_count == 1 and world.main().state.HasField("running")
    assert world.event("Killing") == "Container c0 failed liveness probe, will be restarted"
    assert world.said().count("Unhealthy") == 3
    assert world.main().last_termination.terminated.exit_code == 143


def test_the_probes_own_grace_is_given() -> None:
    world = running(liveness_probe=probe(period=1, failures=1, grace=4))
    world.outcomes["c0"] = FAILURE
    world.pass_time(SECOND)
    world.answer(next(iter(world.pending)))
    (stop,) = [a for a in world.pending.values() if isinstance(a, steps.StopContainer)]
    assert stop.grace_seconds == 4


def test_a_killed_container_is_not_probed_for_life_again() -> None:
    world = running(liveness_probe=probe(period=1, failures=1))
    world.outcomes["c0"] = FAILURE
    world.pass_time(SECOND)
    world.answer(next(iter(world.pending)))
    asked = len(world.asked)
    world.pass_time(20 * SECOND)
    assert len(world.asked) == asked


def test_without_restarts_a_failed_liveness_probe_ends_the_sandbox() -> None:
    spec = make_spec(policy=spec_pb2.RESTART_POLICY_NEVER)
    spec.containers[0].liveness_probe.CopyFrom(probe(period=1, failures=1))
    world = World(spec)
    world.settle()
    world.outcomes["c0"] = FAILURE
    world.live(2)
    assert world.event("Killing") == "Container c0 failed liveness probe"
    assert world.status().state == status_pb2.SANDBOX_STATE_FAILED


def test_on_failure_a_killed_container_restarts_though_it_left_with_success() -> None:
    spec = make_spec(policy=spec_pb2.RESTART_POLICY_ON_FAILURE)
    spec.containers[0].liveness_probe.CopyFrom(probe(period=1, failures=1))
    world = World(spec)
    world.settle()
    world.outcomes["c0"] = FAILURE
    world.pass_time(SECOND)
    world.answer(next(iter(world.pending)))
    world.outcomes["c0"] = SUCCESS
    (instance,) = world.running("c0")
    world.end(instance, 0)
    world.settle()
    assert world.main().restart_count == 1 and world.main().state.HasField("running")


def test_a_container_that_is_killed_again_and_again_backs_off() -> None:
    world = running(liveness_probe=probe(period=1, failures=1))
    world.outcomes["c0"] = FAILURE
    times = []
    for count in range(1, 6):
        while world.main().restart_count < count:
            world.live(0.5)
        times.append(world.now)
    gaps = [round((b - a) / SECOND) for a, b in itertools.pairwise(times)]
    assert gaps[0] <= 2, "the first ones as on a kubelet, at once"
    assert gaps[-1] >= 20
    seen = set()
    for _ in range(60):
        world.live(0.5)
        seen.add(world.main().state.waiting.reason)
    assert "CrashLoopBackOff" in seen


def test_the_others_wait_for_the_startup_probe() -> None:
    world = probed_world(
        startup_probe=probe(period=5, failures=10),
        readiness_probe=probe(period=2),
        liveness_probe=probe(period=1, failures=1),
    )
    world.outcomes["c0"] = FAILURE
    world.live(20)
    assert world.main().restart_count == 0 and not world.main().started
    assert world.status().state == status_pb2.SANDBOX_STATE_RUNNING
    world.outcomes["c0"] = SUCCESS
    world.live(5)
    assert world.main().started and world.main().ready


def test_a_container_that_does_not_start_up_is_restarted() -> None:
    world = probed_world(startup_probe=probe(period=5, failures=2))
    world.outcomes["c0"] = FAILURE
    world.live(10.1)
    assert world.event("Killing") == "Container c0 failed startup probe, will be restarted"
    assert world.main().restart_count == 1 and not world.main().started


def test_a_question_that_could_not_be_asked_counts_for_nothing() -> None:
    world = running(liveness_probe=probe(period=1, failures=1), readiness_probe=probe())
    world.outcomes["c0"] = ProbeOutcome(ProbeResult.ERROR, "no such host")
    world.live(30)
    assert world.main().restart_count == 0 and world.main().ready
    assert "Liveness probe errored and resulted in unknown state: no such host" in {
        e.message for e in world.emitted
    }


def test_a_warning_is_told_and_counts_as_success() -> None:
    world = running(readiness_probe=probe())
    world.outcomes["c0"] = ProbeOutcome(ProbeResult.WARNING, "redirected")
    world.live(10)
    assert world.main().ready
    assert world.event("ProbeWarning") == "Readiness probe warning: redirected"


def test_readiness_is_still_asked_while_it_ends_and_liveness_is_not() -> None:
    world = running(
        readiness_probe=probe(period=1, failures=1), liveness_probe=probe(period=1, failures=1)
    )
    assert world.main().ready
    world.feed(steps.Delete(30.0))
    world.outcomes["c0"] = FAILURE
    world.pass_time(SECOND)
    questions = [op for op, a in world.pending.items() if isinstance(a, steps.Probe)]
    assert len(questions) == 1
    world.answer(questions[0])
    assert not world.main().ready
    assert world.said().count("Killing") == 1


def test_a_liveness_probe_under_way_when_the_end_begins_accuses_nobody() -> None:
    world = running(liveness_probe=probe(period=1, failures=1))
    world.pass_time(SECOND)
    (asked,) = [op for op, a in world.pending.items() if isinstance(a, steps.Probe)]
    world.feed(steps.Delete(30.0))
    world.outcomes["c0"] = FAILURE
    world.answer(asked)
    assert "Unhealthy" not in world.said()
    assert world.said().count("Killing") == 1


def test_ready_containers_stay_ready_when_the_pool_restarts() -> None:
    world = running(startup_probe=probe(), readiness_probe=probe())
    assert world.main().ready
    world.restart_pool()
    assert world.main().started and world.main().ready
    world.outcomes["c0"] = FAILURE
    world.live(40)
    assert not world.main().ready


def test_a_container_that_was_not_started_up_is_asked_again_after_a_restart_of_the_pool() -> None:
    world = probed_world(startup_probe=probe(failures=100))
    world.outcomes["c0"] = FAILURE
    world.live(3)
    world.restart_pool()
    assert not world.main().started
    world.outcomes["c0"] = SUCCESS
    world.live(12)
    assert world.main().started


def test_answers_of_an_ended_instance_are_for_nobody() -> None:
    world = running(liveness_probe=probe(period=1, failures=1))
    world.pass_time(SECOND)
    (op,) = world.pending
    late = world.pending[op]
    assert isinstance(late, steps.Probe)
    world.crash("c0")
    assert world.main().restart_count == 1
    world.feed(steps.Probed(late.op, FAILURE))
    world.settle()
    assert world.main().restart_count == 1


@given(
    delay=st.integers(0, 20),
    period=st.integers(1, 20),
    failures=st.integers(1, 5),
    successes=st.integers(1, 3),
    answers=st.lists(st.sampled_from(["yes", "no", "error", "slow"]), max_size=60),
    kind=st.sampled_from(Kind),
)
def test_thresholds_delays_and_periods_hold_whatever_is_answered(
    delay: int, period: int, failures: int, successes: int, answers: list[str], kind: Kind
) -> None:
    spec = probe(delay=delay, period=period, failures=failures, successes=successes)
    state = ProbeState(kind, spec)
    container = spec_pb2.Container()
    getattr(container, f"{kind.value.lower()}_probe").CopyFrom(spec)
    state = Probes.of(container).states[0]
    started = 1000 * SECOND
    state.begin(started + delay * SECOND)
    now, counted_failures, row, asked = started, 0, 0, []
    for op, answer in enumerate(answers, 1):
        due = state.due_at()
        if due is None:
            assert state.at_rest
            break
        now = max(now, due)
        state.ask(op, now)
        asked.append((now, state.asked_early))
        if answer == "slow":
            now += 2 * period * SECOND
        outcome = {"yes": SUCCESS, "error": ProbeOutcome(ProbeResult.ERROR)}.get(answer, FAILURE)
        early = state.asked_early
        verdict = state.answered(outcome)
        if outcome is FAILURE and not early:
            row = row + 1 if row >= 0 else 1
            counted_failures += 1
        elif outcome is SUCCESS:
            row = row - 1 if row <= 0 else -1
        if verdict is Verdict.KILL:
            assert kind is not Kind.READINESS and row >= failures
            # Never sooner than the latest that a kubelet could.
            assert now >= started + (delay + failures * period) * SECOND
        if verdict is Verdict.CHANGED and state.result:
            assert -row >= successes
    assert all(at >= started + delay * SECOND for at, _ in asked)
    assert sum(early for _, early in asked) <= 5
    regular = [at for at, early in asked if not early]
    assert all(b - a >= period * SECOND // 2 - 1 for a, b in itertools.pairwise(regular))


@pytest.mark.parametrize("kind", list(Kind))
def test_exec_probes_cost_one_question_out_of_turn_at_most(kind: Kind) -> None:
    spec = probe()
    spec.handler.exec.command.append("true")
    state = ProbeState(kind, spec)
    state.begin(0)
    early = 0
    for op in range(1, 5):
        due = state.due_at()
        assert due is not None
        state.ask(op, due)
        early += state.asked_early
        state.answered(ProbeOutcome(ProbeResult.ERROR))
    assert early == (0 if kind is Kind.LIVENESS else 1)
