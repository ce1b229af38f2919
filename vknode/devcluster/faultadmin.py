"""The fault proxy's levers over HTTP on loopback, for scripts in any language.

| request                | body (JSON)                     | does                         |
|------------------------|---------------------------------|------------------------------|
| `GET /faults`          |                                 | lists them                   |
| `POST /faults`         | as `FaultProxy.fail` or `delay` | adds one                     |
| `DELETE /faults`       |                                 | clears all                   |
| `POST /watches/drop`   | `how`: reset, clean             | ends every watch             |
| `POST /watches/expire` |                                 | sends 410 into every watch   |
| `POST /cut`            | `seconds`, `how`: reset, hang   | breaks all connections       |
| `POST /mend`           |                                 | ends a cut                   |

A fault is `{"status": 429, "path": "/pods", "count": 3, "retry_after": 1}` or
`{"delay": 0.5, "method": "PATCH", "probability": 0.1}`. A wrong key or value is
answered 400 with the reason. Nothing secret passes here.
"""

from __future__ import annotations

from typing import Any

from aiohttp import web

from vknode.devcluster.faultproxy import FaultProxy, Rule


class FaultAdmin:
    """Serves the levers of one proxy on a free port of 127.0.0.1."""

    def __init__(self, proxy: FaultProxy) -> None:
        self._proxy = proxy
        self._runner: web.AppRunner | None = None
        self.url = ""

    async def start(self) -> None:
        """Listen."""
        app = web.Application(middlewares=[_refusals])
        app.add_routes(
            [
                web.get("/faults", self._list),
                web.post("/faults", self._add),
                web.delete("/faults", self._clear),
                web.post("/watches/drop", self._drop),
                web.post("/watches/expire", self._expire),
                web.post("/cut", self._cut),
                web.post("/mend", self._mend),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _list(self, request: web.Request) -> web.Response:
        return web.json_response(
            {
                "faults": [_shown(rule) for rule in self._proxy.rules],
                "open_watches": self._proxy.open_watches,
                "cut": self._proxy.is_cut,
            }
        )

    async def _add(self, request: web.Request) -> web.Response:
        body = await _body(request)
        if "delay" in body:
            rule = self._proxy.delay(body.pop("delay"), **body)
        else:
            rule = self._proxy.fail(**body)
        return web.json_response(_shown(rule), status=201)

    async def _clear(self, request: web.Request) -> web.Response:
        self._proxy.clear()
        return web.json_response({})

    async def _drop(self, request: web.Request) -> web.Response:
        return web.json_response(
            {"watches": await self._proxy.drop_watches(**await _body(request))}
        )

    async def _expire(self, request: web.Request) -> web.Response:
        return web.json_response({"watches": await self._proxy.expire_watches()})

    async def _cut(self, request: web.Request) -> web.Response:
        await self._proxy.cut(**await _body(request))
        return web.json_response({})

    async def _mend(self, request: web.Request) -> web.Response:
        await self._proxy.mend()
        return web.json_response({})


@web.middleware
async def _refusals(request: web.Request, handler: Any) -> web.StreamResponse:
    try:
        answer: web.StreamResponse = await handler(request)
        return answer
    except (ValueError, TypeError) as problem:  # a wrong value, an unknown key
        return web.json_response({"error": str(problem)}, status=400)


async def _body(request: web.Request) -> dict[str, Any]:
    if not request.can_read_body:
        return {}
    body = await request.json()
    if not isinstance(body, dict):
        raise ValueError("the body must be a JSON object")
    return body


def _shown(rule: Rule) -> dict[str, Any]:
    return {
        "id": rule.id,
        "status": rule.status,
        "delay": rule.delay,
        "method": rule.method,
        "path": rule.path.pattern,
        "watch": rule.watch,
        "probability": rule.probability,
        "count": rule.count,
        "hits": rule.hits,
    }
