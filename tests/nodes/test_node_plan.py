"""Which Nodes exist: names are unique, a cell that went is not deleted in haste."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from tests.nodes.cells import cell
from vknode.agent.config import DeletionConfig
from vknode.agent.names import ANNOTATION_CELL, LABEL_POOL
from vknode.agent.node_objects import ObservedNode, decode_node
from vknode.agent.node_plan import CellId, NodePlan
from vknode.pool.v1 import cell_pb2


def plan(
    template: str = "{cell}", minimum: int = 1, most: int = 1000, **cells: tuple[str, ...]
) -> NodePlan:
    """Two pools are configured; `cells` says which ones they may have, `most` how many Nodes."""
    deletion = DeletionConfig(brake_share=0.3, brake_minimum=minimum)
    pools = {pool: cells.get(pool, ("*",)) for pool in ("az1", "az2")}
    limits = dict.fromkeys(pools, most)
    return NodePlan(template, gone_after=300, deletion=deletion, pools=pools, most=limits)


def registered(name: str, pool: str) -> ObservedNode:
    """A Node of ours that an earlier agent registered for this pool's cell of the same name."""
    return decode_node(
        msgspec.json.encode(
            {
                "metadata": {
                    "name": name,
                    "uid": "u",
                    "resourceVersion": "1",
                    "labels": {LABEL_POOL: pool},
                    "annotations": {ANNOTATION_CELL: name},
                }
            }
        )
    )


def of(*cells: cell_pb2.Cell) -> dict[str, cell_pb2.Cell]:
    return {c.name: c for c in cells}


def test_two_pools_with_the_same_cell_conflict_and_the_first_keeps_it() -> None:
    p = plan()
    p.update("az1", of(cell("c1")), 0)
    changes = p.update("az2", of(cell("c1"), cell("c2")), 0)
    [conflict] = changes.conflicts
    for word in ("'c1'", "'az1'", "'az2'", "nodeNameTemplate"):
        assert word in str(conflict)
    assert p.nodes["c1"].id == CellId("az1", "c1")
    assert changes.nodes == {"c2"}


def test_with_the_pool_in_the_name_they_do_not() -> None:
    p = plan("{pool}-{cell}")
    p.update("az1", of(cell("c1")), 0)
    assert not p.update("az2", of(cell("c1")), 0).conflicts
    assert set(p.nodes) == {"az1-c1", "az2-c1"}


def test_the_same_announcement_again_changes_nothing() -> None:
    p = plan()
    assert p.update("az1", of(cell("c1")), 0).nodes == {"c1"}
    assert p.update("az1", of(cell("c1")), 1).nodes == set()
    assert p.update("az1", of(cell("c1", draining=True)), 1).nodes == {"c1"}


def test_a_cell_that_went_waits_and_one_that_returns_is_live_again() -> None:
    p = plan()
    p.update("az1", of(cell("c1"), cell("c2")), 0)
    assert p.update("az1", of(cell("c1")), 10).nodes == {"c2"}
    node = p.nodes["c2"]
    assert p.removal_due_in(node, 10) == 300
    assert p.removal_due_in(node, 400) == 0
    p.update("az1", of(cell("c1"), cell("c2")), 200)
    assert p.removal_due_in(node, 1000) is None


def test_the_brake_holds_when_too_many_went_at_once() -> None:
    p = plan()
    cells = [cell(f"c{i}") for i in range(10)]
    p.update("az1", of(*cells), 0)
    p.update("az1", of(*cells[:7]), 1)
    assert p.brake("az1", 301) is None  # three of ten
    p.update("az1", of(*cells[:6]), 2)
    assert p.brake("az1", 302) == (4, 3)
    p.update("az1", {}, 3)  # a pool that came back empty
    assert p.brake("az1", 1000) == (10, 3)


def test_a_broken_announcement_is_refused_and_leaves_its_node_alone() -> None:
    p = plan()
    p.update("az1", of(cell("c1")), 0)
    changes = p.update("az1", of(cell("c1", zone=""), cell("C_2")), 1)
    assert {name for name, _ in changes.refused} == {"c1", "C_2"}
    assert p.nodes["c1"].live and set(p.nodes) == {"c1"}


def test_a_node_stays_its_pools_until_it_is_deleted() -> None:
    """Whoever gets the Node gets its Pods, and their Secrets."""
    p = plan()
    p.update("az1", of(cell("c1")), 0)
    p.update("az1", {}, 1)
    assert p.update("az2", of(cell("c1")), 2).conflicts
    assert p.nodes["c1"].id == CellId("az1", "c1")
    p.forget("c1")
    assert not p.update("az2", of(cell("c1")), 400).conflicts
    assert p.nodes["c1"].id == CellId("az2", "c1")
    assert p.update("az1", {}, 401).nodes == set()


def test_a_registered_node_waits_for_its_pool_whoever_comes_first() -> None:
    """A new agent hears the liar before the pool that the Node belongs to."""
    p = plan()
    p.adopt(registered("c1", "az1"))
    (conflict,) = p.update("az2", of(cell("c1")), 0).conflicts
    assert (conflict.holder.pool, conflict.claimant.pool) == ("az1", "az2")
    assert not p.update("az1", of(cell("c1")), 1).conflicts
    assert p.nodes["c1"].live and p.nodes["c1"].id.pool == "az1"


