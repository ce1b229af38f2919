"""The streams of exec and attach as those of a SPDY/3.1 connection.

Source: `k8s.io/cri-streaming` (remotecommand/httpstream.go). The client opens one stream for each
thing that its query promises, in any order, and says of what type each is; all must be there
within 30 s. From version 4 on the error stream carries a Status as JSON, before it plain text; a
terminal's size has a stream from version 3 on.

At the end the status goes onto the error stream, every stream is half-closed, and GOAWAY is sent:
moby/spdystream stops reading then, so nothing may follow it.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

import structlog
from aiohttp import web

from vknode.kubeletapi.backend import ExecSession
from vknode.kubeletapi.raw_connection import RawConnection
from vknode.kubeletapi.remote_session import Asked, ClientGone, Close, SessionLimits, give
from vknode.kubeletapi.spdy_server import SpdyServer, SpdyStream, StreamGone
from vknode.kubeletapi.streams import cancel_and_wait
from vknode.streaming.channels import Channel
from vknode.streaming.remotecommand import (
    SPDY_PROTOCOLS,
    SPDY_UPGRADE,
    STREAM_TYPE_HEADER,
    Outcome,
    ResizeParser,
    encode_outcome,
)

_log = structlog.get_logger()

CREATION_TIMEOUT = 30.0
_MAX_STREAMS = 8
_OUTPUTS = {Channel.STDOUT: "stdout", Channel.STDERR: "stderr"}


def choose_version(offered: Sequence[str]) -> str | None:
    """The client's first choice that we speak; "" where it names none; None: nothing fits."""
    if not offered:
        return ""
    return next((one for one in offered if one in SPDY_PROTOCOLS), None)


class SpdyWire:
    """One client, after the version was agreed on."""

    def __init__(
        self, request: web.Request, version: str, wanted: Asked, limits: SessionLimits
    ) -> None:
        self._version = version
        self._wanted = wanted
        self._ping_interval = limits.ping_interval
        self._connection = RawConnection(request)
        self._server = SpdyServer(self._connection, max_streams=_MAX_STREAMS)
        self._streams: dict[str, SpdyStream] = {}
        self._reader: asyncio.Task[None] | None = None
        self.response: web.StreamResponse | None = None

    async def open(self) -> None:
        headers = {"Upgrade": SPDY_UPGRADE}
        if self._version:
            headers["X-Stream-Protocol-Version"] = self._version
        self.response = await self._connection.open(headers)
        self._reader = asyncio.create_task(self._server.run())
        expected = self._expected()
        try:
            async with asyncio.timeout(CREATION_TIMEOUT):
                async for stream in self._server.streams():
                    kind = stream.headers.get(STREAM_TYPE_HEADER, "")
                    if kind not in expected or kind in self._streams:
                        _log.info("session_stream_refused", kind=kind[:20])
                        await stream.reset()
                        continue
                    self._streams[kind] = stream
                    if len(self._streams) == len(expected):
                        return
        except TimeoutError:
            raise ClientGone("timed out waiting for the client to create streams") from None
        raise ClientGone("the client left before its streams were there")

    def _expected(self) -> set[str]:
        wanted = self._wanted
        sizes = wanted.tty and self._version in SPDY_PROTOCOLS[:2]
        return {
            "error",
            *(("stdin",) if wanted.stdin else ()),
            *(("stdout",) if wanted.stdout else ()),
            *(("stderr",) if wanted.stderr else ()),
            *(("resize",) if sizes else ()),
        }

    async def send(self, channel: Channel, data: bytes) -> None:
        stream = self._streams[_OUTPUTS[channel]]
        try:
            await stream.write(data)
        except StreamGone:
            self._require_there()  # a client may do without one output

    async def feed(self, session: ExecSession) -> NoReturn:
        tasks: list[asyncio.Task[Any]] = [asyncio.create_task(self._watch())]
        if (stdin := self._streams.get("stdin")) is not None:
            tasks.append(asyncio.create_task(self._stdin(session, stdin)))
        if (resize := self._streams.get("resize")) is not None:
            tasks.append(asyncio.create_task(self._resize(session, resize)))
        try:
            await asyncio.gather(*tasks)
        finally:
            await cancel_and_wait(*tasks)
        raise AssertionError("the watch never returns")

    async def _watch(self) -> NoReturn:
        """What comes beyond the streams that were promised would hold up the others."""
        async for stream in self._server.streams():
            await stream.reset()
        raise ClientGone("the connection has ended")

    async def _stdin(self, session: ExecSession, stream: SpdyStream) -> None:
        with suppress(StreamGone):
            while data := await stream.read():
                await give(session, data)
        await session.close_stdin()

    async def _resize(self, session: ExecSession, stream: SpdyStream) -> None:
        sizes = ResizeParser()
        with suppress(StreamGone):
            while data := await stream.read():
                for size in sizes.feed(data):
                    await session.resize(size.width, size.height)

    async def keep(self) -> NoReturn:
        while True:
            await asyncio.sleep(self._ping_interval)
            await self._server.ping()

    async def tell(self, outcome: Outcome) -> None:
        as_json = self._version == SPDY_PROTOCOLS[0]
        data = encode_outcome(outcome, as_json=as_json)
        with suppress(StreamGone):
            if data:
                await self._streams["error"].write(data)

    async def close(self, why: Close) -> None:
        for stream in self._streams.values():
            stream.leave()
            with suppress(StreamGone):
                await stream.close_write()
        await self._server.go_away()
        if self._reader is not None:
            await cancel_and_wait(self._reader)
        if why is Close.DONE:
            await self._connection.finish()

    async def drop(self) -> None:
        if self._reader is not None:
            await cancel_and_wait(self._reader)
        self._connection.close()

    def _require_there(self) -> None:
        if self._reader is None or self._reader.done():
            raise ClientGone("the connection has ended")
