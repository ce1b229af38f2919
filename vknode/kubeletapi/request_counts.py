"""Counts what the kubelet API serves, for metrics of whoever runs it."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

#: Endpoints whose requests last as long as their streams.
STREAMS = ("attach", "containerLogs", "exec", "portForward")
# Other paths are what anybody may ask for: they are one endpoint together.
_OTHERS = (
    *("checkpoint", "configz", "debug", "healthz", "log", "logs", "metrics", "pods", "run"),
    *("runningpods", "stats", "syncloop"),
)
# nginx' number for it; HTTP has none.
_CLIENT_LEFT = 499

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class RequestCounts:
    """`done`: requests by endpoint and status; `running`: those of now, by endpoint."""

    def __init__(self) -> None:
        self.done: Counter[tuple[str, str]] = Counter()
        self.running: Counter[str] = Counter()

    def streams(self) -> dict[str, float]:
        """Open streams by endpoint."""
        return {endpoint: float(self.running[endpoint]) for endpoint in STREAMS}

    def requests(self) -> dict[tuple[str, str], float]:
        """Requests that are over, by endpoint and HTTP status."""
        return {key: float(count) for key, count in self.done.items()}

    def middleware(self) -> Any:
        """The outermost one, so that it sees every answer."""

        @web.middleware
        async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
            endpoint = _endpoint(request.path)
            code = 500
            self.running[endpoint] += 1
            try:
                response = await handler(request)
                code = response.status
                return response
            except web.HTTPException as error:
                code = error.status
                raise
            except asyncio.CancelledError:
                code = _CLIENT_LEFT
                raise
            finally:
                self.running[endpoint] -= 1
                self.done[endpoint, str(code)] += 1

        return middleware


def _endpoint(path: str) -> str:
    first = path.lstrip("/").partition("/")[0]
    return first if first in STREAMS or first in _OTHERS else "other"
