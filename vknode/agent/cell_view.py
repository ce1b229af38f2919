"""The cells that a pool announces, as far as the agent remembers them. Pure.

Theory of operation. A pool may announce any number of cells, under ever new names, and must not
fill the agent's memory. A cell with a Node must never be forgotten: without its cell a Node is
taken as gone, and its Pods are moved. So all cells with a Node are kept, in whatever order they
are announced, and of the others so many, the earliest first. `pools[].maxCells` bounds the Nodes,
so both are bounded. Of what is left out there is only a count: such a cell is heard of again when
it is announced again, alone or in the pool's next list.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet

from vknode.pool.client import CellsUpdate
from vknode.pool.v1 import cell_pb2


class CellView:
    """`take` each update, then `trim` while there is `excess`."""

    def __init__(self, most_without_node: int | None) -> None:
        """How many cells without a Node are kept; None: all."""
        self._most = most_without_node
        self.cells: Mapping[str, cell_pb2.Cell] = {}
        # How many were left out: right after a list of the pool. What changes of them later has
        # no name here to be counted by.
        self.left_out = 0
        # Cells that had a Node whenever some were left out; None: none was.
        self._never_left_out: AbstractSet[str] | None = None

    def take(self, update: CellsUpdate) -> None:
        removed = set(update.removed)
        if update.snapshot:
            self.left_out, self._never_left_out = 0, None
            cells: dict[str, cell_pb2.Cell] = {}
        else:
            cells = dict(self.cells)
        for name in removed:
            if cells.pop(name, None) is None:
                self.left_out = max(0, self.left_out - 1)
        cells.update((cell.name, cell) for cell in update.cells if cell.name not in removed)
        self.cells = cells

    @property
    def excess(self) -> bool:
        """There may be too many: `trim` knows, from the Nodes."""
        return self._most is not None and len(self.cells) > self._most

    def trim(self, with_node: AbstractSet[str]) -> None:
        """`with_node`: the cells that have Nodes now, all of the pool's."""
        if self._most is None:
            return
        room, kept = self._most, {}
        for name, cell in self.cells.items():
            if name not in with_node:
                if room == 0:
                    continue
                room -= 1
            kept[name] = cell
        if dropped := len(self.cells) - len(kept):
            self.cells = kept
            self.left_out = max(self.left_out, dropped)
            known = self._never_left_out
            self._never_left_out = with_node if known is None else known & with_node

    def may_have(self, cell: str) -> bool:
        """It is not in `cells`, but may be among those left out."""
        known = self._never_left_out
        return known is not None and cell not in self.cells and cell not in known
