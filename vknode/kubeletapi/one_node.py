"""For answers that can only be about one node."""

from __future__ import annotations

from aiohttp import web

from vknode.kubeletapi.node_identity import node_of
from vknode.kubeletapi.responses import plain_error
from vknode.kubeletapi.usage import NodeBackend


class OneNode:
    """Which node is meant, also on the shared port while there is only one."""

    def __init__(self, backend: NodeBackend) -> None:
        self._backend = backend

    def of(self, request: web.Request) -> str | web.Response:
        """The node's name, or the refusal. Whoever collects metrics must not take what all nodes
        use together for each one's."""
        asked = node_of(request)
        if asked is None:
            nodes = self._backend.nodes()
            if len(nodes) == 1:
                return nodes[0]
            return plain_error(
                404,
                f"this port serves {len(nodes)} nodes; ask a node's own, which is in its "
                "status.daemonEndpoints.kubeletEndpoint.Port",
            )
        if not self._backend.has_node(asked):
            return plain_error(404, "the node of this port has gone")
        return asked
