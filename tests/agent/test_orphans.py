"""Orphans: seen twice, confirmed, and never too many at once."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from vknode.agent.orphans import Brake, OrphanCollector, OrphanRule, Suspect, divide
from vknode.kube.errors import Unreachable


def suspect(uid: str, pool: str = "az1") -> Suspect:
    return Suspect(uid, "default", f"pod-{uid}", pool, "cell-1")


@dataclass
class Source:
    present: list[Suspect] = field(default_factory=list)
    total: int = 100
    gone: set[str] = field(default_factory=set)
    unreachable: bool = False
    collected: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    brakes: list[list[Brake]] = field(default_factory=list)

    def suspects(self) -> Collection[Suspect]:
        return self.present

    def totals(self) -> Mapping[str, int]:
        return {"az1": self.total}

    async def confirm(self, suspect: Suspect) -> bool:
        self.asked.append(suspect.uid)
        if self.unreachable:
            raise Unreachable("away")
        return suspect.uid in self.gone

    def collect(self, suspect: Suspect) -> None:
        self.collected.append(suspect.uid)
        self.present = [one for one in self.present if one.uid != suspect.uid]

    def brake(self, brakes: list[Brake]) -> None:
        self.brakes.append(brakes)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def collector(source: Source, clock: Clock, share: float = 0.3, least: int = 10) -> OrphanCollector:
    return OrphanCollector(OrphanRule(share, least, again_after=20.0), source, clock=clock)


async def test_one_look_deletes_nothing_the_second_does() -> None:
    source, clock = Source([suspect("a")], gone={"a"}), Clock()
    looking = collector(source, clock)
    assert await looking.look() == 20.0
    assert source.collected == []
    assert source.asked == []
    clock.now += 20
    assert await looking.look() is None
    assert source.collected == ["a"]


async def test_whose_pod_exists_is_kept() -> None:
    source, clock = Source([suspect("a")]), Clock()
    looking = collector(source, clock)
    await looking.look()
    clock.now += 20
    assert await looking.look() is not None
    assert source.asked == ["a"]
    assert source.collected == []


async def test_no_answer_is_no_confirmation() -> None:
    source, clock = Source([suspect("a")], gone={"a"}, unreachable=True), Clock()
    looking = collector(source, clock)
    await looking.look()
    clock.now += 20
    await looking.look()
    assert source.collected == []
    source.unreachable = False
    clock.now += 60
    await looking.look()
    assert source.collected == ["a"]


async def test_a_suspect_that_was_cleared_starts_anew() -> None:
    source, clock = Source([suspect("a")], gone={"a"}), Clock()
    looking = collector(source, clock)
    await looking.look()
    clock.now += 15
    source.present = []
    assert await looking.look() is None
    clock.now += 5
    source.present = [suspect("a")]
    assert await looking.look() == 20.0
    assert source.collected == []


async def test_the_brake_holds_all_back_asks_nothing_and_comes_off() -> None:
    everyone = [suspect(str(i)) for i in range(40)]
    source, clock = Source(everyone, gone={s.uid for s in everyone}), Clock()
    looking = collector(source, clock)
    await looking.look()
    clock.now += 20
    assert await looking.look() == 60.0
    assert source.collected == []
    assert source.asked == []
    assert source.brakes == [[Brake("az1", 40, 30, 100)]]
    # Most Pods are back: what is left may go.
    source.present = everyone[:5]
    clock.now += 60
    await looking.look()
    assert source.collected == ["0", "1", "2", "3", "4"]
    assert source.brakes[-1] == []


async def test_a_pod_that_appears_while_we_ask_saves_its_sandbox() -> None:
    source, clock = Source([suspect("a")], gone={"a"}), Clock()

    async def confirm(suspect: Suspect) -> bool:
        source.present = []
        return True

    source.confirm = confirm  # type: ignore[method-assign]  # the moment that matters
    looking = collector(source, clock)
    await looking.look()
    clock.now += 20
    await looking.look()
    assert source.collected == []


@given(
    st.floats(0, 1),
    st.integers(0, 20),
    st.integers(0, 60),
    st.integers(0, 60),
)
def test_never_more_than_allowed_at_once(
    share: float, least: int, orphans: int, others: int
) -> None:
    total = orphans + others
    rule = OrphanRule(share, least)
    go, brakes = divide(rule, [suspect(str(i)) for i in range(orphans)], {"az1": total})
    assert len(go) <= max(least, int(share * total))
    assert len(go) in (0, orphans)
    assert bool(brakes) == (orphans > 0 and not go)


@given(st.lists(st.tuples(st.floats(0.1, 30), st.sets(st.sampled_from("abc"))), max_size=20))
def test_only_an_unbroken_suspicion_is_due(looks: list[tuple[float, set[str]]]) -> None:
    rule, now = OrphanRule(1.0, 100, again_after=20.0), 0.0
    since: dict[str, float] = {}
    for wait, present in looks:
        now += wait
        rule.observe(present, now)
        since = {uid: since.get(uid, now) for uid in present}
        assert set(rule.due(now)) == {uid for uid, at in since.items() if now - at >= 20.0}
