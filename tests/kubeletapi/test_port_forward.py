"""Port-forward over a WebSocket: SPDY in a tunnel, as kubectl, and the channels of others."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest

from tests.kubeletapi.conftest import Served
from tests.kubeletapi.test_exec import refused
from vknode.streaming.portforward import TUNNEL
from vknode.streaming.spdy import (
    DataReceived,
    Event,
    SpdyConnection,
    StreamEnded,
    StreamReset,
)

FORWARD = "/portForward/default/web"
PATIENCE = 60.0


@asynccontextmanager
async def listening(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], object],
) -> AsyncIterator[int]:
    """A port of this machine; each connection is given to `serve`."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            done = serve(reader, writer)
            assert asyncio.iscoroutine(done)
            await done
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()


class Tunnel:
    """A client with a SPDY connection in a WebSocket."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.core = SpdyConnection(client=True)
        self.data: dict[int, bytearray] = {}
        self.ended: set[int] = set()
        self.reset: set[int] = set()

    async def flush(self) -> None:
        if data := self.core.data_to_send():
            await self.socket.send_bytes(data)

    async def open(self, port: int, request: str) -> tuple[int, int]:
        """The error and the data stream of a new connection."""
        ids = tuple(
            self.core.open_stream(
                {"streamtype": kind, "port": str(port), "requestid": request}, fin=kind == "error"
            )
            for kind in ("error", "data")
        )
        for one in ids:
            self.data[one] = bytearray()
        await self.flush()
        return ids[0], ids[1]

    async def send(self, stream: int, data: bytes, *, fin: bool = False) -> None:
        self.core.send_data(stream, data, fin=fin)
        await self.flush()

    async def read(self) -> bool:
        message = await self.socket.receive()
        if message.type is not aiohttp.WSMsgType.BINARY:
            return False
        for event in self.core.receive_data(message.data):
            self._note(event)
        await self.flush()
        return True

    def _note(self, event: Event) -> None:
        match event:
            case DataReceived(stream, data):
                self.data[stream] += data
            case StreamEnded(stream):
                self.ended.add(stream)
            case StreamReset(stream):
                self.reset.add(stream)

    async def until(self, over: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not over():
                assert await self.read(), (self.ended, self.reset)


@asynccontextmanager
async def tunnel(served: Served) -> AsyncIterator[Tunnel]:
    served.backend.add("web")
    async with served.http.ws_connect(served.url + FORWARD, protocols=(TUNNEL,)) as socket:
        assert socket.protocol == TUNNEL
        yield Tunnel(socket)


async def nothing_open(served: Served) -> None:
    async with asyncio.timeout(PATIENCE):
        while served.backend.forwarded or served.api.running_streams:
            await asyncio.sleep(0.01)


async def test_many_connections_share_one_tunnel_and_mix_nothing(served: Served) -> None:
    async with listening(echo) as port, tunnel(served) as client:
        sent = {}
        for number in range(20):
            _, data = await client.open(port, str(number))
            sent[data] = random.Random(number).randbytes(200_000)
            await client.send(data, sent[data], fin=True)
        await client.until(lambda: client.ended >= sent.keys())
        for stream, wanted in sent.items():
            assert hashlib.sha256(client.data[stream]).digest() == hashlib.sha256(wanted).digest()
        await client.until(lambda: len(client.ended) == 40)  # the errors' streams, too
    await nothing_open(served)


async def test_where_the_pod_closes_first_the_client_may_still_speak(served: Served) -> None:
    heard = asyncio.get_running_loop().create_future()

    async def first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"that is all")
        writer.write_eof()
        heard.set_result(await reader.read())

    async with listening(first) as port, tunnel(served) as client:
        error, data = await client.open(port, "1")
        await client.until(lambda: data in client.ended)
        assert bytes(client.data[data]) == b"that is all"
        await client.send(data, b"well", fin=True)
        assert await asyncio.wait_for(heard, PATIENCE) == b"well"
        await client.until(lambda: error in client.ended)


async def test_a_client_that_resets_after_the_answer_gets_the_end_of_the_errors(
    served: Served,
) -> None:
    """As kubectl does, which would wait for ever."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"answer")
        writer.write_eof()
        await reader.read()

    async with listening(answer) as port, tunnel(served) as client:
        error, data = await client.open(port, "1")
        await client.until(lambda: data in client.ended)
        client.core.reset_stream(data)
        await client.flush()
        await client.until(lambda: error in client.ended)
        assert not client.data[error]


