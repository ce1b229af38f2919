"""Port-forward over the streams of a SPDY connection, whatever carries that.

Theory of operation
-------------------
Each pair of streams (`vknode.streaming.portforward`) is a task of its own:

  what happens                     what follows
  -------------------------------  ---------------------------------------------------------
  both directions end              both streams are closed
  nobody listens, the pool fails   the text on the error stream, its end; the data stream reset
  the client resets a stream       the connection into the Pod is ended, and the error stream
  no second stream within 30 s     the text on the error stream, what is there is reset
  the client's connection ends     all of them are ended
"""

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

import structlog

from vknode.kubeletapi.backend import BackendError, PodBackend, PodView
from vknode.kubeletapi.forwarding import forward, trouble
from vknode.kubeletapi.spdy_server import SpdyServer, SpdyStream, StreamGone
from vknode.kubeletapi.streams import cancel_and_wait
from vknode.streaming.portforward import (
    STREAM_CREATION_TIMEOUT,
    BadStream,
    Pair,
    Pairing,
    PairTaken,
)

_log = structlog.get_logger()


class SpdyForwarder:
    """All forwarded connections of one client."""

    def __init__(self, backend: PodBackend, pod: PodView, server: SpdyServer) -> None:
        self._backend = backend
        self._pod = pod
        self._server = server
        self._pairing = Pairing()
        self._streams: dict[int, SpdyStream] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        # By the first stream of a pair: when the second one is late.
        self._expiries: dict[int, asyncio.TimerHandle] = {}

    async def run(self) -> None:
        """Until the client's connection has ended."""
        reader = asyncio.create_task(self._server.run())
        try:
            async for stream in self._server.streams():
                await self._take(stream)
            await reader
        finally:
            for expiry in self._expiries.values():
                expiry.cancel()
            await cancel_and_wait(reader, *self._tasks)

    async def _take(self, stream: SpdyStream) -> None:
        loop = asyncio.get_running_loop()
        self._streams[stream.id] = stream
        try:
            pair = self._pairing.add(stream.id, stream.headers, loop.time())
        except BadStream as error:
            _log.info("port_forward_stream_refused", pod=self._pod.name, why=str(error))
            await self._drop(stream.id)
        except PairTaken as error:
            await self._say(error.error_id, str(error))
            await self._drop(stream.id)
        else:
            if pair is None:
                self._expiries[stream.id] = loop.call_later(
                    STREAM_CREATION_TIMEOUT + 0.01, lambda: self._spawn(self._expire())
                )
                return
            for one in (pair.data_id, pair.error_id):
                if (expiry := self._expiries.pop(one, None)) is not None:
                    expiry.cancel()
            self._spawn(self._forward(pair))

    async def _forward(self, pair: Pair) -> None:
        data, error_stream = self._streams[pair.data_id], self._streams[pair.error_id]
        try:
            await forward(
                self._backend, self._pod, pair.port, data.read, data.write, data.close_write
            )
        except BackendError as error:
            await self._say(pair.error_id, trouble(self._pod, pair.port, error), last=True)
            await data.reset()
        except Exception:
            await data.reset()
            raise
        finally:
            # kubectl waits for the end of the errors, also where it has reset the data stream.
            with contextlib.suppress(StreamGone, ConnectionResetError):
                await error_stream.close_write()
            # Whoever still sends is not to hold the connection up.
            for stream in (data, error_stream):
                stream.leave()
                self._streams.pop(stream.id, None)

    async def _expire(self) -> None:
        for text, ids, error_id in self._pairing.expire(asyncio.get_running_loop().time()):
            await self._say(error_id, text, last=True)
            for stream_id in ids:
                self._expiries.pop(stream_id, None)
                await self._drop(stream_id)

    async def _say(self, error_id: int | None, text: str, *, last: bool = False) -> None:
        stream = self._streams.get(error_id) if error_id is not None else None
        if stream is not None and self._server.can_send(stream.id):
            await stream.write(text.encode(), fin=last)

    async def _drop(self, stream_id: int) -> None:
        stream = self._streams.pop(stream_id, None)
        if stream is not None:
            await stream.reset()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        async def guarded() -> None:
            with contextlib.suppress(StreamGone, ConnectionResetError):  # the client has gone
                await work

        task = asyncio.create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("port_forward_failed", pod=self._pod.name, exc_info=task.exception())
