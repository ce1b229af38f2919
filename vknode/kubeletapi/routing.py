"""The router, and what it answers before an endpoint is looked for."""

from __future__ import annotations

import warnings

from aiohttp import web


class Router(web.UrlDispatcher):
    """Refuses what a client expects and nobody here knows, as Go's net/http does: 417, and the
    end of the connection. aiohttp's own answer quotes it, and fails for bytes that are no text.
    """

    async def resolve(self, request: web.Request) -> web.UrlMappingMatchInfo:
        expected = request.headers.get("Expect", "")
        if expected and expected.lower() != "100-continue":
            refusal = web.HTTPExpectationFailed(text="")
            refusal.force_close()
            raise refusal
        return await super().resolve(request)


def application(middlewares: list[object]) -> web.Application:
    """An application with such a router."""
    with warnings.catch_warnings():
        # A router of one's own goes with aiohttp 4; its minor version is pinned.
        warnings.simplefilter("ignore", DeprecationWarning)
        return web.Application(middlewares=middlewares, router=Router())  # type: ignore[arg-type]  # aiohttp's name for middlewares is private
