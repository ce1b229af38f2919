"""The floor for logs: a kubelet that does nothing but send a file as it is.

It stands behind the API server as a node of its own, so that what is compared is the
agent and the pool against no work at all, with the same proxy before both.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from aiohttp import web

_PIECE = 256 * 1024


class LogStub:
    """Answers every log request with `file`, whatever is asked."""

    def __init__(self, file: Path, serving: tuple[Path, Path]) -> None:
        self._file = file
        self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._tls.load_cert_chain(*serving)
        self._runner: web.AppRunner | None = None

    async def start(self) -> int:
        """Returns its port on 127.0.0.1."""
        app = web.Application()
        app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", self._send)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._tls)
        await site.start()
        port: int = self._runner.addresses[0][1]
        return port

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _send(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await response.prepare(request)
        with self._file.open("rb", buffering=0) as file:
            while piece := file.read(_PIECE):
                await response.write(piece)
        return response
