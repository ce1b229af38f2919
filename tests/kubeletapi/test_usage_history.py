"""Present use and totals, from whatever a pool tells in whatever order."""

from hypothesis import given, settings
from hypothesis import strategies as st

from vknode.kubeletapi import ContainerUsage, NodeUsage, PodUsage, Usage
from vknode.kubeletapi.usage_history import SECOND, SPAN, Cpu, CpuWindow, Report, UsageHistory

START = 1_700_000_000 * SECOND
MILLI = SECOND // 1000


def node(at: int, *pods: PodUsage, living: frozenset[str] = frozenset()) -> NodeUsage:
    return NodeUsage("node-1", at, pods, living | {pod.uid for pod in pods})


def pod(uid: str, at: int, *cpus: int, whole: int | None = None, started: int = START) -> PodUsage:
    """With a container for each of the counters; `whole` is what the pool tells of all."""
    containers = [
        ContainerUsage(f"c{index}", Usage(at, cpu, 0), started) for index, cpu in enumerate(cpus)
    ]
    usage = None if whole is None else Usage(at, whole, 0)
    return PodUsage("default", uid, uid, containers, started, usage)


def test_the_first_answer_is_the_mean_since_the_start() -> None:
    report = UsageHistory().take(node(START + 10 * SECOND, pod("a", START + 10 * SECOND, SECOND)))
    assert report.containers["a", "c0"] == Cpu(START + 10 * SECOND, SECOND, 100_000_000)
    assert report.pods["a"].nano_cores == report.node.nano_cores == 100_000_000


def test_then_it_is_the_growth_since_the_last_answer() -> None:
    history = UsageHistory()
    first, second = START + 3600 * SECOND, START + 3615 * SECOND
    history.take(node(first, pod("a", first, 30 * SECOND)))
    report = history.take(node(second, pod("a", second, 45 * SECOND)))
    assert report.containers["a", "c0"].nano_cores == SECOND, "one whole core now"


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20 * SECOND), st.integers(0, 4000)), max_size=60))
def test_present_use_is_never_of_less_than_the_span(steps: list[tuple[int, int]]) -> None:
    """However often somebody asks: (time until the next measurement, thousandths of a core)."""
    window = CpuWindow(START)
    at, total = START, 0
    told: list[tuple[int, int]] = [(START, 0)]
    for wait, milli_cores in steps:
        at += wait
        total += wait // 1000 * milli_cores
        told.append((at, total))
        rate = window.add(at, total)
        assert len(window) <= 2 + SPAN // SECOND, "memory is bounded"
        assert (rate is not None) == (at - START >= SECOND)
        if rate is None:
            continue
        # It is the mean from an earlier measurement to now: at least SPAN ago if there is one,
        # and else from the start.
        old = [(t, c) for t, c in told if at - t >= SPAN] or [(START, 0)]
        assert rate in [(total - c) * SECOND // (at - t) for t, c in old]


def test_many_readers_see_the_same() -> None:
    """Five readers, each every 15 s, at their own moments: all see half a core."""
    window = CpuWindow(START)
    moments = sorted(
        START + (15 * n + 2 * reader) * SECOND for n in range(8) for reader in range(5)
    )
    rates = [window.add(at, (at - START) // 2) for at in moments]
    assert set(rates[1:]) == {SECOND // 2}


def test_a_restarted_container_begins_anew() -> None:
    history = UsageHistory()
    at = START + 60 * SECOND
    history.take(node(at, pod("a", at, 50 * SECOND)))
    later, again = at + 20 * SECOND, at + 10 * SECOND
    report = history.take(node(later, pod("a", later, SECOND, started=again)))
    assert report.containers["a", "c0"] == Cpu(later, SECOND, 100_000_000)
    assert report.pods["a"].total == 51 * SECOND, "a Pod's total does not fall"
    assert report.node.total == 51 * SECOND


COUNTERS = st.dictionaries(st.sampled_from("abc"), st.integers(0, 10), max_size=3)


@settings(deadline=None)
@given(st.lists(st.tuples(COUNTERS, st.booleans()), max_size=30))
def test_a_nodes_total_never_falls(rounds: list[tuple[dict[str, int], bool]]) -> None:
    """Pods come, work, restart, are missing in an answer, and go."""
    history = UsageHistory()
    totals: dict[str, int] = {}
    before = worked = 0
    for number, (growth, forget) in enumerate(rounds):
        at = START + (number + 1) * 10 * SECOND
        for uid, grown in growth.items():
            totals[uid] = totals.get(uid, 0) + grown
            worked += grown
        if forget:
            for uid in [uid for uid in totals if uid not in growth]:
                del totals[uid]
        living = frozenset(totals)
        report = history.take(
            node(at, *(pod(uid, at, whole=totals[uid]) for uid in growth), living=living)
        )
        assert report.node.total >= before
        assert report.node.total == worked, "and it is what all of them have worked"
        before = report.node.total


def test_a_pod_that_is_missing_once_is_not_counted_twice() -> None:
    history = UsageHistory()
    at = START + 10 * SECOND
    history.take(node(at, pod("a", at, whole=5 * SECOND)))
    report = history.take(node(at + SECOND, living=frozenset("a")))
    assert report.node.total == 5 * SECOND
    at += 2 * SECOND
    assert history.take(node(at, pod("a", at, whole=6 * SECOND))).node.total == 6 * SECOND


def test_a_counter_that_falls_adds_nothing() -> None:
    """A pool that lost its memory must not look like seconds of work."""
    history = UsageHistory()
    totals = []
    for step, whole in enumerate((50, 40, 45)):
        at = START + (step + 10) * SECOND
        totals.append(history.take(node(at, pod("a", at, whole=whole * SECOND))).node.total)
    assert totals == [50 * SECOND, 50 * SECOND, 55 * SECOND]


def test_a_node_without_pods_uses_nothing_now() -> None:
    report = UsageHistory().take(node(START))
    assert report.node == Cpu(START, 0, 0)
    assert report.since == START


def test_nothing_of_a_pod_that_has_gone_is_kept() -> None:
    history = UsageHistory()
    for number in range(100):
        at = START + number * SECOND
        history.take(node(at, pod(f"p{number}", at, MILLI)))
    empty: Report = history.take(node(START + 200 * SECOND))
    assert empty.node.total == 100 * MILLI
    assert not history._pods and not history._sum._last
