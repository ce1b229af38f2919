"""Whoever connects and shows nothing costs little, and keeps nobody out."""

from __future__ import annotations

import asyncio
import resource
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest

from tests.kubeletapi.conftest import client_context
from vknode.devcluster.pki import Authority
from vknode.kubeletapi.doorman import Doorman, most_open_by_files

PATIENCE = 60.0


class Echo(asyncio.Protocol):
    def __init__(self, house: House) -> None:
        self.house = house
        self.asked = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's are of no class of asyncio's.
        self.transport = cast(asyncio.Transport, transport)
        self.house.inside.add(self)

    def data_received(self, data: bytes) -> None:
        self.asked = True
        self.transport.write(data)

    def connection_lost(self, _error: Exception | None) -> None:
        self.house.inside.discard(self)


@dataclass
class House:
    client: ssl.SSLContext
    doorman: Doorman
    port: int
    inside: set[Echo] = field(default_factory=set)

    async def talk(self) -> bool:
        """Whether a client with TLS is served."""
        try:
            async with asyncio.timeout(PATIENCE):
                reader, writer = await asyncio.open_connection(
                    "127.0.0.1", self.port, ssl=self.client
                )
                writer.write(b"hello")
                try:
                    return await reader.readexactly(5) == b"hello"
                finally:
                    writer.transport.abort()
        except (OSError, asyncio.IncompleteReadError):
            return False

    async def enter(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Through the handshake: on a busy machine that may take more than the doorman's patience,
        and again."""
        async with asyncio.timeout(PATIENCE):
            while True:
                with suppress(OSError):
                    return await asyncio.open_connection("127.0.0.1", self.port, ssl=self.client)

    async def ask(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """In, and served once; likewise."""
        async with asyncio.timeout(PATIENCE):
            while True:
                reader, writer = await self.enter()
                writer.write(b"once")
                with suppress(OSError, asyncio.IncompleteReadError):
                    assert await reader.readexactly(4) == b"once"
                    return reader, writer
                writer.transport.abort()

    async def knock(self) -> socket.socket:
        """A connection that says nothing."""
        knocking = socket.socket()
        knocking.setblocking(False)
        async with asyncio.timeout(PATIENCE):
            await asyncio.get_running_loop().sock_connect(knocking, ("127.0.0.1", self.port))
        return knocking


@asynccontextmanager
async def house(authority: Authority, **limits: float) -> AsyncIterator[House]:
    serving = authority.issue("serving", "vknode-agent", ips=["127.0.0.1"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(serving.cert, serving.key)
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    listener.setblocking(False)
    made: House

    def guest() -> Echo:
        return Echo(made)

    doorman = Doorman(
        guest,
        lambda one: isinstance(one, Echo) and one.asked,
        lambda: len(made.inside),
        **limits,  # type: ignore[arg-type]  # a test's keywords
    )
    made = House(client_context(authority, None), doorman, listener.getsockname()[1])
    doorman.listen(listener, lambda: context)
    try:
        yield made
    finally:
        await doorman.close()
        for one in list(made.inside):
            one.transport.abort()


@contextmanager
def closing(sockets: list[socket.socket]) -> Iterator[list[socket.socket]]:
    try:
        yield sockets
    finally:
        for one in sockets:
            one.close()


async def ended(one: socket.socket) -> bool:
    """Whether the other side ends it within the test's patience."""
    async with asyncio.timeout(PATIENCE):
        try:
            return await asyncio.get_running_loop().sock_recv(one, 1) == b""
        except ConnectionError:
            return True


async def test_ten_thousand_half_open_connections_keep_nobody_out(authority: Authority) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = max(hard, 12_000)  # which root may raise
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    before = resident_mib()
    try:
        with closing([]) as knocking:
            async with house(authority, shaking=256) as made:
                for number in range(10_000):
                    knocking.append(await made.knock())
                    if number % 2500 == 2499:
                        assert await made.talk()
                assert await made.talk()
                # What 256 handshakes need, and not what 10,000 would.
                assert resident_mib() - before < 300
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, most))


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / (1 << 20)


async def test_the_oldest_handshake_goes_when_one_more_comes(authority: Authority) -> None:
    async with house(authority, shaking=2) as made:
        with closing([await made.knock() for _ in range(3)]) as (first, *_):
            assert await ended(first)
            assert made.doorman.refused == 1
            assert await made.talk()


async def test_who_says_nothing_is_sent_away(authority: Authority) -> None:
    async with house(authority, patience=0.3) as made:
        with closing([await made.knock()]) as (silent,):
            assert await ended(silent)
        reader, writer = await made.enter()
        async with asyncio.timeout(PATIENCE):  # after a handshake, too
            with suppress(ConnectionError):
                assert await reader.read() == b""
        writer.transport.abort()


async def test_who_has_asked_may_stay(authority: Authority) -> None:
    async with house(authority, patience=0.3) as made:
        reader, writer = await made.ask()
        silent = await made.knock()
        with closing([silent]):
            assert await ended(silent)  # so long is the doorman's patience
        writer.write(b"again")
        assert await reader.readexactly(5) == b"again"
        writer.transport.abort()


async def test_a_full_house_takes_nobody_and_goes_on_when_there_is_room(
    authority: Authority,
) -> None:
    async with house(authority, most_open=1) as made:
        reader, writer = await asyncio.open_connection("127.0.0.1", made.port, ssl=made.client)
        writer.write(b"in")
        assert await reader.readexactly(2) == b"in"
        assert not await made.talk()
        assert made.doorman.refused == 1
        writer.transport.abort()
        async with asyncio.timeout(PATIENCE):
            while made.inside:
                await asyncio.sleep(0.01)
        assert await made.talk()


async def test_a_listener_that_is_left_refuses_and_the_others_go_on(authority: Authority) -> None:
    async with house(authority) as made:
        other = socket.create_server(("127.0.0.1", 0))
        other.setblocking(False)
        port = other.getsockname()[1]
        made.doorman.listen(other, next(iter(made.doorman._listeners.values())))
        made.doorman.leave(other)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        assert await made.talk()


def test_the_agent_keeps_files_for_its_own_errands() -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert most_open_by_files() <= max(64, soft // 2)