async def test_nobody_listens_there(served: Served, refusing_port: int) -> None:
    async with tunnel(served) as client:
        error, data = await client.open(refusing_port, "1")
        await client.until(lambda: error in client.ended and data in client.reset)
        assert bytes(client.data[error]).decode() == (
            f"error forwarding port {refusing_port} to pod web, uid u-1: connection refused"
        )
        # The tunnel itself goes on.
        async with listening(echo) as port:
            _, data = await client.open(port, "2")
            await client.send(data, b"x", fin=True)
            await client.until(lambda: data in client.ended)


async def test_streams_of_something_else_are_reset(served: Served) -> None:
    async with tunnel(served) as client:
        stream = client.core.open_stream({"streamtype": "stdin", "port": "80"})
        await client.flush()
        await client.until(lambda: stream in client.reset)


async def test_a_pod_that_does_not_read_holds_up_the_client_and_fills_no_memory(
    served: Served,
) -> None:
    go = asyncio.Event()

    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await go.wait()
        while await reader.read(1 << 20):
            pass

    async with listening(deaf) as port, tunnel(served) as client:
        _, data = await client.open(port, "1")
        sent = 0
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.0):
                while sent < 1 << 30:
                    await client.send(data, bytes(1 << 16))
                    sent += 1 << 16
        assert sent < 64 << 20, "nobody has taken that much"
        go.set()
    await nothing_open(served)


async def test_a_client_that_goes_takes_its_connections_along(served: Served) -> None:
    async with listening(echo) as port:
        async with tunnel(served) as client:
            _, data = await client.open(port, "1")
            await client.send(data, b"x")
            await client.until(lambda: bool(client.data[data]))
            assert served.backend.forwarded == 1
        await nothing_open(served)


@pytest.mark.parametrize("protocol", ["v4.channel.k8s.io", "v4.base64.channel.k8s.io"])
async def test_channels_carry_one_connection_a_port(
    served: Served, protocol: str, refusing_port: int
) -> None:
    served.backend.add("web")
    text = "base64" in protocol

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())

    async with (
        listening(once) as port,
        served.http.ws_connect(
            f"{served.url}{FORWARD}?port={port},{refusing_port}", protocols=(protocol,)
        ) as socket,
    ):
        heard: dict[int, bytes] = {0: b"", 1: b"", 2: b"", 3: b""}
        hello = b"hello\n"
        if text:
            await socket.send_str("0" + base64.b64encode(hello).decode())
        else:
            await socket.send_bytes(b"\0" + hello)
        async with asyncio.timeout(PATIENCE):
            async for message in socket:
                if text:
                    channel, data = int(message.data[0]), base64.b64decode(message.data[1:])
                else:
                    channel, data = message.data[0], message.data[1:]
                heard[channel] += data
    ports = [one.to_bytes(2, "little") for one in (port, refusing_port)]
    assert heard[0] == ports[0] + hello and heard[1] == ports[0] and heard[2] == ports[1]
    assert heard[3].startswith(ports[1] + b"error forwarding port")


@pytest.mark.parametrize(
    ("path", "protocol", "told"),
    [
        ("/portForward/default/none", TUNNEL, (404, "pod does not exist")),
        ("/portForward/default/web/u-2", TUNNEL, (404, "pod not found")),
        (FORWARD, "v4.channel.k8s.io", (400, 'query parameter "port" is required')),
        (f"{FORWARD}?port=", "v4.channel.k8s.io", (400, 'query parameter "port" cannot be empty')),
        (f"{FORWARD}?port=x", "v4.channel.k8s.io", (400, 'unable to parse "x" as a port')),
        (f"{FORWARD}?port=0", "v4.channel.k8s.io", (400, 'port "0" must be > 0')),
        (
            f"{FORWARD}?port=00000065536",
            "v4.channel.k8s.io",
            (400, 'unable to parse "00000065536" as a port'),
        ),
    ],
)
async def test_wrong_requests(
    served: Served, path: str, protocol: str, told: tuple[int, str]
) -> None:
    served.backend.add("web")
    assert await refused(served, path, protocol) == told


async def test_unknown_protocols_are_refused_with_those_we_speak(served: Served) -> None:
    served.backend.add("web")
    status, text = await refused(served, f"{FORWARD}?port=80", "v9.channel.k8s.io")
    assert status == 403 and TUNNEL in text
