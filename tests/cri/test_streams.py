"""exec, attach and port-forward through containerd's own streaming server."""

from __future__ import annotations

import asyncio
import hashlib
import os
import resource

import pytest

from tests.cri.harness import PATIENCE, Harness, pod
from vknode.pool.runtimes.base import ExecStreams
from vknode.pool.runtimes.cri.spdy_client import exit_code
from vknode.pool.runtimes.facts import Failure
from vknode.pool.v1 import stream_pb2

pytestmark = pytest.mark.containerd
BIG = 50 << 20


async def collect(streams: ExecStreams) -> tuple[bytes, bytes]:
    out = {1: b"", 2: b""}
    async with asyncio.timeout(PATIENCE):
        async for number, piece in streams.receive():
            assert len(piece) <= 65536
            out[number] += piece
    return out[1], out[2]


def command(*words: str, stdin: bool = False, tty: bool = False) -> stream_pb2.ExecRequest.Start:
    return stream_pb2.ExecRequest.Start(
        command=words, stdin=stdin, stdout=True, stderr=not tty, tty=tty
    )


async def test_output_is_split_and_the_exit_code_comes_last(harness: Harness) -> None:
    _, ref = await harness.start(pod())
    for code in (0, 7, 200):
        streams = await harness.runtime.exec(
            ref, command("sh", "-c", f"echo out; echo err >&2; exit {code}")
        )
        assert await collect(streams) == (b"out\n", b"err\n")
        assert await streams.exit_code() == code
        await streams.close()


