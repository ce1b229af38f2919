"""GET /pods"""

from aiohttp import web

from vknode.kubeletapi.backend import PodBackend
from vknode.kubeletapi.node_identity import node_of


class Pods:
    """The Pods of the node that is asked; on the shared port those of all our nodes."""

    def __init__(self, backend: PodBackend) -> None:
        self._backend = backend

    def add_routes(self, router: web.UrlDispatcher) -> None:
        router.add_get("/pods", self._pods, allow_head=False)
        router.add_get("/pods/", self._pods, allow_head=False)

    async def _pods(self, request: web.Request) -> web.Response:
        items = b",".join(self._backend.pods_json(node_of(request)))
        body = b'{"kind":"PodList","apiVersion":"v1","metadata":{},"items":[' + items + b"]}\n"
        return web.Response(body=body, content_type="application/json")
