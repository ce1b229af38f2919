"""What `RawConnection` leans on in aiohttp: held here, since its minor version is pinned for it."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from vknode.kubeletapi.raw_connection import RawConnection

PATIENCE = 60.0
Serve = Callable[[RawConnection], Awaitable[None]]


@asynccontextmanager
async def upgraded(
    serve: Serve,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A client behind the upgrade; the handler runs `serve`."""

    async def handle(request: web.Request) -> web.StreamResponse:
        connection = RawConnection(request)
        response = await connection.open({"Upgrade": "SPDY/3.1"})
        await serve(connection)
        connection.close()
        return response

    app = web.Application()
    app.router.add_get("/", handle)
    # Else aiohttp cancels the handler at the end, before it can say what it has read.
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n")
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
    assert head.startswith(b"HTTP/1.1 101 ")
    assert b"transfer-encoding" not in head.lower() and b"content-length" not in head.lower()
    try:
        yield reader, writer
    finally:
        writer.close()
        await runner.cleanup()


async def echo(connection: RawConnection) -> None:
    while data := await connection.read():
        await connection.write(data)


async def test_bytes_go_both_ways_as_they_are() -> None:
    data = random.Random(5).randbytes(10 << 20)
    async with upgraded(echo) as (reader, writer):

        async def send() -> None:
            for start in range(0, len(data), 77_777):
                writer.write(data[start : start + 77_777])
                await writer.drain()

        sending = asyncio.create_task(send())
        got = hashlib.sha256(await asyncio.wait_for(reader.readexactly(len(data)), PATIENCE))
        await sending
        assert got.digest() == hashlib.sha256(data).digest()


async def test_who_does_not_read_holds_the_peer_up() -> None:
    go, ended = asyncio.Event(), asyncio.Event()
    taken = 0

    async def deaf(connection: RawConnection) -> None:
        nonlocal taken
        await go.wait()
        while data := await connection.read():
            taken += len(data)
        ended.set()

    async with upgraded(deaf) as (_, writer):
        sent = 0
        try:
            async with asyncio.timeout(1.0):
                while sent < 1 << 30:
                    writer.write(bytes(1 << 16))
                    sent += 1 << 16
                    await writer.drain()
        except TimeoutError:
            pass
        assert sent < 64 << 20
        go.set()
        await writer.drain()
        writer.write_eof()
        await asyncio.wait_for(ended.wait(), PATIENCE)
        assert taken == sent


async def test_an_end_of_the_peer_is_an_end() -> None:
    read: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def once(connection: RawConnection) -> None:
        read.set_result(await connection.read())

    async with upgraded(once) as (_, writer):
        writer.close()
        assert await asyncio.wait_for(read, PATIENCE) == b""


async def test_what_was_written_leaves_before_the_close() -> None:
    async def last_words(connection: RawConnection) -> None:
        await connection.write(b"x" * 300_000)

    async with upgraded(last_words) as (reader, _):
        assert len(await asyncio.wait_for(reader.read(), PATIENCE)) == 300_000


async def test_writing_to_nobody_is_told() -> None:
    told: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    async def insist(connection: RawConnection) -> None:
        await connection.read()
        try:
            for _ in range(1000):
                await connection.write(b"x" * 65536)
        except ConnectionResetError:
            told.set_result(True)
        else:
            told.set_result(False)

    async with upgraded(insist) as (_, writer):
        writer.transport.abort()
        assert await asyncio.wait_for(told, PATIENCE)
