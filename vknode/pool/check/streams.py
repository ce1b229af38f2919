"""Checks of logs, exec, attach and port-forward."""

from __future__ import annotations

import asyncio
import hashlib
import re
import time

from vknode.pool.check.suite import (
    FOREVER,
    Bench,
    CheckFailed,
    check,
    expect,
    expect_equal,
    expect_failure,
)
from vknode.pool.errors import NOT_FOUND, REFUSED, PoolFailure
from vknode.pool.v1 import spec_pb2, stream_pb2

NEVER = spec_pb2.RESTART_POLICY_NEVER
_TEN = "; ".join(f"echo line {number}" for number in range(1, 11))
_STAMP = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z ")


@check("logs: text, tail, limit, timestamps, since, and the two streams apart")
async def logs_options(bench: Bench) -> None:
    spec = bench.spec(["sh", "-c", f"{_TEN}; echo problem >&2; sleep 1.5; echo late"], policy=NEVER)
    await bench.finished(spec)
    out = "".join(f"line {number}\n" for number in range(1, 11)).encode()
    everything = await bench.logs(spec)
    expect_equal(
        sorted(everything.splitlines()),
        sorted((out + b"problem\nlate\n").splitlines()),
        "the whole log's lines",
    )
    expect_equal(
        await bench.logs(spec, stream=stream_pb2.LOG_STREAM_STDOUT), out + b"late\n", "stdout alone"
    )
    expect_equal(
        await bench.logs(spec, stream=stream_pb2.LOG_STREAM_STDERR), b"problem\n", "stderr alone"
    )
    stdout = stream_pb2.LOG_STREAM_STDOUT
    # Not together with one stream: whether the tail is taken before or after is open.
    expect_equal(await bench.logs(spec, tail_lines=1), b"late\n", "tail 1")
    expect_equal(len((await bench.logs(spec, tail_lines=5)).splitlines()), 5, "lines of tail 5")
    expect_equal(await bench.logs(spec, tail_lines=0), b"", "tail 0")
    expect_equal(await bench.logs(spec, limit_bytes=9, stream=stdout), out[:9], "9 bytes")
    stamped = (await bench.logs(spec, timestamps=True, stream=stdout)).splitlines()
    for line in stamped:
        expect(_STAMP.match(line), f"no RFC 3339 nano time in {line!r}")
    request = stream_pb2.StreamLogsRequest(uid=spec.uid, container="main")
    # The last line's own time: what was written then or later is that line alone.
    request.since.FromJsonString(stamped[-1].split()[0].decode())
    stream = await bench.client.logs(request)
    late = b"".join([piece async for piece in stream])
    expect_equal(late, b"late\n", "log since the last line's time")


@check("logs: follow gives what is written later and ends with the container")
async def logs_follow(bench: Bench) -> None:
    spec = bench.spec(["sh", "-c", "echo early; sleep 1.5; echo later; sleep 0.5"], policy=NEVER)
    await bench.create(spec)
    await bench.wait(spec, lambda s: s.containers[0].state.HasField("running"), "running")
    # Raises where it does not end with the container.
    expect_equal(await bench.logs(spec, follow=True), b"early\nlater\n", "followed log")


@check("logs: `previous` is the instance before; without one it is NOT_FOUND or REFUSED")
async def logs_previous(bench: Bench) -> None:
    spec = bench.spec(
        ["sh", "-c", "echo I was here; exit 1"], policy=spec_pb2.RESTART_POLICY_ALWAYS
    )
    await bench.create(spec)
    await bench.wait(
        spec,
        lambda s: s.containers[0].restart_count >= 1 and s.containers[0].container_id,
        "restarted",
    )
    expect_equal(await bench.logs(spec, previous=True), b"I was here\n", "previous log")
    fresh = bench.spec()
    await bench.running(fresh)
    await expect_failure(bench.logs(fresh, previous=True), NOT_FOUND, REFUSED)


