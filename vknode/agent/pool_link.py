"""What the node side asks of a connection to a pool. The pool client implements it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from typing import Protocol

from vknode.pool.v1 import cell_pb2


class PoolLink(Protocol):
    """A live view of one pool's cells. Level-triggered: the callback only says "look again"."""

    @property
    def name(self) -> str:
        """The pool's name in the configuration."""

    @property
    def cells(self) -> Mapping[str, cell_pb2.Cell]:
        """The cells last announced, by name: all that have Nodes, and so many others. They stay
        while the pool cannot be reached."""

    @property
    def cells_left_out(self) -> int:
        """How many more the pool has announced, that are not kept. Right after each of its
        lists, an estimate between them."""

    def may_have(self, cell: str) -> bool:
        """It is not in `cells`, but may be among those left out."""

    def keep_cells_of_nodes(self, cells: Callable[[], AbstractSet[str]]) -> None:
        """`cells` tells which ones have Nodes: they are never left out. Once the Nodes that
        exist are known; until then nothing is left out."""

    @property
    def reachable(self) -> bool:
        """The cell stream is open and its snapshot has been taken into `cells`. Raw: no
        hysteresis, the node side adds it."""

    @property
    def problem(self) -> str:
        """Why it is not reachable, in a few words for a person; '' while it is."""

    def on_cells_changed(self, callback: Callable[[], None]) -> None:
        """Calls back, in the event loop, after `cells` or `reachable` has changed."""