def test_a_pool_that_is_configured_no_more_leaves_its_nodes_to_others() -> None:
    p = plan()
    p.adopt(registered("c1", "its-name-before"))
    assert not p.update("az2", of(cell("c1")), 0).conflicts
    assert p.nodes["c1"].id == CellId("az2", "c1")


def test_a_pool_may_announce_only_the_cells_that_the_configuration_gives_it() -> None:
    p = plan(az1=("az1-*", "spare"), az2=("az2-*",))
    assert not p.update("az1", of(cell("az1-a"), cell("spare")), 0).refused
    changes = p.update("az2", of(cell("az1-b"), cell("az2-a")), 0)
    assert changes.foreign == ["az1-b"]
    assert "az2 may not have it (pools[].cells" in dict(changes.refused)["az1-b"]
    assert set(p.nodes) == {"az1-a", "spare", "az2-a"}


def test_a_node_whose_cell_its_pool_may_not_have_any_more_is_gone() -> None:
    p = plan(az1=("az1-*",))
    p.adopt(registered("other", "az1"))
    assert p.update("az1", of(cell("other")), 5).nodes == {"other"}
    assert p.nodes["other"].gone_since == 5


POOLS = st.sampled_from(["az1", "az2"])
CELLS = st.sets(st.sampled_from(["a", "b", "c"]))
STEP = st.one_of(st.tuples(POOLS, CELLS), st.sampled_from(["a", "b", "c"]))


@given(st.sets(st.sampled_from(["a", "b", "c"])), st.lists(STEP, max_size=30))
def test_a_node_never_passes_from_pool_to_pool_but_by_its_deletion(
    adopted: set[str], steps: list[tuple[str, set[str]] | str]
) -> None:
    """Whatever the pools announce in any order, and whatever an earlier agent has left."""
    p, now = plan(), 0.0
    for name in adopted:
        p.adopt(registered(name, "az1"))
    owner = dict.fromkeys(adopted, "az1")
    last: dict[str, set[str]] = {}
    for step in steps:
        now += 1
        if isinstance(step, str):
            if step in p.nodes and p.nodes[step].gone_since is not None:
                p.forget(step)
                del owner[step]
            continue
        pool, cells = step
        changes = p.update(pool, of(*(cell(c) for c in cells)), now)
        last[pool] = cells
        for name in cells:
            holder = owner.setdefault(name, pool)
            assert (holder != pool) == any(c.node == name for c in changes.conflicts)
        for name, node in p.nodes.items():
            assert node.id == CellId(owner[name], name)
            if node.live:
                assert name in last[node.id.pool]
        for name in cells:
            assert owner[name] != pool or p.nodes[name].live


def test_a_pool_has_no_more_nodes_than_it_may_have() -> None:
    p = plan(most=2)
    changes = p.update("az1", of(*(cell(f"c{i}") for i in range(5))), 0)
    assert (changes.nodes, changes.beyond) == ({"c0", "c1"}, ["c2", "c3", "c4"])
    assert not p.update("az2", of(cell("d0"), cell("d1")), 0).beyond, "each pool has its own"
    # Those that are there stay, in whatever order they are named.
    changes = p.update("az1", of(cell("c4"), cell("c1"), cell("c0", draining=True)), 1)
    assert (changes.nodes, changes.beyond) == ({"c0"}, ["c4"])


def test_other_names_each_time_make_no_more_nodes() -> None:
    """A Node whose cell is gone counts until it is deleted."""
    p = plan(most=2)
    for second in range(10):
        p.update("az1", of(cell(f"a{second}"), cell(f"b{second}")), second)
    assert set(p.nodes) == {"a0", "b0"}
    p.forget("a0")
    assert p.update("az1", of(cell("a9"), cell("b9")), 400).beyond == ["b9"]
    assert set(p.nodes) == {"a9", "b0"}
    assert not p.update("az1", of(cell("b0")), 401).beyond, "one that returns needs no new place"


def test_a_limit_that_was_lowered_takes_no_node_away() -> None:
    p = plan(most=1)
    for name in ("c1", "c2"):
        p.adopt(registered(name, "az1"))
    changes = p.update("az1", of(cell("c3"), cell("c1"), cell("c2")), 0)
    assert (changes.nodes, changes.beyond) == ({"c1", "c2"}, ["c3"])
    assert all(p.nodes[name].live for name in ("c1", "c2"))


@given(st.sets(st.sampled_from("abc")), st.integers(1, 3), st.lists(STEP, max_size=30))
def test_no_announcement_leads_beyond_the_limit(
    adopted: set[str], most: int, steps: list[tuple[str, set[str]] | str]
) -> None:
    p = plan(most=most)
    for name in adopted:
        p.adopt(registered(name, "az1"))
    for now, step in enumerate(steps):
        if isinstance(step, str):
            if step in p.nodes and p.nodes[step].gone_since is not None:
                p.forget(step)
            continue
        pool, cells = step
        before = set(p.nodes)
        changes = p.update(pool, of(*(cell(c) for c in sorted(cells))), now)
        assert before <= set(p.nodes)
        assert len(p.of_pool("az1")) <= max(most, len(adopted))
        assert len(p.of_pool("az2")) <= most
        # Nobody is refused while there is room, and who is refused has no Node.
        assert not changes.beyond or len(p.of_pool(pool)) >= most
        assert not before.intersection(changes.beyond)
