"""Exec, attach and port-forward over SPDY/3.1: API servers and clients before 1.36."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.kubeletapi.conftest import Served
from tests.kubeletapi.local_backend import running
from tests.kubeletapi.spdy_peer import PATIENCE, SpdyPeer, spdy
from tests.kubeletapi.test_port_forward import echo, listening, nothing_open
from vknode.kubeletapi import spdy_wire
from vknode.streaming.portforward import PROTOCOL
from vknode.streaming.remotecommand import (
    SPDY_PROTOCOLS,
    Exited,
    Failed,
    Outcome,
    TerminalSize,
    decode_outcome,
    encode_resize,
)

V4, V3, V2, V1 = SPDY_PROTOCOLS
EXEC = "/exec/default/web/main"


class Session:
    """A command's streams, as a client sees them."""

    def __init__(self, peer: SpdyPeer, version: str, ids: dict[str, int]) -> None:
        self.peer = peer
        self.version = version
        self.ids = ids

    def got(self, kind: str) -> bytes:
        return bytes(self.peer.data[self.ids[kind]])

    async def finish(self) -> Outcome:
        error = self.ids["error"]
        await self.peer.until(lambda: error in self.peer.ended and self.peer.going)
        return decode_outcome(self.got("error"), as_json=self.version == V4)


@asynccontextmanager
async def session(
    served: Served,
    *command: str,
    kinds: str = "stdout stderr",
    version: str = V4,
    path: str = EXEC,
    tty: bool = False,
) -> AsyncIterator[Session]:
    if ("default", "web") not in served.backend.pods:
        served.backend.add("web")
    names = {"stdin": "input", "stdout": "output", "stderr": "error"}
    query = [f"command={word}" for word in command]
    query += [f"{names[kind]}=1" for kind in kinds.split() if kind in names]
    query += ["tty=1"] if tty else []
    async with spdy(served, f"{path}?{'&'.join(query)}", version) as (answer, peer):
        assert answer.status == 101, answer
        assert answer.headers["x-stream-protocol-version"] == version
        wanted = ["error", *kinds.split()]
        random.Random(len(command)).shuffle(wanted)
        ids = {kind: await peer.open(streamtype=kind) for kind in wanted}
        yield Session(peer, version, ids)
    await nothing_open(served)


@pytest.mark.parametrize("version", SPDY_PROTOCOLS)
async def test_output_and_exit_code(served: Served, version: str) -> None:
    async with session(
        served, "sh", "-c", "echo%20out;echo%20err>%262;exit%203", version=version
    ) as one:
        outcome = await one.finish()
        assert (one.got("stdout"), one.got("stderr")) == (b"out\n", b"err\n")
        if version == V4:
            assert outcome == Exited(3)
        else:
            assert isinstance(outcome, Failed) and "exit code 3" in outcome.message
        assert set(one.ids.values()) <= one.peer.ended


async def test_input_ends_and_comes_back_whole(served: Served) -> None:
    data = random.Random(1).randbytes(8 << 20)
    async with session(served, "cat", kinds="stdin stdout") as one:

        async def send() -> None:
            for start in range(0, len(data), 100_000):
                await one.peer.send(one.ids["stdin"], data[start : start + 100_000])
            await one.peer.send(one.ids["stdin"], b"", fin=True)

        sending = asyncio.create_task(send())
        assert await one.finish() == Exited(0)
        await sending
        assert hashlib.sha256(one.got("stdout")).digest() == hashlib.sha256(data).digest()


async def test_a_slow_client_gets_everything(served: Served) -> None:
    async with session(served, "head", "-c", "20000000", "/dev/zero") as one:
        await asyncio.sleep(0.5)  # the command has long since written all it can
        assert await one.finish() == Exited(0)
        assert len(one.got("stdout")) == 20_000_000


