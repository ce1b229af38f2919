"""What is told of cells that have no Node: each thing once, not at every look."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence

import structlog

from vknode.agent.authority import Wrong
from vknode.agent.claims import Claims

log = structlog.get_logger()

#: Cells beyond pools[].maxCells whose names the log has.
BEYOND_NAMED = 5


class CellRefusals:
    """`beyond`: how many cells each pool announces for which it may have no Node, forgotten ones
    included."""

    def __init__(self, pools: Iterable[str], claims: Claims | None) -> None:
        self._claims = claims
        self.beyond = dict.fromkeys(pools, 0)
        self._told: dict[tuple[str, str], str] = {}

    def refuse(self, pool: str, cell: str, problem: str) -> None:
        if self._told.get((pool, cell)) != problem:
            self._told[(pool, cell)] = problem
            log.error("cell_refused", pool=pool, cell=cell, problem=problem)

    def claim(self, pool: str, cell: str, problem: str, node: str = "") -> None:
        """The cell is another pool's, or not this one's."""
        if self._claims is not None:
            self._claims.refuse(pool, Wrong.CELL_TAKEN, cell, problem, node)

    def keep(self, pool: str, refused: Container[str]) -> None:
        """Only these cells of the pool are refused now; others are told again if they should be."""
        for key in [k for k in self._told if k[0] == pool and k[1] not in refused]:
            del self._told[key]

    def tell_beyond(self, pool: str, cells: Sequence[str], left_out: int) -> None:
        """One line for all of them: a pool could write the log full with their names. Those
        that the link has left out have none."""
        beyond = len(cells) + left_out
        if beyond and not self.beyond[pool]:
            log.error(
                "pool_has_too_many_cells",
                pool=pool,
                beyond=beyond,
                cells=list(cells[:BEYOND_NAMED]),
                hint="they are not shown as Nodes; raise pools[].maxCells if they should be",
            )
        self.beyond[pool] = beyond
