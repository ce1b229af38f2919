"""The bytes of a connection after an HTTP upgrade that aiohttp does not know: SPDY/3.1.

aiohttp has no supported hand-over of a connection. What it does for its own WebSockets works for
others too: an object with a parser's three methods gets what arrives once `set_parser` was called,
up to `connection_lost`, and the transport is written to beside it. That leans on internals of
aiohttp, whose minor version is pinned; `tests/kubeletapi/test_raw_connection.py` holds them.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Mapping

from aiohttp import web

# Bytes that wait to be read: reading from the socket pauses there, until they are taken.
_HIGH = 256 * 1024
# Seconds for a client to take what was written, and then to close.
_LEAVING, _LINGER = 3600.0, 30.0


class RawConnection:
    """A `ByteStream`; `open` first."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self._protocol = request.protocol
        self._transport = request.transport
        self._queue: deque[bytes] = deque()
        self._size = 0
        self._paused = False
        self._ended = False
        self._readable = asyncio.Event()

    async def open(self, headers: Mapping[str, str]) -> web.StreamResponse:
        """Answers 101 with these. Raises ConnectionResetError where nobody is there."""
        if self._transport is None:
            raise ConnectionResetError("the client has gone")
        response = web.StreamResponse(status=101, headers={"Connection": "Upgrade", **headers})
        response.force_close()  # it is nothing for a next request
        # What comes right after the answer is the new protocol's already.
        self._protocol.set_parser(self)  # type: ignore[arg-type]  # meant for its own readers
        await response.prepare(self._request)
        return response

    async def read(self) -> bytes:
        while not self._queue:
            if self._ended:
                return b""
            self._readable.clear()
            await self._readable.wait()
        data = b"".join(self._queue)
        self._queue.clear()
        self._size = 0
        if self._paused and self._transport is not None and not self._ended:
            self._paused = False
            self._transport.resume_reading()
        return data

    async def write(self, data: bytes) -> None:
        transport = self._protocol.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client has gone")
        transport.write(data)
        await self._drained()

    async def finish(self) -> None:
        """Waits until everything has left, and then a while for the client to close."""
        transport = self._protocol.transport
        with contextlib.suppress(ConnectionResetError, TimeoutError):
            if transport is not None:
                transport.set_write_buffer_limits(0)  # drained only once nothing is left
                async with asyncio.timeout(_LEAVING):
                    await self._drained()
            async with asyncio.timeout(_LINGER):
                while await self.read():
                    pass

    async def _drained(self) -> None:
        """All who wait share one future: who is cancelled must not cancel it for the others."""
        try:
            await asyncio.shield(self._protocol._drain_helper())
        except ConnectionError as error:
            raise ConnectionResetError(str(error)) from None

    def close(self) -> None:
        """What was written still leaves."""
        if self._protocol.transport is not None:
            self._protocol.transport.close()

    # -- what aiohttp calls ----------------------------------------------------------------

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        self._queue.append(bytes(data))
        self._size += len(data)
        self._readable.set()
        if self._size >= _HIGH and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        return False, b""

    def feed_eof(self) -> None:
        self._ended = True
        self._readable.set()

    def set_exception(self, *args: object, **options: object) -> None:
        self.feed_eof()
