"""Writing to a client that may have gone, or that does not read.

A client holds what is kept for it as long as it likes unless somebody looks whether it takes
anything. What it takes is seen at its socket: our own buffers, and the kernel's, let go in lumps
that a slow client needs more than a minute for.
"""

from __future__ import annotations

import asyncio
import fcntl
import struct
import termios
from collections.abc import Coroutine
from typing import Any

from aiohttp import web


class ClientGone(Exception):
    """The connection has ended. No OSError, which a disk may have raised as well: also
    `ConnectionAbortedError`, by FUSE."""


class NothingTaken(Exception):
    """The client has taken nothing for as long as it may."""


class PatientWriter:
    """One answer. `patience`: seconds in which a client must take something. All methods raise
    `ClientGone`, and those that write `NothingTaken`."""

    def __init__(self, request: web.Request, response: web.StreamResponse, patience: float) -> None:
        self._request = request
        self._response = response
        self._patience = patience

    async def prepare(self) -> None:
        try:
            await self._response.prepare(self._request)
        except ConnectionError as error:
            raise ClientGone from error

    async def write(self, data: bytes) -> None:
        await self._through(self._response.write(data))

    async def write_eof(self) -> None:
        """Returns when nearly all is on its way."""
        await self._through(self._response.write_eof())

    async def _through(self, work: Coroutine[Any, Any, None]) -> None:
        writing = asyncio.create_task(work)
        try:
            before = self._not_taken()
            while True:
                await asyncio.wait({writing}, timeout=self._patience)
                if writing.done():
                    return writing.result()
                now = self._not_taken()
                if now == before:
                    raise NothingTaken
                before = now
        except ConnectionError as error:
            raise ClientGone from error
        finally:
            writing.cancel()

    def _not_taken(self) -> int | None:
        """Bytes that the kernel keeps until the client's own has taken them (SIOCOUTQ in
        tcp(7)); while we wait the same number means that it takes none. None: it has gone."""
        transport = self._request.transport
        socket = None if transport is None else transport.get_extra_info("socket")
        if socket is None or socket.fileno() < 0:
            return None
        answer = fcntl.ioctl(socket.fileno(), termios.TIOCOUTQ, bytes(4))
        (count,) = struct.unpack("i", answer)
        return int(count)