async def test_what_goes_in_comes_out_50_megabytes(harness: Harness) -> None:
    _, ref = await harness.start(pod())
    streams = await harness.runtime.exec(ref, command("cat", stdin=True))
    block = os.urandom(1 << 20)
    sent, received, count = hashlib.sha256(), hashlib.sha256(), 0

    async def feed() -> None:
        for _ in range(BIG // len(block)):
            sent.update(block)
            for start in range(0, len(block), 65536):
                await streams.write(block[start : start + 65536])
        await streams.close_write()

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with asyncio.timeout(2 * PATIENCE):
        feeding = asyncio.create_task(feed())
        async for _, piece in streams.receive():
            received.update(piece)
            count += len(piece)
        await feeding
    assert (count, received.hexdigest()) == (BIG, sent.hexdigest())
    assert await streams.exit_code() == 0
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 20 * 1024, f"{grown} KiB more memory for a stream of 50 MiB"
    await streams.close()


async def test_a_writer_waits_for_a_command_that_does_not_read(harness: Harness) -> None:
    _, ref = await harness.start(pod())
    streams = await harness.runtime.exec(ref, command("sleep", "1000", stdin=True))
    written = 0

    async def feed() -> None:
        nonlocal written
        while True:
            await streams.write(bytes(65536))
            written += 65536

    feeding = asyncio.create_task(feed())
    last = -1
    async with asyncio.timeout(PATIENCE):
        while written != last or written == 0:
            last = written
            await asyncio.sleep(0.3)
    feeding.cancel()
    assert written < 32 << 20, "the pipes between are full long before"
    await streams.close()


async def test_a_command_that_stops_reading_still_tells_its_end(harness: Harness) -> None:
    _, ref = await harness.start(pod())
    streams = await harness.runtime.exec(
        ref, command("sh", "-c", "head -c 1 | wc -c; exit 9", stdin=True)
    )

    # More than the pipes hold makes containerd 1.6 wait for ever (for a kubelet too).
    await streams.write(bytes(65536))
    assert await collect(streams) == (b"1\n", b"")
    assert await streams.exit_code() == 9
    await streams.write(b"too late")
    await streams.close()


async def test_a_terminal_has_the_size_it_is_told(harness: Harness) -> None:
    _, ref = await harness.start(pod())
    streams = await harness.runtime.exec(ref, command("sh", stdin=True, tty=True))
    await streams.resize(132, 43)
    text = b""
    async with asyncio.timeout(PATIENCE):
        await streams.write(b"until stty size | grep 43; do sleep 0.05; done; exit 3\n")
        async for _, piece in streams.receive():
            text += piece
    assert b"43 132\r\n" in text
    assert await streams.exit_code() == 3
    await streams.close()


async def test_a_command_that_is_not_there_is_told(harness: Harness) -> None:
    _, ref = await harness.start(pod())
    streams = await harness.runtime.exec(ref, command("/no/such"))
    await collect(streams)
    with pytest.raises(Failure, match="/no/such"):
        await streams.exit_code()
    await streams.close()


async def test_exec_sync_answers_with_code_and_output(harness: Harness) -> None:
    _, ref = await harness.start(pod())
    assert await harness.runtime.exec_sync(ref, ["sh", "-c", "echo hi; exit 4"], PATIENCE) == (
        4,
        b"hi\n",
    )
    with pytest.raises(Failure) as late:
        await harness.runtime.exec_sync(ref, ["sleep", "100"], 1)
    assert (late.value.reason, late.value.message) == (
        "DeadlineExceeded",
        'command timed out: "sleep 100" timed out after 1s',
    )


async def test_attach_talks_to_the_first_process_until_it_ends(harness: Harness) -> None:
    spec = pod("while read line; do echo got $line; [ $line = last ] && exit 0; done")
    spec.containers[0].stdin = True
    # Else the end of the container's stderr, seen before the last of its stdout, would end
    # both (containerd's ContainerIO.Attach).
    spec.containers[0].stdin_once = True
    _, ref = await harness.start(spec)
    streams = await harness.runtime.attach(
        ref, stream_pb2.AttachRequest.Start(stdin=True, stdout=True, stderr=True)
    )
    heard = bytearray()

    async def listen() -> None:
        async for _, piece in streams.receive():
            heard.extend(piece)

    listening = asyncio.create_task(listen())
    async with asyncio.timeout(PATIENCE):
        # containerd gives the input to the process a moment before it takes its output.
        while not heard:
            await streams.write(b"anybody\n")
            await asyncio.sleep(0.1)
        await streams.write(b"last\n")
        await listening
    assert heard.startswith(b"got anybody\n") and heard.endswith(b"got last\n")
    await streams.close()
    assert (await harness.exit_of(ref)).exit_code == 0


async def test_a_port_is_forwarded_into_the_pods_network(harness: Harness) -> None:
    spec = pod("nc -l -p 7777 -e head -n 1")
    sandbox, ref = await harness.start(spec)
    async with asyncio.timeout(PATIENCE):
        while (
            await harness.runtime.exec_sync(ref, ["sh", "-c", "netstat -ltn | grep 7777"], PATIENCE)
        )[0]:
            await asyncio.sleep(0.02)
    streams = await harness.runtime.port_forward(sandbox, 7777)
    await streams.write(b"ping\n")
    assert await collect(streams) == (b"ping\n", b"")
    await streams.close()


async def test_a_port_where_nobody_listens_is_told(harness: Harness) -> None:
    sandbox, _ = await harness.start(pod())
    streams = await harness.runtime.port_forward(sandbox, 9)
    with pytest.raises(Failure) as refused:
        await collect(streams)
    assert refused.value.reason == "PortForwardFailed"
    await streams.close()


def test_a_stream_without_a_status_is_no_success() -> None:
    with pytest.raises(Failure):
        exit_code(b"")
    with pytest.raises(Failure, match="boom"):
        exit_code(b'{"status":"Failure","message":"boom"}')
    with pytest.raises(Failure, match="not json"):
        exit_code(b"not json")


def test_a_command_that_cannot_start_is_told_in_the_runtimes_words_once() -> None:
    said = (
        b'{"status":"Failure","reason":"InternalError","message":"Internal error occurred: '
        b'error executing command in container: failed to exec: no such file"}'
    )
    with pytest.raises(Failure) as told:
        exit_code(said)
    assert told.value.message == "failed to exec: no such file"
