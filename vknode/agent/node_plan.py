"""Which Nodes shall exist, and which cell each one stands for. Pure: time is passed in.

Theory of operation. A Node's name comes from the template; the plan keeps for each name the one
(pool, cell) it belongs to:

==========  ==========================================  ====================================
state       meaning                                     leaves when
==========  ==========================================  ====================================
adopted     found in the API server, its pool has not   announced → live; pool lists its
            announced its cells yet                     cells without it → gone
live        announced now                               missing in the pool's list → gone
gone        its pool, reachable, does not list it       announced again → live;
                                                        `gone_after` seconds → to be deleted
==========  ==========================================  ====================================

A Node stays its pool's in all of these states, as long as that pool is configured: another pool
that announces its cell would be given its Pods, with their Secrets. It may have the name once the
Node is deleted.

Why a Node is not deleted as soon as its cell is: with the Node go all its Pods, by force, without
anybody waiting for them to end. A pool that comes back from a restart with a list that is not
complete yet must not have that effect. NotReady (reason CellGone) already makes Kubernetes place
the Pods elsewhere; the deletion later is mere tidiness, so it can wait and it has a brake.

A name claimed by two cells is a conflict: the first keeps it. A pool whose cells the configuration
names may announce no other ones, and none may have more Nodes than the configuration allows it: a
new cell waits until one of its pool's Nodes, gone ones included, is deleted. Nodes that are there
stay, also under a limit that was lowered. A pool's link remembers all cells with Nodes and only so
many others (`cell_view`). A Node that is adopted later, say from a backup, may stand for a cell
that the link has left out: it stays adopted until the pool's next list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from vknode.agent import names
from vknode.agent.config import DeletionConfig, render_node_name
from vknode.agent.node_objects import ObservedNode, cell_problems
from vknode.agent.patterns import EVERY, fits_any
from vknode.pool.v1 import cell_pb2


class CellId(NamedTuple):
    pool: str
    cell: str


@dataclass(frozen=True, slots=True)
class NodeNameConflict:
    """Two cells come to the same Node name; as text, what is wrong and how to mend it."""

    node: str
    holder: CellId
    claimant: CellId
    template: str

    def __str__(self) -> str:
        return (
            f"Node name {self.node!r} is claimed twice: by cell {self.holder.cell!r} of pool "
            f"{self.holder.pool!r} and by cell {self.claimant.cell!r} of pool "
            f"{self.claimant.pool!r}; rename a cell, or put {{pool}} into nodeNameTemplate "
            f"(now {self.template!r})"
        )


def name_taken(node: str, managed_by: str) -> str:
    """What is wrong where the API server has a Node of that name that is not ours."""
    owner = (
        f"belongs to the agent {managed_by!r}"
        if managed_by
        else f"was not made by vknode (no label {names.LABEL_MANAGED_BY})"
    )
    return (
        f"a Node {node!r} exists that {owner}; it is left alone and the cell is not shown: "
        "rename the cell, change nodeNameTemplate, or delete that Node"
    )


def deletion_braked(pool: str, doomed: int, allowed: int) -> str:
    """What is wrong where the brake holds Nodes back."""
    return (
        f"{doomed} Nodes of pool {pool} lost their cells, at most {allowed} may be "
        "deleted at once; none is. If the cells are really gone, delete the Nodes by hand"
    )


class NodeIdentity(NamedTuple):
    """A registered Node: its name, UID, and the cell it stands for."""

    name: str
    uid: str
    pool: str
    cell: str


@dataclass
class PlannedNode:
    """`cell` None: not announced yet. `gone_since`: monotonic seconds, None unless gone."""

    name: str
    id: CellId
    cell: cell_pb2.Cell | None = None
    gone_since: float | None = None

    @property
    def live(self) -> bool:
        return self.cell is not None and self.gone_since is None


@dataclass
class Changes:
    """What an update of one pool's cells led to."""

    nodes: set[str]
    conflicts: list[NodeNameConflict]
    # (cell, what is wrong with it)
    refused: list[tuple[str, str]]
    # Those among them that the pool may not have.
    foreign: list[str] = field(default_factory=list)
    # Cells for which the pool has no Node left.
    beyond: list[str] = field(default_factory=list)


