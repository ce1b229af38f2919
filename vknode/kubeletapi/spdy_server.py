"""The server's side of a SPDY/3.1 connection: the sans-IO core, moved by one reader.

Theory of operation
-------------------
`run` reads the connection and deals out what comes: a new stream to `streams`, data to the
queue of its stream. SPDY as Kubernetes speaks it has no flow control, so a stream whose queue is
full (or all queues together) holds up the reader, and with it the whole connection, until an
owner takes something: nothing piles up, and TCP tells the peer. An owner that is done with a
stream leaves, closes or resets it, and what still comes for it is dropped. Streams that nobody
takes are refused: the reader waits for no owner.

Whoever writes waits until the connection has taken it; frames of several streams never mix. The
reader itself never writes (a client that does not read may still have much to say): answers that
the protocol wants are left to a task of their own.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Mapping

from vknode.kubeletapi.byte_stream import ByteStream
from vknode.kubeletapi.streams import cancel_and_wait
from vknode.streaming.spdy import (
    DataReceived,
    Event,
    RstStatus,
    SpdyConnection,
    StreamEnded,
    StreamOpened,
    StreamReset,
)

# Bytes that wait for their owners, of one stream and of all, beside one piece more.
_QUEUE, _ALL_QUEUES = 256 * 1024, 1024 * 1024
# Streams that wait to be taken.
_BACKLOG = 64


class StreamGone(Exception):
    """The peer has reset the stream, or the connection is over."""


class SpdyStream:
    """One stream that the peer has opened."""

    def __init__(self, server: "SpdyServer", stream_id: int, headers: Mapping[str, str]) -> None:
        self.id = stream_id
        self.headers = headers
        self._server = server
        self._queue: deque[bytes] = deque()
        self._size = 0
        self._ended = False
        self._gone = False
        self._readable = asyncio.Event()

    async def read(self) -> bytes:
        """The next data; empty once the peer sends no more. Raises `StreamGone`."""
        while not self._queue:
            if self._gone:
                raise StreamGone
            if self._ended:
                return b""
            self._readable.clear()
            await self._readable.wait()
        data = self._queue.popleft()
        self._size -= len(data)
        self._server.taken(len(data))
        return data

    async def write(self, data: bytes, *, fin: bool = False) -> None:
        """Raises `StreamGone` where the peer has reset it, and ConnectionResetError."""
        await self._server.send(self.id, data, fin=fin)

    async def close_write(self) -> None:
        """No more from this side; nothing happens where that was said before."""
        if self._server.can_send(self.id):
            await self.write(b"", fin=True)

    async def reset(self) -> None:
        """Ends it in both directions."""
        self.leave()
        await self._server.reset(self.id)

    def leave(self) -> None:
        """Nobody reads it any more: it holds the connection up no longer."""
        self._gone = True
        self._queue.clear()
        self._server.taken(self._size)
        self._size = 0
        self._readable.set()

    # -- the reader's side -----------------------------------------------------------------

    @property
    def full(self) -> bool:
        return self._size >= _QUEUE and not self._gone

    def take(self, data: bytes) -> int:
        """How much of it waits now."""
        if self._gone:
            return 0
        self._queue.append(data)
        self._size += len(data)
        self._readable.set()
        return len(data)

    def end(self, *, gone: bool) -> None:
        self._ended = True
        self._gone = self._gone or gone
        self._readable.set()


class SpdyServer:
    """One connection after its upgrade: `run` in a task, `streams` elsewhere."""

    def __init__(self, carrier: ByteStream, *, max_streams: int = 1024) -> None:
        self._carrier = carrier
        self._core = SpdyConnection(client=False, max_streams=max_streams)
        self._streams: dict[int, SpdyStream] = {}
        self._new: deque[SpdyStream] = deque()
        self._over = False
        self._arrived = asyncio.Event()
        self._waiting = 0  # bytes in all queues
        self._room = asyncio.Event()
        self._to_write = asyncio.Event()
        self._writing = asyncio.Lock()

    async def run(self) -> None:
        """Until the end of the connection."""
        answers = asyncio.create_task(self._answer())
        try:
            while not self._core.closed:
                data = await self._carrier.read()
                events = self._core.receive_data(data) if data else self._core.receive_eof()
                for event in events:
                    await self._on(event)
                self._to_write.set()
                self._forget_closed()
            with contextlib.suppress(ConnectionResetError):
                await self._flush()  # why it is over
        except ConnectionResetError:
            pass  # as an end of file
        finally:
            self._over = True
            for stream in self._streams.values():
                stream.end(gone=True)
            self._streams.clear()
            self._arrived.set()
            await cancel_and_wait(answers)

    async def _on(self, event: Event) -> None:
        match event:
            case StreamOpened(stream_id, headers):
                self._opened(stream_id, headers)
            case DataReceived(stream_id, piece):
                if (found := self._streams.get(stream_id)) is not None:
                    while found.full or self._waiting >= _ALL_QUEUES:
                        self._room.clear()
                        await self._room.wait()
                    self._waiting += found.take(piece)
            case StreamEnded(stream_id):
                if (found := self._streams.get(stream_id)) is not None:
                    found.end(gone=False)
            case StreamReset(stream_id):
                if (found := self._streams.pop(stream_id, None)) is not None:
                    found.end(gone=True)

    def _opened(self, stream_id: int, headers: Mapping[str, str]) -> None:
        if self._core.closed:
            return  # by something worse, right behind it
        if len(self._new) >= _BACKLOG:
            self._core.reset_stream(stream_id, RstStatus.REFUSED_STREAM)
            return
        stream = self._streams[stream_id] = SpdyStream(self, stream_id, headers)
        self._core.accept_stream(stream_id)
        self._new.append(stream)
        self._arrived.set()

    async def _answer(self) -> None:
        with contextlib.suppress(ConnectionResetError):
            while True:
                await self._to_write.wait()
                self._to_write.clear()
                await self._flush()

    async def streams(self) -> AsyncIterator[SpdyStream]:
        """Each new one, accepted already, until the connection's end."""
        while True:
            while self._new:
                yield self._new.popleft()
            if self._over:
                return
            self._arrived.clear()
            await self._arrived.wait()

    def taken(self, size: int) -> None:
        """An owner has taken so many bytes, or will not."""
        self._waiting -= size
        self._room.set()

    def can_send(self, stream_id: int) -> bool:
        return self._core.can_send(stream_id)

    async def send(self, stream_id: int, data: bytes, *, fin: bool) -> None:
        """Raises `StreamGone`."""
        if not self._core.can_send(stream_id):
            raise StreamGone
        self._core.send_data(stream_id, data, fin=fin)
        await self._flush()

    async def reset(self, stream_id: int) -> None:
        self._streams.pop(stream_id, None)
        if not self._core.closed:
            self._core.reset_stream(stream_id, RstStatus.CANCEL)
            await self._flush()

    async def ping(self) -> None:
        """The answer is of no interest: writing tells whether somebody is there."""
        if not self._core.closed:
            self._core.ping()
            await self._flush()

    async def go_away(self) -> None:
        """Says that nothing more is to come."""
        if not self._core.closed:
            self._core.go_away()
            await self._flush()

    async def _flush(self) -> None:
        async with self._writing:
            data = self._core.data_to_send()
            if data:
                await self._carrier.write(data)

    def _forget_closed(self) -> None:
        """Their owners hold on to them while they have something to read."""
        open_ = self._core.open_streams
        for stream_id in [one for one in self._streams if one not in open_]:
            del self._streams[stream_id]
