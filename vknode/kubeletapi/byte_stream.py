"""Bytes in both directions, whatever carries them."""

import asyncio
from collections.abc import Coroutine
from typing import Any, Protocol

from aiohttp import WSMsgType, web


class ByteStream(Protocol):
    """Reading and writing may be done by two tasks at once."""

    async def read(self) -> bytes:
        """The next bytes, of any number; empty at the end."""

    async def write(self, data: bytes) -> None:
        """Returns when more may be given. Raises ConnectionResetError when nobody is there."""


async def send_whole(sending: Coroutine[Any, Any, None]) -> None:
    """All who wait for a WebSocket of aiohttp to take more share one future: who is cancelled
    meanwhile must not cancel it for the others. Raises ConnectionResetError, and nothing else,
    where the client has gone: aiohttp has several words for it."""
    try:
        await asyncio.shield(sending)
    except ConnectionResetError:
        raise
    except ConnectionError as error:
        raise ConnectionResetError(str(error)) from None


class WebSocketBytes:
    """The payload of binary messages; where one ends means nothing."""

    def __init__(self, socket: web.WebSocketResponse[bool]) -> None:
        self._socket = socket

    async def read(self) -> bytes:
        while True:
            try:
                message = await self._socket.receive()
            except ConnectionError:
                return b""  # a ping could not be answered
            if message.type is not WSMsgType.BINARY:
                return b""
            if message.data:
                data: bytes = message.data
                return data

    async def write(self, data: bytes) -> None:
        await send_whole(self._socket.send_bytes(data))
