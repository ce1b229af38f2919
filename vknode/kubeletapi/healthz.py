"""GET /healthz: whether the agent serves its nodes. Each node's own health is in its conditions."""

from __future__ import annotations

from aiohttp import web

# The checks of a kubelet, each of which can be asked for alone.
_CHECKS = ("ping", "log", "syncloop")


class Healthz:
    """Whoever can answer has its event loop running, which is all that these checks are about."""

    def add_routes(self, router: web.UrlDispatcher) -> None:
        router.add_get("/healthz", self._handle, allow_head=False)
        for check in _CHECKS:
            router.add_get(f"/healthz/{check}", self._handle, allow_head=False)

    async def _handle(self, request: web.Request) -> web.Response:
        if "verbose" in request.query and request.path == "/healthz":
            lines = [f"[+]{check} ok\n" for check in _CHECKS]
            return web.Response(text="".join(lines) + "healthz check passed\n")
        return web.Response(text="ok")
