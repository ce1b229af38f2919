"""GET /configz: the configuration of a kubelet, as far as it applies to a virtual node.

Source: k8s.io/component-base configz, and setConfigz in cmd/kubelet/app.
"""

from __future__ import annotations

import msgspec
from aiohttp import web

from vknode.kubeletapi.backend import BackendError
from vknode.kubeletapi.one_node import OneNode
from vknode.kubeletapi.responses import plain_error
from vknode.kubeletapi.usage import NodeBackend


class Configz:
    """One node's configuration."""

    def __init__(self, backend: NodeBackend, one_node: OneNode) -> None:
        self._backend = backend
        self._one_node = one_node

    def add_routes(self, router: web.UrlDispatcher) -> None:
        router.add_get("/configz", self._handle, allow_head=False)

    async def _handle(self, request: web.Request) -> web.Response:
        node = self._one_node.of(request)
        if isinstance(node, web.Response):
            return node
        try:
            body = {"kubeletconfig": self._backend.kubelet_configuration(node)}
        except BackendError as error:
            return plain_error(404, str(error))
        return web.Response(body=msgspec.json.encode(body), content_type="application/json")
