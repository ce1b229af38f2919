"""Which port a node may have. Pure.

Theory of operation. A port should stay with its node: the API server asks there the moment after
an agent has restarted, and dashboards know a node by its address. So a node's first choice is the
port that its Node object names (`claim`); the second is a place in the range that follows from its
name alone, so that even a Node that was deleted comes back to the same port; then the next ones,
round the range. What another node has or claims is never offered, whoever comes first.

Without a range the kernel chooses, and only the claim is tried before.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass

LOWEST_KERNEL_PORT = 1024


@dataclass(frozen=True, slots=True)
class PortRange:
    """Both ends are part of it."""

    first: int
    last: int

    def __contains__(self, port: int) -> bool:
        return self.first <= port <= self.last

    def __len__(self) -> int:
        return self.last - self.first + 1

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


class PortBook:
    """Who has which port, and who had it last. At most one port a node, one node a port."""

    def __init__(self, range: PortRange | None, never: Collection[int] = ()) -> None:
        """`range` None: the kernel chooses. `never` are ports of others, such as the shared one."""
        self.range = range
        self.never = set(never)
        self._of_node: dict[str, int] = {}
        self._of_port: dict[int, str] = {}

    def claim(self, node: str, port: int) -> None:
        """The Node object names this port. Without effect if it cannot be kept: outside the
        range, or another node's, or if the node has one already."""
        usable = port in self.range if self.range else LOWEST_KERNEL_PORT <= port <= 65535
        if usable and port not in self.never and port not in self._of_port:
            self._of_node.setdefault(node, port)
            if self._of_node[node] == port:
                self._of_port[port] = node

    def candidates(self, node: str) -> Iterator[int]:
        """Ports to try, the best first; 0: whichever the kernel gives."""
        claimed = self._of_node.get(node)
        if claimed is not None:
            yield claimed
        if self.range is None:
            yield 0
            return
        size = len(self.range)
        if len(self._of_port) - (claimed is not None) >= size:
            return
        start = zlib.crc32(node.encode()) % size
        for step in range(size):
            port = self.range.first + (start + step) % size
            if port not in self._of_port and port not in self.never:
                yield port

    def take(self, node: str, port: int) -> None:
        """The node listens on this port now."""
        self.release(node)
        self._of_node[node] = port
        self._of_port[port] = node

    def release(self, node: str) -> None:
        """The node has gone; its port may be another's."""
        port = self._of_node.pop(node, None)
        if port is not None:
            del self._of_port[port]

    def __len__(self) -> int:
        """Ports that are had or claimed."""
        return len(self._of_port)
