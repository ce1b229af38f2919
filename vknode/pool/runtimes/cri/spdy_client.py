"""Streams to a runtime's streaming server: HTTP upgrade to SPDY/3.1, then bytes.

There is no task and no queue: `receive` reads from the socket only when its consumer
wants more, `write` waits while the socket takes no more, so that backpressure is TCP's
in both directions and memory stays at a few pieces. The protocol itself is
`vknode.streaming.spdy`; which streams there are, is k8s.io/cri-streaming's.
"""

from __future__ import annotations

import asyncio
import json
import urllib.parse
from collections.abc import AsyncIterator, Mapping
from typing import Any

from vknode.pool.runtimes.facts import Failure
from vknode.streaming.spdy import (
    ConnectionClosed,
    DataReceived,
    GoAwayReceived,
    SpdyConnection,
    StreamEnded,
    StreamReset,
)

REMOTE_COMMAND = "v4.channel.k8s.io"
PORT_FORWARD = "portforward.k8s.io"
_READ = 64 * 1024
_PIECE = 64 * 1024
_CONNECT = 30.0  # seconds, the upgrade included
_MAX_ERROR = 64 * 1024


class SpdySession:
    """An `ExecStreams` over one SPDY connection.

    `outputs` are the stream names that `receive` yields with their numbers, `stdin` the
    name of the one that `write` fills; the stream "error" always exists and is read here.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        opening: list[tuple[str, Mapping[str, str]]],
        outputs: Mapping[str, int],
        stdin: str,
    ) -> None:
        self._reader, self._writer = reader, writer
        self._spdy = SpdyConnection(client=True)
        self._ids = {name: self._spdy.open_stream(headers) for name, headers in opening}
        self._numbers = {self._ids[name]: n for name, n in outputs.items() if name in self._ids}
        self._open_outputs = set(self._numbers)
        self._stdin = self._ids.get(stdin)
        self._error = b""
        self._error_ended = False
        self._over = False
        self._deaf = False
        self._flush()

    async def receive(self) -> AsyncIterator[tuple[int, bytes]]:
        while not self._over:
            data = await self._reader_read()
            events = self._spdy.receive_data(data) if data else self._spdy.receive_eof()
            self._flush()
            for event in events:
                match event:
                    case DataReceived(stream_id, piece):
                        number = self._numbers.get(stream_id)
                        if number is not None:
                            for start in range(0, len(piece), _PIECE):
                                yield number, piece[start : start + _PIECE]
                        elif stream_id == self._ids["error"] and len(self._error) < _MAX_ERROR:
                            self._error += piece
                    case StreamEnded(stream_id) | StreamReset(stream_id):
                        self._open_outputs.discard(stream_id)
                        self._error_ended |= stream_id == self._ids["error"]
                    case GoAwayReceived() | ConnectionClosed():
                        self._over = True
                    case _:
                        pass
            if self._error_ended and not self._open_outputs:
                self._over = True
        # The other side waits for the end of ours before it lets its socket go.
        self._writer.close()

    async def write(self, data: bytes) -> None:
        if self._stdin is None or self._deaf or not self._spdy.can_send(self._stdin):
            return  # nobody reads any more; the end tells why
        self._spdy.send_data(self._stdin, data)
        self._flush()
        try:
            await self._writer.drain()
        except ConnectionError:
            self._deaf = True  # what it has said before may still be read

    async def close_write(self) -> None:
        if self._stdin is not None and self._spdy.can_send(self._stdin):
            self._spdy.send_data(self._stdin, b"", fin=True)
            self._flush()

    async def resize(self, width: int, height: int) -> None:
        stream = self._ids.get("resize")
        if stream is not None and self._spdy.can_send(stream):
            size = json.dumps({"Width": width, "Height": height})
            self._spdy.send_data(stream, size.encode() + b"\n")
            self._flush()

    async def exit_code(self) -> int:
        return exit_code(self._error)

    @property
    def error_text(self) -> str:
        """What the error stream said, for streams where that is plain text."""
        return self._error.decode(errors="replace").strip()

    async def close(self) -> None:
        self._over = self._deaf = True
        transport = self._writer.transport
        if not transport.is_closing():
            transport.abort()

    def _flush(self) -> None:
        data = self._spdy.data_to_send()
        if data and not self._writer.is_closing():
            self._writer.write(data)

    async def _reader_read(self) -> bytes:
        try:
            return await self._reader.read(_READ)
        except ConnectionError:
            return b""


def exit_code(status: bytes) -> int:
    """From the JSON Status on a v4 error stream. Raises Failure where it has none."""
    if not status:
        raise Failure("StreamFailed", "the runtime ended the stream without a status")
    try:
        said: Any = json.loads(status)
        if said.get("status") == "Success":
            return 0
        if said.get("reason") == "NonZeroExitCode":
            for cause in said["details"]["causes"]:
                if cause.get("reason") == "ExitCode":
                    return int(cause["message"])
        message = str(said.get("message") or said.get("reason") or "unknown failure")
        # The kubelet API says these words itself.
        message = message.removeprefix("Internal error occurred: ")
        message = message.removeprefix("error executing command in container: ")
    except (ValueError, KeyError, TypeError, AttributeError):
        message = status.decode(errors="replace")
    raise Failure("StreamFailed", message)


async def connect(url: str, protocol: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connects and upgrades. Raises Failure("StreamFailed")."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise Failure(
            "StreamFailed",
            f"the runtime's streaming server must speak plain HTTP on loopback, not {parts.scheme}",
            retryable=False,
        )
    try:
        async with asyncio.timeout(_CONNECT):
            reader, writer = await asyncio.open_connection(
                parts.hostname, parts.port or 80, limit=_READ
            )
            try:
                await _upgrade(reader, writer, parts, protocol)
            except BaseException:
                writer.transport.abort()
                raise
    except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        what = type(error).__name__
        raise Failure("StreamFailed", f"the runtime's streaming server failed: {what}") from None
    return reader, writer


async def _upgrade(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    parts: urllib.parse.SplitResult,
    protocol: str,
) -> None:
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    writer.write(
        f"POST {target} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: Upgrade\r\n"
        f"Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: {protocol}\r\n"
        "Content-Length: 0\r\n\r\n".encode()
    )
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    status = head[0].split(" ", 2)
    if len(status) < 2 or status[1] != "101":
        rest = await reader.read(1024)
        said = rest.decode(errors="replace").strip() or head[0]
        raise Failure("StreamFailed", f"the runtime's streaming server refused: {said}")


def headers(kind: str, **more: str) -> tuple[str, Mapping[str, str]]:
    """A stream to open, by its type."""
    return kind, {"streamtype": kind, **more}