@check("logs: an unknown container is NOT_FOUND, an empty name REFUSED")
async def logs_unknown(bench: Bench) -> None:
    spec = bench.spec()
    await bench.running(spec)
    await expect_failure(bench.logs(spec, "none"), NOT_FOUND)
    await expect_failure(bench.logs(spec, ""), REFUSED, field="container")
    await expect_failure(bench.logs(spec, tail_lines=-1), REFUSED, field="tail_lines")


@check("logs: a client that leaves in the middle does no harm")
async def logs_abandoned(bench: Bench) -> None:
    spec = bench.spec()
    await bench.running(spec)
    for _ in range(20):
        stream = await bench.client.logs(
            stream_pb2.StreamLogsRequest(uid=spec.uid, container="main", follow=True)
        )
        await stream.close()
    expect_equal(await bench.logs(spec), b"ready\n", "log afterwards")


@check("exec: streams apart, exit code last")
async def exec_output(bench: Bench) -> None:
    spec = bench.spec()
    await bench.running(spec)
    seen = await bench.exec(spec, ["sh", "-c", "echo out; echo err >&2; exit 7"])
    expect_equal(seen, (7, b"out\n", b"err\n"), "exit code, stdout, stderr")
    expect_equal((await bench.exec(spec, ["true"]))[0], 0, "exit code of true")
    expect_equal((await bench.exec(spec, ["false"]))[0], 1, "exit code of false")


