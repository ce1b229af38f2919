"""Streams of a pool as its client has them: logs, commands, attached containers, ports.

Each is one gRPC call; what is written waits while the pool takes no more.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Generic, TypeVar

import grpc.aio

from vknode.pool.errors import RETRYABLE, PoolFailure, from_rpc_error
from vknode.pool.v1 import stream_pb2

PIECE = 64 * 1024

T = TypeVar("T")


def cancelled_from_outside() -> bool:
    """gRPC raises CancelledError also where only its call was cancelled, by us."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


class _Stream(Generic[T]):
    """What all streaming calls share. Cancelling a read or a write ends the call."""

    def __init__(self, call: Any) -> None:
        self._call = call

    async def _read(self) -> T | None:
        """None at the end. Raises PoolFailure."""
        try:
            message = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        except grpc.aio.UsageError as error:
            raise PoolFailure(RETRYABLE, "the connection to the pool was closed") from error
        except asyncio.CancelledError:
            if cancelled_from_outside():
                raise
            raise PoolFailure(RETRYABLE, "the stream was closed on this side") from None
        return None if message is grpc.aio.EOF else message

    async def close(self) -> None:
        """End the call, whatever its state; idempotent. The pool ends what it began."""
        self._call.cancel()


class LogStream(_Stream[stream_pb2.StreamLogsResponse]):
    """A container's log: iterate over it, and `close` it."""

    async def open(self) -> None:
        self._first = await self._read()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        response = self._first
        while response is not None:
            if response.data:
                yield response.data
            response = await self._read()


class _Session(_Stream[T]):
    """A stream in both directions, after its `Start`."""

    def __init__(self, call: Any, request: Any) -> None:
        super().__init__(call)
        self._request = request
        self._sending = asyncio.Lock()
        self._over = False

    async def open(self, start: Any) -> None:
        """Send `start` and wait for the answer to it. Raises PoolFailure."""
        await self._send(start)
        if await self._read() is None:
            raise PoolFailure(RETRYABLE, "the pool ended the stream before it began")

    async def _send(self, message: Any) -> None:
        """Waits while the pool takes no more. Without effect once the call is over:
        how it ended is told by the reading side."""
        async with self._sending:
            if self._over:
                return
            try:
                await self._call.write(message)
            except (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError):
                self._over = True
            except asyncio.CancelledError:
                if cancelled_from_outside():
                    raise
                self._over = True


class ExecSession(_Session[stream_pb2.ExecResponse]):
    """A running command. Input and output may be used by two tasks at once."""

    _code: int | None = None

    async def receive(self) -> AsyncIterator[tuple[int, bytes]]:
        """(1, stdout) or (2, stderr) until the command's end. Raises PoolFailure."""
        while (response := await self._read()) is not None:
            kind = response.WhichOneof("message")
            if kind == "stdout":
                yield 1, response.stdout
            elif kind == "stderr":
                yield 2, response.stderr
            elif kind == "exit":
                self._code = response.exit.code
                self._over = True
                return  # the last message; `close` tells the pool that we have it

    async def exit_code(self) -> int:
        """After `receive` has ended. Raises PoolFailure where the pool sent none."""
        if self._code is None:
            raise PoolFailure(RETRYABLE, "the stream ended without an exit code")
        return self._code

    async def write(self, data: bytes) -> None:
        for start in range(0, len(data), PIECE):
            await self._send(self._request(stdin=data[start : start + PIECE]))

    async def close_write(self) -> None:
        await self._send(self._request(close_stdin=self._request.CloseStdin()))

    async def resize(self, width: int, height: int) -> None:
        await self._send(self._request(resize=stream_pb2.TerminalSize(width=width, height=height)))


class AttachSession(ExecSession):
    """A container's own streams. `receive` ends with the container; `exit_code` always
    raises, the container's code is in its status."""


class ForwardedConnection(_Session[stream_pb2.PortForwardResponse]):
    """A TCP connection into a sandbox."""

    async def receive(self) -> AsyncIterator[bytes]:
        """Data until the sandbox's side sends no more. Raises PoolFailure."""
        while (response := await self._read()) is not None:
            kind = response.WhichOneof("message")
            if kind == "data":
                yield response.data
            elif kind == "close_write":
                return

    async def write(self, data: bytes) -> None:
        for start in range(0, len(data), PIECE):
            await self._send(self._request(data=data[start : start + PIECE]))

    async def close_write(self) -> None:
        await self._send(self._request(close_write=self._request.CloseWrite()))

    async def finish(self) -> None:
        """Once both sides have said that they write no more: until the pool has ended the call,
        having taken everything. Raises PoolFailure."""
        while await self._read() is not None:
            pass
