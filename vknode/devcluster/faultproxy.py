"""A reverse proxy between the agent and the API server that misbehaves on request.

    agent ──TLS, HTTP/1.1──> fault proxy ──TLS──> kube-apiserver

Everything passes through unchanged (bearer tokens, impersonation headers, watches
as they come) until a test or `vknode dev fault` asks otherwise:

| fault            | what the agent sees                                            |
|------------------|----------------------------------------------------------------|
| `fail`           | a Status with this code (410, 429 with Retry-After, 500 …)     |
| `delay`          | the answer comes later                                         |
| `drop_watches`   | every open watch ends: by RST in the middle, or cleanly        |
| `expire_watches` | every open watch gets an ERROR event with code 410, then ends  |
| `cut`            | every connection breaks and new requests are reset, or hang, until `mend` |

`fail` and `delay` take matching requests, n times or by chance; with `lost_answer`
the API server has done the work all the same. A watch is forwarded line by line,
so that an event put in never splits another.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import re
import socket
import ssl
import struct
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from yarl import URL

from vknode.devcluster.pki import KeyPair

#: Not forwarded, per RFC 9110 section 7.6.1; Host and Content-Length are made anew.
HOP_BY_HOP = frozenset(
    {
        "connection",
        "content-length",
        "host",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
REASONS = {
    404: "NotFound",
    409: "Conflict",
    410: "Expired",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}
MAX_BODY = 64 << 20


@dataclass
class Rule:
    """A fault for matching requests. `path` is searched for in the path with its query."""

    id: int
    status: int = 0  # 0: no failure, only the delay
    method: str = ""  # "": any
    path: re.Pattern[str] = field(default_factory=lambda: re.compile(""))
    watch: bool | None = None  # None: watches and other requests
    probability: float = 1.0
    count: int | None = None  # how many requests it still hits; None: all
    retry_after: int | None = None  # seconds
    delay: float = 0.0  # seconds
    lost_answer: bool = False
    hits: int = 0

    def matches(self, method: str, target: str, *, watch: bool) -> bool:
        """Whether it applies to this request, chance aside."""
        return (
            self.count != 0
            and self.method in ("", method)
            and self.watch in (None, watch)
            and self.path.search(target) is not None
        )


def status_object(code: int, message: str, retry_after: int | None = None) -> dict[str, Any]:
    """A Kubernetes Status as the API server would send it."""
    status: dict[str, Any] = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": REASONS.get(code, ""),
        "code": code,
    }
    if retry_after is not None:
        status["details"] = {"retryAfterSeconds": retry_after}
    return status


class FaultProxy:
    """See the module. All methods belong to the proxy's event loop, but `fail`, `delay`
    and `clear` may be called from any thread."""

    def __init__(
        self, *, upstream: str, upstream_ca: Path, serving: KeyPair, seed: int | None = None
    ) -> None:
        self._upstream = upstream
        self._upstream_tls = ssl.create_default_context(cafile=str(upstream_ca))
        self._serving = serving
        self._random = random.Random(seed)
        self._ids = itertools.count(1)
        self._session: aiohttp.ClientSession | None = None
        self._runner: web.AppRunner | None = None
        # An open watch: the future that ends it, resolved with the way it shall end.
        self._watches: set[asyncio.Future[str]] = set()
        self._transports: set[asyncio.Transport] = set()
        self._cut: str = ""  # "", "reset" or "hang"
        self._mended = asyncio.Event()
        self._mender: asyncio.TimerHandle | None = None
        self.rules: list[Rule] = []
        #: Requests by method and path, faults included; for tests that count.
        self.requests: Counter[tuple[str, str]] = Counter()
        self.port = 0

    @property
    def url(self) -> str:
        """What the agent's kubeconfig names as its server."""
        return f"https://127.0.0.1:{self.port}"

    @property
    def open_watches(self) -> int:
        """How many watches are streaming now."""
        return len(self._watches)

    @property
    def is_cut(self) -> str:
        """ "reset" or "hang" while cut off, else ""."""
        return self._cut

    # -- life

    async def start(self) -> None:
        """Listen on a free port of loopback."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._upstream_tls, limit=0),
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None),
            # The agent's own headers, and no others, reach the API server.
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        )
        app = web.Application(client_max_size=MAX_BODY)
        app.router.add_route("*", "/{tail:.*}", self._handle)
        self._runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1
        )
        await self._runner.setup()
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(self._serving.cert, self._serving.key)
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=tls)
        await site.start()
        self.port = int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        """End all connections and stop listening."""
        if self._mender is not None:
            self._mender.cancel()
        self._mended.set()
        self._reset_connections()
        if self._runner is not None:
            await self._runner.cleanup()
        if self._session is not None:
            await self._session.close()

    # -- faults

    def fail(
        self,
        status: int,
        *,
        method: str = "",
        path: str = "",
        watch: bool | None = None,
        probability: float = 1.0,
        count: int | None = None,
        retry_after: int | None = None,
        lost_answer: bool = False,
    ) -> Rule:
        """Answer matching requests with `status`; see `Rule`. Raises ValueError for a
        status below 400 or a `path` that is no regular expression."""
        if not 400 <= status <= 599:
            raise ValueError(f"status is {status}: must be an error, 400 to 599")
        if not 0 < probability <= 1:
            raise ValueError(f"probability is {probability}: must be above 0 and at most 1")
        return self._add(
            Rule(
                next(self._ids),
                status=status,
                method=method.upper(),
                path=_pattern(path),
                watch=watch,
                probability=probability,
                count=count,
                retry_after=retry_after,
                lost_answer=lost_answer,
            )
        )

    def delay(
        self,
        seconds: float,
        *,
        method: str = "",
        path: str = "",
        watch: bool | None = None,
        probability: float = 1.0,
        count: int | None = None,
    ) -> Rule:
        """Hold matching requests back for `seconds`, then forward them."""
        return self._add(
            Rule(
                next(self._ids),
                delay=seconds,
                method=method.upper(),
                path=_pattern(path),
                watch=watch,
                probability=probability,
                count=count,
            )
        )

    def clear(self, rule: Rule | None = None) -> None:
        """Forget one rule, or all."""
        self.rules = [one for one in self.rules if rule is not None and one is not rule]

    async def drop_watches(self, how: str = "reset") -> int:
        """End every open watch, by `reset` or `clean`; how many there were."""
        if how not in ("reset", "clean"):
            raise ValueError(f"how is {how!r}: must be reset or clean")
        return self._end_watches(how)

    async def expire_watches(self) -> int:
        """Send an ERROR event with code 410 into every open watch and end it."""
        return self._end_watches("expire")

    async def cut(self, seconds: float | None = None, how: str = "reset") -> None:
        """Break every connection and all new requests, until `mend` or for `seconds`.
        With `hang`, nothing is broken but nothing is answered either."""
        if how not in ("reset", "hang"):
            raise ValueError(f"how is {how!r}: must be reset or hang")
        self._cut = how
        self._mended.clear()
        if self._mender is not None:
            self._mender.cancel()
            self._mender = None
        if how == "reset":
            self._reset_connections()
        if seconds is not None:
            self._mender = asyncio.get_running_loop().call_later(seconds, self._mend)

    async def mend(self) -> None:
        """End a cut."""
        self._mend()

    # -- inside

    def _add(self, rule: Rule) -> Rule:
        self.rules = [*self.rules, rule]
        return rule

    def _mend(self) -> None:
        self._cut = ""
        self._mended.set()

    def _end_watches(self, how: str) -> int:
        open_ones = [end for end in self._watches if not end.done()]
        for end in open_ones:
            end.set_result(how)
        return len(open_ones)

    def _reset_connections(self) -> None:
        for transport in list(self._transports):
            _reset(transport)
        self._transports.clear()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        transport = request.transport
        if isinstance(transport, asyncio.Transport):
            self._transports.add(transport)
            # Connections that ended by themselves are forgotten as new ones come.
            self._transports = {one for one in self._transports if not one.is_closing()}
        target = request.path_qs
        watch = request.query.get("watch") in ("true", "1")
        self.requests[request.method, request.path] += 1
        body = await request.read()
        if self._cut == "reset":
            return self._broken(request)
        if self._cut == "hang":
            await self._mended.wait()
        refusal: Rule | None = None
        for rule in self.rules:
            if not rule.matches(request.method, target, watch=watch):
                continue
            if rule.probability < 1 and self._random.random() >= rule.probability:
                continue
            rule.hits += 1
            if rule.count is not None:
                rule.count -= 1
            if rule.delay:
                await asyncio.sleep(rule.delay)
            if rule.status:
                refusal = rule
                break
        if refusal is not None:
            if refusal.lost_answer:
                async with self._forward(request, body) as answer:
                    await answer.read()
            return _refuse(refusal)
        try:
            async with self._forward(request, body) as answer:
                return await self._pass_on(request, answer, watch=watch)
        except aiohttp.ClientError:
            return self._broken(request)

    def _forward(self, request: web.Request, body: bytes) -> Any:
        assert self._session is not None
        headers = [
            (name, value)
            for name, value in request.headers.items()
            if name.lower() not in HOP_BY_HOP
        ]
        return self._session.request(
            request.method,
            # The raw target: decoding and encoding again would change selectors.
            URL(self._upstream + request.raw_path, encoded=True),
            headers=headers,
            data=body or None,
            allow_redirects=False,
        )

    async def _pass_on(
        self, request: web.Request, answer: aiohttp.ClientResponse, *, watch: bool
    ) -> web.StreamResponse:
        response = web.StreamResponse(status=answer.status, reason=answer.reason)
        for name, value in answer.headers.items():
            if name.lower() not in HOP_BY_HOP:
                response.headers.add(name, value)
        if watch and answer.status == 200:
            await response.prepare(request)
            return await self._watch(request, response, answer)
        length = answer.headers.get("Content-Length")
        if length is not None:
            response.content_length = int(length)
        await response.prepare(request)
        async for chunk in answer.content.iter_any():
            await response.write(chunk)
        await response.write_eof()
        return response

    async def _watch(
        self,
        request: web.Request,
        response: web.StreamResponse,
        answer: aiohttp.ClientResponse,
    ) -> web.StreamResponse:
        end: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._watches.add(end)
        rest = b""
        reading: asyncio.Task[bytes] | None = None
        try:
            while True:
                reading = asyncio.create_task(answer.content.readany())
                await asyncio.wait((reading, end), return_when=asyncio.FIRST_COMPLETED)
                if end.done():
                    break
                chunk = reading.result()
                if not chunk:
                    await response.write(rest)
                    await response.write_eof()
                    return response
                head, newline, rest = (rest + chunk).rpartition(b"\n")
                if newline:
                    await response.write(head + newline)
            how = end.result()
            if how == "reset":
                return self._broken(request, response)
            if how == "expire":
                expired = status_object(410, "too old resource version: 1 (2)")
                await response.write(
                    json.dumps({"type": "ERROR", "object": expired}).encode() + b"\n"
                )
            await response.write_eof()
            return response
        finally:
            self._watches.discard(end)
            if reading is not None and not reading.done():
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)

    def _broken(
        self, request: web.Request, response: web.StreamResponse | None = None
    ) -> web.StreamResponse:
        if isinstance(request.transport, asyncio.Transport):
            _reset(request.transport)
        return response or web.Response(status=502)


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as problem:
        raise ValueError(f"path is {text!r}: not a regular expression: {problem}") from problem


def _refuse(rule: Rule) -> web.Response:
    message = f"fault {rule.id} of the fault proxy"
    status = status_object(rule.status, message, rule.retry_after)
    answer = web.json_response(status, status=rule.status)
    if rule.retry_after is not None:
        answer.headers["Retry-After"] = str(rule.retry_after)
    return answer


def _reset(transport: asyncio.Transport) -> None:
    """Close by RST, as a router that forgot the connection would."""
    if transport.is_closing():
        return  # asyncio's TLS transport forgets its socket as it closes
    raw = transport.get_extra_info("socket")
    if raw is not None:
        with contextlib.suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