@check("exec: 8 MiB through stdin and back, unchanged, in pieces of at most 64 KiB")
async def exec_stdin(bench: Bench) -> None:
    spec = bench.spec()
    await bench.running(spec)
    data = bytes(range(251)) * (8 * 1024 * 1024 // 251)
    code, output, _ = await bench.exec(spec, ["cat"], stdin=data)
    expect_equal(code, 0, "exit code of cat")
    expect_equal(len(output), len(data), "bytes that came back")
    expect_equal(hashlib.sha256(output).digest(), hashlib.sha256(data).digest(), "hash")


@check("exec: a command that does not read its input still ends")
async def exec_ignores_stdin(bench: Bench) -> None:
    spec = bench.spec()
    await bench.running(spec)
    # No more than a pipe holds: containerd 1.6 itself never ends such an exec once its
    # FIFO is full (its copy of the input waits for a reader, and the end for the copy).
    for _ in range(5):
        code, output, _ = await bench.exec(spec, ["echo", "done"], stdin=b"x" * 32 * 1024)
        expect_equal((code, output), (0, b"done\n"), "exit code and output")


@check("exec: with a TTY lines end in CR LF; stderr cannot be asked apart")
async def exec_tty(bench: Bench) -> None:
    spec = bench.spec()
    await bench.running(spec)
    code, output, _ = await bench.exec(spec, ["echo", "hello"], tty=True)
    expect_equal((code, output), (0, b"hello\r\n"), "exit code and output")
    start = stream_pb2.ExecRequest.Start(
        uid=spec.uid, container="main", command=["true"], tty=True, stdout=True, stderr=True
    )
    await expect_failure(bench.client.exec(start), REFUSED, field="start.stderr")


@check("exec: an unknown program, container or state is told apart")
async def exec_unknown(bench: Bench) -> None:
    spec = bench.spec()
    await bench.running(spec)
    try:
        code, _, _ = await bench.exec(spec, ["/no/such/program"])
        expect(code in (126, 127, 128), f"exit code {code} of an unknown program")
    except PoolFailure as failure:
        expect(not failure.retryable, f"an unknown program is retryable: {failure}")
    start = stream_pb2.ExecRequest.Start(uid=spec.uid, container="none", command=["true"])
    await expect_failure(bench.client.exec(start), NOT_FOUND)
    ended = bench.spec(["true"], policy=NEVER)
    await bench.finished(ended)
    ended_failure = await expect_failure(bench.exec(ended, ["true"]), REFUSED)
    expect(ended_failure.wrong_state, "the code for an ended container is not FAILED_PRECONDITION")


@check("exec: sixteen at once do not mix")
async def exec_parallel(bench: Bench) -> None:
    spec = bench.spec()
    await bench.running(spec)

    async def one(number: int) -> None:
        seen = await bench.exec(spec, ["cat"], stdin=f"{number}\n".encode() * 1000)
        expect_equal(seen[1], f"{number}\n".encode() * 1000, f"output of exec {number}")

    await asyncio.gather(*(one(number) for number in range(16)))


@check("exec: ends when its container ends")
async def exec_ends_with_container(bench: Bench) -> None:
    spec = bench.spec(grace=1)
    await bench.running(spec)
    running = asyncio.create_task(bench.exec(spec, ["sleep", "1000"]))
    try:
        await asyncio.sleep(0.5)
        await bench.client.delete(spec.uid, 0)
        await bench.gone(spec, bench.settings.timeout)
        try:
            await asyncio.wait_for(running, bench.settings.timeout)
        except PoolFailure:
            pass  # an end without an exit code is as good as 137
        except TimeoutError:
            raise CheckFailed("the exec goes on though its container is gone") from None
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@check("attach: shows what the container prints and ends with it")
async def attach_output(bench: Bench) -> None:
    # Not `printf` or a pipe: the image may have a small shell only.
    lines = "; ".join("sleep 0.3; echo tick" for _ in range(30))
    spec = bench.spec(["sh", "-c", lines], policy=NEVER)
    await bench.create(spec)
    await bench.wait(spec, lambda s: s.containers[0].state.HasField("running"), "running")
    session = await bench.client.attach(
        stream_pb2.AttachRequest.Start(uid=spec.uid, container="main", stdout=True, stderr=True)
    )
    output = b""
    try:
        async with asyncio.timeout(bench.settings.timeout):
            async for _, data in session.receive():
                output += data
    except TimeoutError:
        raise CheckFailed("attach did not end with the container") from None
    finally:
        await session.close()
    expect(b"tick\n" in output, f"attach showed {output!r}")
    expect(set(output.splitlines()) == {b"tick"}, f"attach showed {output!r}")


@check("port-forward: carries an HTTP exchange; a port nobody listens on fails")
async def port_forward(bench: Bench) -> None:
    spec = bench.spec(["httpd", "-f", "-p", "8080"])
    spec.containers[0].ports.add(container_port=8080, protocol="TCP")
    await bench.running(spec)
    answer = b""
    deadline = time.monotonic() + bench.settings.timeout
    while True:  # httpd needs a moment until it listens
        try:
            connection = await bench.client.port_forward(spec.uid, 8080)
            await connection.write(b"GET / HTTP/1.0\r\n\r\n")
            try:
                async with asyncio.timeout(10):
                    async for data in connection.receive():
                        answer += data
                        if b"\r\n\r\n" in answer:
                            break
            finally:
                await connection.close()
        except PoolFailure:
            if time.monotonic() > deadline:
                raise
        if answer or time.monotonic() > deadline:
            break
        await asyncio.sleep(0.2)
    expect(answer.startswith(b"HTTP/1."), f"answer {answer[:80]!r}")
    left = []
    try:
        connection = await bench.client.port_forward(spec.uid, 8099)
        try:
            async with asyncio.timeout(10):
                left = [data async for data in connection.receive()]
        finally:
            await connection.close()
    except PoolFailure:
        pass  # told before or after `connected`, both will do
    expect(not left, "data came from a port nobody listens on")


@check("port-forward: an impossible port is REFUSED")
async def port_forward_port(bench: Bench) -> None:
    spec = bench.spec(FOREVER)
    await bench.running(spec)
    await expect_failure(bench.client.port_forward(spec.uid, 0), REFUSED, field="start.port")
