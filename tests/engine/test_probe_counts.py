"""What is counted of probes: as a kubelet's metrics do, over all instances of a container."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.test_probes import probe, probed_world, running
from tests.engine.world import FAILURE, SECOND, SUCCESS, World
from vknode.pool.engine.probe_counts import BOUNDS, ProbeCounts
from vknode.pool.engine.probes import Kind
from vknode.pool.runtimes.facts import ProbeOutcome, ProbeResult
from vknode.pool.v1 import stats_pb2

ERROR = ProbeOutcome(ProbeResult.ERROR, "nobody could be asked")


def counted(world: World) -> dict[int, tuple[int, int, int]]:
    """By type: successful, failed, unknown."""
    return {
        one.type: (one.successful, one.failed, one.unknown) for one in world.machine.probe_stats()
    }


def test_each_probe_is_counted_by_its_results() -> None:
    world = running(liveness_probe=probe(period=5), readiness_probe=probe(period=5))
    world.live(20)
    world.outcomes["c0"] = FAILURE
    world.live(5)
    world.outcomes["c0"] = ERROR
    world.live(5)
    assert counted(world) == {
        # The one out of turn, with which it became ready at once, and then one each 5 s.
        stats_pb2.PROBE_TYPE_READINESS: (5, 1, 1),
        stats_pb2.PROBE_TYPE_LIVENESS: (4, 1, 1),
    }


def test_failures_of_questions_out_of_turn_do_not_count() -> None:
    world = probed_world(readiness_probe=probe(period=10))
    world.outcomes["c0"] = FAILURE
    world.settle()
    world.live(9)
    assert len(world.asked) > 1
    assert counted(world) == {stats_pb2.PROBE_TYPE_READINESS: (0, 0, 0)}
    world.live(1)
    assert counted(world) == {stats_pb2.PROBE_TYPE_READINESS: (0, 1, 0)}


def test_counts_go_on_over_a_restart_of_the_container() -> None:
    world = running(liveness_probe=probe(period=10, failures=2))
    world.live(20)
    world.outcomes["c0"] = FAILURE
    world.live(20.5)
    assert world.main().restart_count == 1
    world.outcomes["c0"] = SUCCESS
    world.live(10)
    assert counted(world) == {stats_pb2.PROBE_TYPE_LIVENESS: (3, 2, 0)}
    (stats,) = world.machine.probe_stats()
    assert stats.container == "c0"


def test_what_was_never_asked_is_not_told() -> None:
    assert running(readiness_probe=probe(delay=100)).machine.probe_stats() == []


ANSWERS = st.tuples(st.sampled_from(ProbeResult), st.integers(0, 100 * SECOND), st.booleans())


@settings(deadline=None)
@given(st.lists(ANSWERS))
def test_every_answer_is_in_one_bucket(answers: list[tuple[ProbeResult, int, bool]]) -> None:
    counts = ProbeCounts()
    for result, took, early in answers:
        counts.count(ProbeOutcome(result, ""), took, early=early)
    told = counts.stats("c0", Kind.READINESS)
    assert len(told.durations) == len(BOUNDS) + 1 == 12
    timed = [
        took
        for result, took, early in answers
        if result is not ProbeResult.FAILURE and not (early and result is ProbeResult.ERROR)
    ]
    assert sum(told.durations) == told.successful + told.unknown == len(timed)
    assert told.duration_nanoseconds == sum(timed)
    for index, bound in enumerate(BOUNDS):
        assert sum(told.durations[: index + 1]) == sum(took <= bound for took in timed)
