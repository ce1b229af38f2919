"""A local HTTP server that answers by script, for faults that a real API server will not make."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web

from vknode.kube.connection import Connection

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Seen:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    groups: list[str]
    body: bytes


@dataclass
class ScriptedServer:
    """Answers requests with the next item of `script`; when it is empty, holds them open. With
    `mute` it holds every watch open, and the script is for the rest."""

    script: list[Answer] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    url: str = ""
    mute: bool = False
    _runner: web.AppRunner | None = None
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)

    async def __aenter__(self) -> ScriptedServer:
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping.set()
        assert self._runner is not None
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(
            Seen(
                request.method,
                request.path,
                dict(request.query),
                dict(request.headers),
                request.headers.getall("Impersonate-Group", []),
                await request.read(),
            )
        )
        if self.script and not (self.mute and "watch" in request.query):
            return await self.script.pop(0)(request)
        response = web.StreamResponse()
        await response.prepare(request)
        with suppress(ConnectionError):
            await self._stopping.wait()
        return response

    async def until_seen(self, count: int) -> None:
        async with asyncio.timeout(60):
            while len(self.seen) < count:
                await asyncio.sleep(0.005)


def body(status: int, document: Any, headers: dict[str, str] | None = None) -> Answer:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.json_response(document, status=status, headers=headers)

    return answer


def failure(
    code: int, reason: str, message: str = "no", headers: dict[str, str] | None = None
) -> Answer:
    return body(code, status(code, reason, message), headers)


def status(code: int, reason: str, message: str = "no") -> dict[str, Any]:
    return {"kind": "Status", "code": code, "reason": reason, "message": message}


def pod(name: str, uid: str, revision: int, **meta: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "name": name,
            "namespace": "default",
            "uid": uid,
            "resourceVersion": str(revision),
            **meta,
        }
    }


def page(items: Iterable[Any], revision: int, token: str = "") -> Answer:
    meta = {"resourceVersion": str(revision)}
    if token:
        meta["continue"] = token
    return body(200, {"metadata": meta, "items": list(items)})


def event(kind: str, obj: Any) -> bytes:
    return json.dumps({"type": kind, "object": obj}).encode() + b"\n"


def watch(*pieces: bytes, abort: bool = False, hold: float = 0.0) -> Answer:
    """A watch response of these pieces; then it ends, or is cut off hard with `abort`."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for piece in pieces:
            await response.write(piece)
            await asyncio.sleep(0.01)
        if hold:
            await asyncio.sleep(hold)
        if abort:
            assert request.transport is not None
            request.transport.abort()
        return response

    return answer


def plain_connection(url: str, *, token: str | None = None) -> Connection:
    return Connection(
        server=url,
        source="test",
        session=aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()),
        token=token,
    )
