"""What the Pods of each node take together, kept up to date as they come and go. Pure.

A node's loads are taken once, when the first Pod wants to be admitted to it (`begin`); from then
on each change is a few additions, however many Pods the node has.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from vknode.translate.admission import Load, Port, Used


@dataclass(slots=True)
class _Node:
    loads: dict[str, Load] = field(default_factory=dict)
    milli_cpu: int = 0
    memory: int = 0
    storage: int = 0
    others: dict[str, int] = field(default_factory=dict)
    ports: dict[Port, int] = field(default_factory=dict)

    def add(self, load: Load, sign: int) -> None:
        self.milli_cpu += sign * load.milli_cpu
        self.memory += sign * load.memory
        self.storage += sign * load.storage
        for name, amount in load.others:
            self.others[name] = self.others.get(name, 0) + sign * amount
        for port in load.ports:
            count = self.ports.get(port, 0) + sign
            if count:
                self.ports[port] = count
            else:
                self.ports.pop(port, None)


class NodeLoads:
    """By node and Pod (UID)."""

    def __init__(self) -> None:
        self._nodes: dict[str, _Node] = {}

    def is_begun(self, node: str) -> bool:
        return node in self._nodes

    def begin(self, node: str, loads: Iterable[tuple[str, Load]]) -> None:
        """These Pods are there already, whether they fit or not."""
        self._nodes[node] = _Node()
        for uid, load in loads:
            self.set(node, uid, load)

    def set(self, node: str, uid: str, load: Load) -> None:
        """The Pod takes this now. Of a node that nobody asked for yet nothing is kept."""
        there = self._nodes.get(node)
        if there is None:
            return
        self.drop(node, uid)
        there.loads[uid] = load
        there.add(load, 1)

    def drop(self, node: str, uid: str) -> None:
        """The Pod takes nothing any more."""
        there = self._nodes.get(node)
        load = None if there is None else there.loads.pop(uid, None)
        if there is not None and load is not None:
            there.add(load, -1)

    def used(self, node: str) -> Used:
        there = self._nodes[node]
        return Used(
            len(there.loads),
            there.milli_cpu,
            there.memory,
            there.storage,
            there.others,
            there.ports,
        )
