"""Peers that do not read, that flood, that break the protocol: they harm nobody but themselves."""

from __future__ import annotations

import asyncio

import pytest

from tests.kubeletapi.conftest import Served
from tests.kubeletapi.spdy_peer import PATIENCE, SpdyPeer, spdy
from tests.kubeletapi.test_port_forward import FORWARD, echo, listening, nothing_open
from vknode.kubeletapi import BackendError
from vknode.streaming.portforward import PROTOCOL
from vknode.streaming.remotecommand import SPDY_PROTOCOLS, Failed, decode_outcome

EXEC = "/exec/default/web/main?output=1"
# SYN_STREAM of 16 MiB: more than anybody takes.
GARBAGE = b"\x80\x03\x00\x01\x00\xff\xff\xff" + bytes(64)


async def pair(peer: SpdyPeer, port: int, request: str) -> tuple[int, int]:
    about = {"port": str(port), "requestid": request}
    error = await peer.open(streamtype="error", **about)
    return error, await peer.open(streamtype="data", **about)


async def drowning(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Says more than anybody wants to hear."""
    while True:
        writer.write(bytes(1 << 16))
        await writer.drain()


@pytest.mark.parametrize("path", [f"{EXEC}&command=true", FORWARD])
async def test_streams_that_come_and_go_by_the_hundred_take_no_slot_along(
    served: Served, path: str
) -> None:
    served.backend.add("web")
    served.backend.exec_error = BackendError("away")
    version = SPDY_PROTOCOLS[0] if path != FORWARD else PROTOCOL
    async with spdy(served, path, version) as (_, peer):
        for kind in ("error", "stdout"):
            peer.core.open_stream({"streamtype": kind})
        for _ in range(300):
            peer.core.reset_stream(peer.core.open_stream({"streamtype": "x"}))
        await peer.flush()
    await nothing_open(served)


@pytest.mark.parametrize("before", ["nothing", "a stream"])
async def test_a_broken_connection_is_closed(served: Served, before: str) -> None:
    served.backend.add("web")
    async with spdy(served, FORWARD, PROTOCOL) as (_, peer):
        if before == "a stream":
            peer.core.open_stream({"streamtype": "error", "port": "80"})
        peer.writer.write(peer.core.data_to_send() + GARBAGE)
        await peer.writer.drain()
        await peer.until(lambda: peer.closed)
    await nothing_open(served)


async def test_a_connection_that_is_reset_takes_none_of_its_neighbours_along(
    served: Served,
) -> None:
    served.backend.add("web")
    go = asyncio.Event()

    async def later(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await go.wait()
        writer.write(b"still here")
        writer.write_eof()
        await reader.read()

    async with (
        listening(drowning) as loud,
        listening(later) as quiet,
        spdy(served, FORWARD, PROTOCOL) as (_, peer),
    ):
        _, patient = await pair(peer, quiet, "quiet")
        await peer.until(lambda: patient in peer.replied)
        _, drowned = await pair(peer, loud, "loud")
        # Nothing is read here until the server's writers wait for it.
        await asyncio.sleep(1.0)
        go.set()
        await asyncio.sleep(0.2)
        peer.core.reset_stream(drowned)
        await peer.flush()
        await peer.until(lambda: patient in peer.ended)
        assert bytes(peer.data[patient]) == b"still here"


async def test_who_only_writes_is_still_heard(served: Served) -> None:
    """What comes back fills every buffer, and yet the other direction goes on."""
    served.backend.add("web")
    heard = 0
    enough = asyncio.Event()

    async def both(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal heard
        loud = asyncio.create_task(drowning(reader, writer))
        while data := await reader.read(1 << 16):
            heard += len(data)
            if heard >= 8 << 20:
                enough.set()
        loud.cancel()

    async with listening(both) as port, spdy(served, FORWARD, PROTOCOL) as (_, peer):
        _, data = await pair(peer, port, "1")
        await peer.until(lambda: bool(peer.data[data]))
        await asyncio.sleep(0.5)

        async def talk() -> None:
            while True:
                await peer.send(data, bytes(1 << 16))

        talking = asyncio.create_task(talk())
        await asyncio.wait_for(enough.wait(), PATIENCE)
        talking.cancel()


async def test_a_slow_client_is_told_why_the_server_goes(served: Served) -> None:
    served.backend.add("web")
    version = SPDY_PROTOCOLS[0]
    async with spdy(served, f"{EXEC}&command=yes", version) as (_, peer):
        error = await peer.open(streamtype="error")
        await peer.open(streamtype="stdout")
        await asyncio.sleep(1.0)  # nothing is read: the output waits
        stopping = asyncio.create_task(served.api.stop())
        await peer.until(lambda: error in peer.ended)
        await stopping
        told = decode_outcome(bytes(peer.data[error]), as_json=True)
        assert isinstance(told, Failed) and "stopping" in told.message


async def test_a_port_that_is_over_holds_up_no_other_channel(
    served: Served, refusing_port: int
) -> None:
    served.backend.add("web")
    async with listening(echo) as port:
        url = f"{served.url}{FORWARD}?port={refusing_port},{port}"
        async with served.http.ws_connect(url, protocols=("v4.channel.k8s.io",)) as socket:
            async with asyncio.timeout(PATIENCE):
                while (message := await socket.receive()).data[:1] != b"\1" or (
                    b"refused" not in message.data
                ):
                    pass
                for _ in range(10):
                    await socket.send_bytes(b"\0nobody hears this")
                await socket.send_bytes(b"\2hello")
                while (await socket.receive()).data != b"\2hello":
                    pass
