"""GET /pods and /healthz"""

from aiohttp import web

from vknode.kubeletapi.backend import PodBackend


class Pods:
    """The Pods of all our nodes: one listener serves them all, and the request names none."""

    def __init__(self, backend: PodBackend) -> None:
        self._backend = backend

    def add_routes(self, router: web.UrlDispatcher) -> None:
        router.add_get("/pods", self._pods, allow_head=False)
        router.add_get("/pods/", self._pods, allow_head=False)
        router.add_get("/healthz", self._healthz, allow_head=False)

    async def _pods(self, _request: web.Request) -> web.Response:
        items = b",".join(self._backend.pods_json())
        body = b'{"kind":"PodList","apiVersion":"v1","metadata":{},"items":[' + items + b"]}\n"
        return web.Response(body=body, content_type="application/json")

    async def _healthz(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok")
