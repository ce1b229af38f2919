"""Cells and a pool link made by hand, for tests of the node side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from vknode.pool.v1 import cell_pb2


def cell(name: str, zone: str = "az1", **fields: Any) -> cell_pb2.Cell:
    given: dict[str, Any] = {
        "name": name,
        "zone": zone,
        "region": "here",
        "capacity": {"cpu": "8", "memory": "16Gi", "pods": "110", "ephemeral-storage": "50Gi"},
        "allocatable": {"cpu": "7500m", "memory": "15Gi", "pods": "110"},
        "health": cell_pb2.HEALTH_HEALTHY,
        "info": cell_pb2.NodeInfo(
            operating_system="linux",
            architecture="amd64",
            container_runtime_version="containerd://1.6.20",
            kernel_version="6.1.0",
            os_image="Debian",
        ),
    }
    return cell_pb2.Cell(**{**given, **fields})


class HandLink:
    """A `PoolLink` whose pool is the test."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.reachable = False
        self.problem = "not tried yet"
        self.cells_left_out = 0
        self._cells: dict[str, cell_pb2.Cell] = {}
        self._callbacks: list[Callable[[], None]] = []

    @property
    def cells(self) -> Mapping[str, cell_pb2.Cell]:
        return self._cells

    def may_have(self, cell: str) -> bool:
        return False

    def keep_cells_of_nodes(self, cells: Callable[[], AbstractSet[str]]) -> None:
        """It keeps all."""

    def on_cells_changed(self, callback: Callable[[], None]) -> None:
        self._callbacks.append(callback)

    def announce(self, *cells: cell_pb2.Cell) -> None:
        """A snapshot: the pool is reachable and has exactly these."""
        self._cells = {cell.name: cell for cell in cells}
        self.reachable = True
        self.problem = ""
        self._tell()

    def lose(self, problem: str = "connection refused") -> None:
        self.reachable = False
        self.problem = problem
        self._tell()

    def _tell(self) -> None:
        for callback in self._callbacks:
            callback()