class NodePlan:
    def __init__(
        self,
        template: str,
        *,
        gone_after: float,
        deletion: DeletionConfig,
        pools: Mapping[str, Sequence[str]],
        most: Mapping[str, int],
    ) -> None:
        """`pools` are the configured ones, with the patterns of the cells that they may have;
        `most`, how many Nodes each may have."""
        self._pools = pools
        self._most = most
        self.nodes: dict[str, PlannedNode] = {}
        self._template = template
        self._gone_after = gone_after
        self._deletion = deletion

    def adopt(self, observed: ObservedNode) -> PlannedNode:
        """Takes over a Node of ours that an earlier process registered."""
        name = observed.metadata.name
        node = self.nodes.get(name)
        if node is None:
            node = PlannedNode(name, CellId(observed.pool, observed.cell))
            self.nodes[name] = node
        return node

    def update(
        self,
        pool: str,
        cells: Mapping[str, cell_pb2.Cell],
        now: float,
        may_have: Callable[[str], bool] = lambda cell: False,
    ) -> Changes:
        """The pool, reachable, has exactly these cells, and may have others: none of those that
        had Nodes all along (`PoolLink.may_have`)."""
        changes = Changes(set(), [], [])
        claimed: set[str] = set()
        room = self._most[pool] - len(self.of_pool(pool))
        for cell in cells.values():
            id = CellId(pool, cell.name)
            name = render_node_name(self._template, cell=cell.name, pool=pool, zone=cell.zone)
            if not fits_any(cell.name, self._pools.get(pool, (EVERY,))):
                # As if it had not been announced: a Node that it had goes.
                changes.foreign.append(cell.name)
                why = f"pool {pool} may not have it (pools[].cells in the configuration)"
                changes.refused.append((cell.name, why))
                continue
            claimed.add(name)
            problems = cell_problems(cell)
            if not names.is_node_name(name):
                problems.append(f"{name!r} is not a Node name (a-z, 0-9, '-', '.'; at most 63)")
            if problems:
                # A Node it already has keeps the last good facts: a broken announcement is no
                # proof that the cell is gone.
                changes.refused.append((cell.name, "; ".join(problems)))
                continue
            room -= self._claim(name, id, cell, changes, room)
        for node in self.nodes.values():
            if node.id.pool == pool and node.name not in claimed and node.gone_since is None:
                if node.cell is None and may_have(node.id.cell):
                    continue
                node.gone_since = now
                changes.nodes.add(node.name)
        return changes

    def _claim(
        self, name: str, id: CellId, cell: cell_pb2.Cell, changes: Changes, room: int
    ) -> int:
        """By how many Nodes the pool has more: 0 or 1."""
        node = self.nodes.get(name)
        if node is not None and node.id != id and self._is_held(node, id.pool):
            changes.conflicts.append(NodeNameConflict(name, node.id, id, self._template))
            return 0
        more = int(node is None or node.id.pool != id.pool)
        if more > max(room, 0):
            changes.beyond.append(id.cell)
            return 0
        if node is None:
            node = self.nodes[name] = PlannedNode(name, id)
        elif node.id == id and node.live and node.cell == cell:
            return 0
        node.id = id
        # The announcer may reuse its message object.
        node.cell = cell_pb2.Cell()
        node.cell.CopyFrom(cell)
        node.gone_since = None
        changes.nodes.add(name)
        return more

    def _is_held(self, node: PlannedNode, against: str) -> bool:
        return node.live or (node.id.pool != against and node.id.pool in self._pools)

    def of_pool(self, pool: str) -> list[PlannedNode]:
        return [node for node in self.nodes.values() if node.id.pool == pool]

    def cells_with_nodes(self, pool: str) -> frozenset[str]:
        """The cells whose Nodes there are, adopted and gone ones included."""
        return frozenset(node.id.cell for node in self.of_pool(pool))

    def removal_due_in(self, node: PlannedNode, now: float) -> float | None:
        """Seconds until the Node may be deleted, 0 when it may be now; None unless gone."""
        if node.gone_since is None:
            return None
        return max(0.0, node.gone_since + self._gone_after - now)

    def brake(self, pool: str, now: float) -> tuple[int, int] | None:
        """(doomed, allowed) when more Nodes of the pool are due for deletion than may go."""
        nodes = self.of_pool(pool)
        doomed = sum(1 for node in nodes if self.removal_due_in(node, now) == 0.0)
        allowed = max(self._deletion.brake_minimum, int(self._deletion.brake_share * len(nodes)))
        return (doomed, allowed) if doomed > allowed else None

    def braked(self, pools: Iterable[str], now: float) -> dict[str, float]:
        """How many Nodes the brake holds back, by pool."""
        return {pool: float(b[0] if (b := self.brake(pool, now)) else 0) for pool in pools}

    def forget(self, name: str) -> None:
        self.nodes.pop(name, None)
