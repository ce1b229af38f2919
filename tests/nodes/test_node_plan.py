"""Which Nodes exist: names are unique, a cell that went is not deleted in haste."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.nodes.cells import cell
from vknode.agent.config import DeletionConfig
from vknode.agent.node_plan import CellId, NodePlan
from vknode.pool.v1 import cell_pb2


def plan(template: str = "{cell}", minimum: int = 1) -> NodePlan:
    deletion = DeletionConfig(brake_share=0.3, brake_minimum=minimum)
    return NodePlan(template, gone_after=300, deletion=deletion)


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


def test_a_cell_that_moved_takes_its_name_along() -> None:
    p = plan()
    p.update("az1", of(cell("c1")), 0)
    p.update("az1", {}, 1)
    assert not p.update("az2", of(cell("c1")), 2).conflicts
    assert p.nodes["c1"].id == CellId("az2", "c1")
    assert p.update("az1", {}, 3).nodes == set()


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["az1", "az2"]), st.sets(st.sampled_from(["a", "b", "c"])), st.just(1)
        ),
        max_size=30,
    )
)
def test_each_name_has_one_live_owner_that_announces_it(
    steps: list[tuple[str, set[str], int]],
) -> None:
    p, now = plan(), 0.0
    last: dict[str, set[str]] = {}
    for pool, cells, delay in steps:
        now += delay
        changes = p.update(pool, of(*(cell(c) for c in cells)), now)
        last[pool] = cells
        for node in p.nodes.values():
            if node.live:
                assert node.id.cell in last[node.id.pool]
        for name in cells:
            holder = p.nodes[name].id
            assert p.nodes[name].live
            assert (holder.pool != pool) == any(c.node == name for c in changes.conflicts)
