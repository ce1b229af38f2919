"""A client that speaks SPDY/3.1 to our kubelet API, over TLS, with the sans-IO core."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from tests.kubeletapi.conftest import Served, client_context
from tests.kubeletapi.reviewers import API_SERVER
from vknode.streaming.spdy import (
    ConnectionClosed,
    DataReceived,
    GoAwayReceived,
    SpdyConnection,
    StreamEnded,
    StreamReplied,
    StreamReset,
)

PATIENCE = 60.0


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: str = ""


@dataclass
class SpdyPeer:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    core: SpdyConnection = field(default_factory=lambda: SpdyConnection(client=True))
    data: dict[int, bytearray] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)
    reset: set[int] = field(default_factory=set)
    replied: set[int] = field(default_factory=set)
    going: bool = False
    closed: bool = False

    async def open(self, **headers: str) -> int:
        stream = self.core.open_stream(headers)
        self.data[stream] = bytearray()
        await self.flush()
        return stream

    async def send(self, stream: int, data: bytes, *, fin: bool = False) -> None:
        self.core.send_data(stream, data, fin=fin)
        await self.flush()

    async def flush(self) -> None:
        self.writer.write(self.core.data_to_send())
        await self.writer.drain()

    async def read(self) -> bool:
        """Takes what comes next; False at the end."""
        if self.closed:
            return False
        data = await self.reader.read(1 << 16)
        events = self.core.receive_data(data) if data else self.core.receive_eof()
        for event in events:
            match event:
                case DataReceived(stream, piece):
                    self.data[stream] += piece
                case StreamEnded(stream):
                    self.ended.add(stream)
                case StreamReset(stream):
                    self.reset.add(stream)
                case StreamReplied(stream):
                    self.replied.add(stream)
                case GoAwayReceived():
                    self.going = True
                case ConnectionClosed():
                    self.closed = True
        if not self.closed:
            await self.flush()
        return not self.closed

    async def until(self, over: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not over():
                if not await self.read():
                    assert over(), "the connection ended before"


@asynccontextmanager
async def spdy(served: Served, path: str, *versions: str) -> AsyncIterator[tuple[Answer, SpdyPeer]]:
    """The answer to an upgrade request, and the peer behind it where it is 101."""
    url = urlsplit(served.url)
    assert url.hostname is not None
    pair = served.authority.issue("spdy", API_SERVER)
    reader, writer = await asyncio.open_connection(
        url.hostname, url.port, ssl=client_context(served.authority, pair)
    )
    try:
        lines = [
            f"POST {path} HTTP/1.1",
            f"Host: {url.netloc}",
            "Connection: Upgrade",
            "Upgrade: SPDY/3.1",
            *(f"X-Stream-Protocol-Version: {version}" for version in versions),
        ]
        writer.write("\r\n".join([*lines, "", ""]).encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        status = int(head[0].split()[1])
        headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:])
        }
        answer = Answer(status, headers)
        if status != 101:
            answer.body = (await reader.read(int(headers.get("content-length", "0")))).decode()
        yield answer, SpdyPeer(reader, writer)
    finally:
        writer.close()
