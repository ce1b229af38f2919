"""What the node side needs of the kubelet API: a port for each node.

The agent announces ports and does not know who listens there; the composition root joins them.
"""

from __future__ import annotations

from typing import Protocol


class NodePortError(Exception):
    """A node cannot have a port of its own; the text names the setting and the fix."""


class NodePorts(Protocol):
    """Ports at which nodes are asked, one each."""

    def claim(self, node: str, port: int) -> None:
        """The Node object names this port, from an earlier process: it is kept for the node
        if that can be."""

    async def open(self, node: str) -> int:
        """The node's own port; the same as before if it has one. Raises `NodePortError`."""

    async def close(self, node: str) -> None:
        """The node has gone. Unknown: no error."""
