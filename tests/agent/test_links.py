"""What an agent keeps of what its pools announce."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.nodes.cells import cell
from tests.nodes.test_node_plan import plan, registered
from vknode.agent.cell_view import CellView
from vknode.agent.links import Link
from vknode.agent.node_plan import NodePlan
from vknode.pool.client import CellsUpdate, SandboxesUpdate, WatchState


class Announcer:
    """A pool that says this of its cells, and nothing of sandboxes."""

    connected = True
    watch_states: Mapping[str, WatchState] = {}

    def __init__(self, *updates: CellsUpdate) -> None:
        self._updates = updates

    async def cells(self) -> AsyncIterator[CellsUpdate]:
        for update in self._updates:
            yield update

    async def sandboxes(self) -> AsyncIterator[SandboxesUpdate]:
        return
        yield

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"nobody asked for {name}")


class Nobody:
    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"there are no sandboxes: {name}")


def announced(most: int | None, *updates: CellsUpdate) -> Link:
    """A link to a pool that says this; it may keep `most` cells beside those with Nodes."""
    link = Link("az1", lambda up, down: Announcer(*updates), most_without_node=most)
    link.serve(Nobody())
    return link


async def ended(link: Link) -> None:
    async with asyncio.timeout(30):
        await link.run()


async def heard(most: int | None, *updates: CellsUpdate) -> list[str]:
    link = announced(most, *updates)
    link.keep_cells_of_nodes(frozenset)
    await ended(link)
    return list(link.cells)


async def planned(p: NodePlan, *updates: CellsUpdate, beside: int) -> Link:
    """Each of the updates reaches the plan, by a link that keeps `beside` cells without Nodes."""
    link = announced(beside, *updates)
    link.keep_cells_of_nodes(lambda: p.cells_with_nodes("az1"))
    link.on_cells_changed(lambda: look(p, link))
    await ended(link)
    return link


def look(p: NodePlan, link: Link) -> None:
    p.update("az1", link.cells, 0.0, link.may_have)


def live(p: NodePlan) -> set[str]:
    return {node.name for node in p.nodes.values() if node.live}


def gone(p: NodePlan) -> set[str]:
    return {node.name for node in p.nodes.values() if node.gone_since is not None}


def change(*names: str, removed: tuple[str, ...] = (), snapshot: bool = False) -> CellsUpdate:
    return CellsUpdate(snapshot, [cell(name) for name in names], list(removed))


async def test_a_pool_without_end_of_cells_fills_no_memory() -> None:
    """Neither in one list nor one by one."""
    ever_more = [change(f"c{number}") for number in range(50)]
    assert await heard(3, change("a", "b", snapshot=True), *ever_more) == ["a", "b", "c0"]
    assert await heard(2, change("a", "b", "c", snapshot=True)) == ["a", "b"]
    names = [f"c{number}" for number in range(100)]
    p = plan(most=2)
    link = await planned(p, change(*names[:50], snapshot=True), *map(change, names), beside=3)
    assert (len(p.nodes), len(link.cells)) == (2, 5)


async def test_those_left_out_are_counted() -> None:
    link = await planned(plan(most=2), change(*"abcdefgh", snapshot=True), beside=3)
    assert link.cells_left_out == 5
    link = await planned(
        plan(most=2), change(*"abcdefgh", snapshot=True), change(removed=("g", "h")), beside=3
    )
    assert link.cells_left_out == 3
    link = await planned(
        plan(most=2), change(*"abcdefgh", snapshot=True), change("a", snapshot=True), beside=3
    )
    assert link.cells_left_out == 0


async def test_a_list_that_is_full_follows_its_cells() -> None:
    updates = (
        change("a", "b", "c", snapshot=True),
        change("b", removed=("a",)),
        change("d"),
        change("e", "d", removed=("e",)),
    )
    assert await heard(2, *updates) == ["b", "d"]
    assert await heard(2, *updates, change("x", "y", "z", snapshot=True)) == ["x", "y"]
    assert await heard(None, *updates) == ["b", "c", "d"]


async def test_a_list_in_another_order_takes_no_node_away() -> None:
    names = [f"c{number}" for number in range(20)]
    p = plan(most=5)
    await planned(
        p, change(*names, snapshot=True), change(*reversed(names), snapshot=True), beside=6
    )
    assert (live(p), gone(p)) == (set(names[:5]), set())


async def test_a_limit_far_below_the_nodes_that_are_there_takes_none_away() -> None:
    names = [f"c{number}" for number in range(50)]
    p = plan(most=1)
    for name in names[10:]:
        p.adopt(registered(name, "az1"))
    link = await planned(p, change(*names, snapshot=True), change("new"), beside=2)
    assert (live(p), gone(p)) == (set(names[10:]), set())
    assert len(link.cells) == 42


async def test_a_node_whose_cell_is_really_gone_goes_though_others_are_left_out() -> None:
    names = [f"c{number}" for number in range(50)]
    p = plan(most=1)
    for name in ("c40", "c41", "away"):
        p.adopt(registered(name, "az1"))
    await planned(p, change(*names, snapshot=True), change(removed=("c41",)), beside=2)
    assert (live(p), gone(p)) == ({"c40"}, {"c41", "away"})


async def test_a_list_that_comes_before_the_nodes_are_known_waits_for_them_whole() -> None:
    names = [f"c{number}" for number in range(50)]
    p = plan(most=1)
    link = announced(2, change(*names, snapshot=True), change("new"))
    told = asyncio.Event()
    link.on_cells_changed(told.set)
    running = asyncio.create_task(ended(link))
    await told.wait()
    for _ in range(10):  # the link's turn: it takes nothing more
        await asyncio.sleep(0)
    assert list(link.cells) == names
    for name in names[10:]:
        p.adopt(registered(name, "az1"))
    look(p, link)
    link.keep_cells_of_nodes(lambda: p.cells_with_nodes("az1"))
    await running
    look(p, link)
    assert (live(p), gone(p)) == (set(names[10:]), set())
    assert len(link.cells) == 42


async def test_cells_that_wait_take_the_room_that_appears() -> None:
    p = plan(most=2)
    first = change(*"abcdef", snapshot=True)
    link = await planned(p, first, change(removed=("a", "b")), beside=3)
    assert (live(p), gone(p)) == (set(), {"a", "b"})
    p.forget("a")
    look(p, link)
    assert live(p) == {"c"}
    p.forget("b")
    look(p, link)
    assert live(p) == {"c"}, "only the names of three were kept"
    # The pool lists its cells again: there is room.
    await planned(p, change(*"cdef", snapshot=True), beside=3)
    assert live(p) == {"c", "d"}


async def test_a_cell_that_was_left_out_is_taken_when_it_is_announced_again() -> None:
    p = plan(most=2)
    updates = change(*"abcdef", snapshot=True), change(removed=("a", "c")), change("f")
    link = await planned(p, *updates, beside=3)
    p.forget("a")
    look(p, link)
    assert (live(p), gone(p)) == ({"b", "f"}, set())


async def test_a_node_that_is_adopted_late_is_not_gone_for_being_left_out() -> None:
    """Until the pool's next list says what there is."""
    for later in (change("g", "h"), change(removed=("b",)), change()):
        p, view = plan(most=1), CellView(2)

        def say(update: CellsUpdate, p: NodePlan = p, view: CellView = view) -> None:
            view.take(update)
            if view.excess:
                view.trim(p.cells_with_nodes("az1"))
            p.update("az1", view.cells, 0.0, view.may_have)

        say(change(*"abcdef", snapshot=True))
        p.adopt(registered("f", "az1"))
        say(later)
        assert (live(p), gone(p)) == ({"a"}, set())
        say(change(*"abcdef", snapshot=True))
        assert (live(p), gone(p)) == ({"a", "f"}, set())
        p.adopt(registered("e", "az1"))
        say(change("a", snapshot=True))
        assert (live(p), gone(p)) == ({"a"}, {"e", "f"})