async def test_a_terminal_over_spdy_has_the_clients_size(served: Served) -> None:
    served.backend.add("web")
    async with session(
        served, "sleep", "100", kinds="stdin stdout resize", tty=True, path=EXEC
    ) as one:
        await one.peer.send(one.ids["resize"], encode_resize(TerminalSize(91, 31)))
        async with asyncio.timeout(PATIENCE):
            while not served.backend.sessions or served.backend.sessions[0].size != (91, 31):
                await asyncio.sleep(0.01)


async def test_attach_ends_with_the_container(served: Served) -> None:
    served.backend.add("web", running("main"))
    served.backend.main_command = ("sh", "-c", "read x; echo said $x; exit 9")
    async with session(served, kinds="stdin stdout", path="/attach/default/web/main") as one:
        await one.peer.send(one.ids["stdin"], b"hello\n")
        assert await one.finish() == Exited(0)
        assert one.got("stdout") == b"said hello\n"


async def test_a_client_that_goes_ends_its_command(served: Served) -> None:
    async with session(served, "sleep", "1000") as one:
        await one.peer.until(lambda: len(one.peer.replied) == 3)
    await asyncio.wait_for(served.backend.sessions[0].ended.wait(), PATIENCE)


async def test_streams_that_nobody_asked_for_are_reset(served: Served) -> None:
    async with session(served, "sleep", "0.3", kinds="stdout") as one:
        extra = await one.peer.open(streamtype="stderr")
        assert await one.finish() == Exited(0)
        assert extra in one.peer.reset or extra not in one.peer.replied


async def test_a_client_that_opens_too_few_streams_is_not_waited_for_for_ever(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spdy_wire, "CREATION_TIMEOUT", 0.3)
    served.backend.add("web")
    async with spdy(served, f"{EXEC}?command=true&output=1", V4) as (answer, peer):
        assert answer.status == 101
        await peer.open(streamtype="error")
        await peer.until(lambda: peer.closed)
    assert not served.backend.sessions
    await nothing_open(served)


async def test_garbage_ends_the_connection(served: Served) -> None:
    served.backend.add("web")
    async with spdy(served, f"{EXEC}?command=true&output=1", V4) as (answer, peer):
        assert answer.status == 101
        peer.writer.write(b"\x80\x03\x00\x01\x00\xff\xff\xff" + bytes(64))
        await peer.writer.drain()
        await peer.until(lambda: peer.closed)
    await nothing_open(served)


async def test_versions_that_nobody_speaks(served: Served) -> None:
    served.backend.add("web")
    async with spdy(served, f"{EXEC}?command=true&output=1", "v9.channel.k8s.io") as (answer, _):
        assert answer.status == 403
        assert answer.headers["x-accepted-stream-protocol-versions"] == ", ".join(SPDY_PROTOCOLS)
    async with spdy(served, "/portForward/default/web", "v4.channel.k8s.io") as (answer, _):
        assert answer.status == 403
        assert answer.headers["x-accepted-stream-protocol-versions"] == PROTOCOL


async def test_ports_are_forwarded(served: Served, refusing_port: int) -> None:
    served.backend.add("web")
    async with (
        listening(echo) as port,
        spdy(served, "/portForward/default/web", PROTOCOL) as (answer, peer),
    ):
        assert answer.status == 101
        sent: dict[int, bytes] = {}
        for number in range(10):
            about = {"port": str(port), "requestid": str(number)}
            await peer.open(streamtype="error", **about)
            data = await peer.open(streamtype="data", **about)
            sent[data] = random.Random(number).randbytes(300_000)
            await peer.send(data, sent[data], fin=True)
        await peer.until(lambda: peer.ended >= sent.keys())
        assert {one: bytes(peer.data[one]) for one in sent} == sent
        about = {"port": str(refusing_port), "requestid": "x"}
        error = await peer.open(streamtype="error", **about)
        await peer.open(streamtype="data", **about)
        await peer.until(lambda: error in peer.ended)
        assert b"connection refused" in peer.data[error]
    await nothing_open(served)