NAMES = st.sampled_from("abcdefgh")
LISTED = st.lists(NAMES, unique=True)
UPDATE = st.one_of(
    st.builds(lambda names: change(*names, snapshot=True), LISTED),
    st.builds(lambda names, less: change(*names, removed=tuple(less)), LISTED, LISTED),
)
STEP = st.one_of(
    UPDATE,
    st.just("look"),
    st.tuples(st.sampled_from(["adopt", "delete"]), NAMES),
)


@given(st.sets(NAMES), st.integers(1, 3), st.lists(STEP, max_size=40))
def test_no_node_is_ever_gone_whose_cell_is_there(
    found: set[str], most: int, steps: list[CellsUpdate | str | tuple[str, str]]
) -> None:
    """Whatever the pool says in any order, however late the plan looks, and whatever Nodes are
    found, at the start or later."""
    beside = most + 1
    p, view = plan(most=most), CellView(beside)
    has: set[str] = set()
    for name in found:
        p.adopt(registered(name, "az1"))
    for step in [*steps, "look"]:
        if isinstance(step, CellsUpdate):
            there = set() if step.snapshot else has
            has = (there | {c.name for c in step.cells}) - set(step.removed)
            view.take(step)
            if view.excess:
                view.trim(p.cells_with_nodes("az1"))
            assert set(view.cells) <= has
            others = has - p.cells_with_nodes("az1")
            kept = len(others.intersection(view.cells))
            assert kept <= beside
            if step.snapshot:
                assert kept == min(beside, len(others))
                assert view.left_out == len(others) - kept
        elif isinstance(step, tuple):
            what, name = step
            if what == "adopt":
                p.adopt(registered(name, "az1"))
            elif name in gone(p):
                p.forget(name)
        if step != "look":
            continue
        p.update("az1", view.cells, 0.0, view.may_have)
        assert not gone(p) & has
        assert live(p) <= has
        if not view.may_have("nobody"):  # nothing was left out since the last list
            assert gone(p) == set(p.nodes) - has
