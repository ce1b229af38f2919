"""Logs, exec, attach and port-forward of simulated containers."""

from __future__ import annotations

import asyncio
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sim.support import make_spec, next_exit, read_logs, run_exec, simulation, start
from tests.support.stepped import stepped
from vknode.pool.runtimes.base import Failure, LogOptions
from vknode.pool.runtimes.sim.shell import Out, Pause, World, command
from vknode.pool.v1 import stream_pb2

SIX = "; ".join(f"echo {number}" for number in range(1, 7))


@stepped
async def test_log_options() -> None:
    async with simulation() as runtime:
        spec = make_spec(["sh", "-c", f"{SIX}; echo bad >&2; sleep 0.2; echo late"])
        _, ref = await start(runtime, spec)
        event = await next_exit(runtime)
        assert await read_logs(runtime, ref) == b"1\n2\n3\n4\n5\n6\nbad\nlate\n"
        assert await read_logs(runtime, ref, tail_lines=2) == b"bad\nlate\n"
        assert await read_logs(runtime, ref, tail_lines=0) == b""
        assert await read_logs(runtime, ref, limit_bytes=5) == b"1\n2\n3"
        err = await read_logs(runtime, ref, stream=stream_pb2.LOG_STREAM_STDERR)
        assert err == b"bad\n"
        since = event.exit.started_at + 100_000_000
        assert await read_logs(runtime, ref, since=since) == b"late\n"
        stamped = await read_logs(runtime, ref, timestamps=True, tail_lines=1)
        stamp, _, text = stamped.partition(b" ")
        assert text == b"late\n" and len(stamp) == len("2026-01-01T00:00:00.000000000Z")


@stepped
async def test_follow_shows_lines_as_they_come_and_ends() -> None:
    async with simulation() as runtime:
        _, ref = await start(runtime, make_spec(log_every="50ms", exit_after="330ms"))
        ended = asyncio.Event()
        seen: list[bytes] = []

        async def follow() -> None:
            async for piece in runtime.logs(ref, LogOptions(follow=True), ended):
                seen.append(piece)

        following = asyncio.create_task(follow())
        await next_exit(runtime)
        assert len(seen) >= 3  # they came one by one, before the end
        ended.set()
        await asyncio.wait_for(following, 30)
        assert b"".join(seen) == b"".join(f"line {n}\n".encode() for n in range(1, 7))


@stepped
async def test_a_killed_container_prints_nothing_after_its_end() -> None:
    async with simulation() as runtime:
        _, ref = await start(runtime, make_spec(["sh", "-c", "echo a; sleep 0.2; echo b"]))
        await runtime.stop_container(ref, 0)
        await next_exit(runtime)
        await asyncio.sleep(1)
        assert await read_logs(runtime, ref, follow=True) == b"a\n"


async def test_a_long_log_comes_whole_and_in_small_pieces() -> None:
    line = "x" * 99
    async with simulation() as runtime:
        _, ref = await start(runtime, make_spec(log_lines="100000", log_line=line))
        total = 0
        digest = hashlib.sha256()
        async for piece in runtime.logs(ref, LogOptions(), asyncio.Event()):
            assert len(piece) <= 64 * 1024
            total += len(piece)
            digest.update(piece)
        assert total == 100 * 100_000
        assert digest.digest() == hashlib.sha256((line + "\n").encode() * 100_000).digest()


@pytest.mark.parametrize(
    ("argv", "result"),
    [
        (["true"], (0, b"", b"")),
        (["false"], (1, b"", b"")),
        (["echo", "a", "b"], (0, b"a b\n", b"")),
        (["sh", "-c", "exit 42"], (42, b"", b"")),
        (["sh", "-c", "echo out; echo err >&2; false || exit 7"], (7, b"out\n", b"err\n")),
        (["sh", "-c", "X='a  b'; echo \"$X\" ${HOME}!"], (0, b"a  b !\n", b"")),
        (["sh", "-c", "true && echo yes; false && echo no; echo $?"], (0, b"yes\n1\n", b"")),
        (["hostname"], (0, b"pod-uid-1\n", b"")),
        (["printenv", "COLOUR"], (0, b"red\n", b"")),
        (["cat", "/etc/config/key"], (0, b"value", b"")),
        (["sh", "-c", "wc -c < /etc/config/key"], (0, b"5\n", b"")),
        (["ls", "/etc/config"], (0, b"deep\nkey\n", b"")),
    ],
)
async def test_exec_answers(argv: list[str], result: tuple[int, bytes, bytes]) -> None:
    async with simulation() as runtime:
        spec = make_spec()
        spec.containers[0].env.add(name="COLOUR", value="red")
        spec.containers[0].mounts.add(volume="config", path="/etc/config")
        files = spec.volumes.add(name="config").files.files
        files.add(path="key", content=b"value")
        files.add(path="deep/er", content=b"")
        _, ref = await start(runtime, spec)
        assert await run_exec(runtime, ref, argv) == result


async def test_exec_of_something_unknown_says_so() -> None:
    async with simulation() as runtime:
        _, ref = await start(runtime, make_spec())
        code, _, err = await run_exec(runtime, ref, ["nginx", "-t"])
        assert code == 127 and b"nginx: not found" in err
        code, _, err = await run_exec(runtime, ref, ["sh", "-c", "cat /x | grep y"])
        assert code == 127 and b"beyond the simulation" in err


async def test_exec_cat_returns_what_it_gets() -> None:
    data = bytes(range(256)) * 40_000
    async with simulation() as runtime:
        _, ref = await start(runtime, make_spec())
        assert await run_exec(runtime, ref, ["cat"], stdin=data) == (0, data, b"")
        code, out, _ = await run_exec(runtime, ref, ["sh"], stdin=b"echo one\nexit 5\n")
        assert (code, out) == (5, b"one\n")
        assert await run_exec(runtime, ref, ["echo", "x"], tty=True) == (0, b"x\r\n", b"")


@stepped
async def test_exec_does_not_read_ahead() -> None:
    async with simulation() as runtime:
        _, ref = await start(runtime, make_spec())
        session = await runtime.exec(
            ref, stream_pb2.ExecRequest.Start(command=["sleep", "60"], stdin=True)
        )
        await session.write(b"one piece waits")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(session.write(b"this one is not taken"), 0.1)
        await session.close()


@stepped
async def test_exec_ends_with_its_container() -> None:
    async with simulation() as runtime:
        _, ref = await start(runtime, make_spec())
        running = asyncio.create_task(run_exec(runtime, ref, ["sleep", "1000"]))
        await asyncio.sleep(0)  # let it begin
        await runtime.stop_container(ref, 0)
        assert (await asyncio.wait_for(running, 30))[0] == 137
        with pytest.raises(Failure, match="not running"):
            await runtime.exec(ref, stream_pb2.ExecRequest.Start(command=["true"]))


@stepped
async def test_exec_sync_is_bounded_in_time_and_output() -> None:
    async with simulation() as runtime:
        spec = make_spec()
        spec.containers[0].mounts.add(volume="v", path="/v")
        spec.volumes.add(name="v").files.files.add(path="big", content=b"x" * 50_000)
        _, ref = await start(runtime, spec)
        assert await runtime.exec_sync(ref, ["cat", "/v/big"], 5) == (0, b"x" * 10_240)
        now = asyncio.get_running_loop().time
        begin = now()
        with pytest.raises(Failure, match="timed out"):
            await runtime.exec_sync(ref, ["sleep", "60"], 0.2)
        assert now() - begin < 5


@stepped
async def test_attach_shows_only_what_is_new_and_echoes_for_cat() -> None:
    async with simulation() as runtime:
        _, ref = await start(runtime, make_spec(log_lines="3", log_every="50ms"))
        session = await runtime.attach(ref, stream_pb2.AttachRequest.Start(stdout=True))
        async for fd, data in session.receive():
            assert (fd, data) == (1, b"line 4\n")
            break
        await session.close()

        spec = make_spec(["cat"], uid="cat")
        spec.containers[0].stdin = spec.containers[0].stdin_once = True
        _, ref = await start(runtime, spec)
        session = await runtime.attach(ref, stream_pb2.AttachRequest.Start(stdin=True))
        await session.write(b"hello")
        await session.close_write()
        assert [data async for _, data in session.receive()] == [b"hello"]
        assert (await next_exit(runtime)).exit.exit_code == 0
        await session.close()


async def test_port_forward_answers_http_on_declared_ports_only() -> None:
    async with simulation() as runtime:
        spec = make_spec()
        spec.containers[0].ports.add(container_port=80)
        sandbox, _ = await start(runtime, spec)
        connection = await runtime.port_forward(sandbox, 80)
        await connection.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await connection.close_write()
        answer = b"".join([data async for _, data in connection.receive()])
        assert answer.startswith(b"HTTP/1.1 200") and sandbox.ips[0].encode() in answer
        await connection.close()
        with pytest.raises(Failure, match="refused"):
            await runtime.port_forward(sandbox, 81)


@given(st.text(max_size=60))
def test_no_script_breaks_the_shell(script: str) -> None:
    program = command(["sh", "-c", script], World())
    try:
        for _ in range(50):
            op = next(program)
            assert isinstance(op, Out | Pause) or op is not None
    except StopIteration as end:
        assert 0 <= end.value <= 255


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="'\0"), max_size=40))
def test_single_quotes_keep_everything(text: str) -> None:
    program = command(["sh", "-c", f"printf '%s' '{text}'"], World())
    output = b"".join(op.data for op in program if isinstance(op, Out))
    assert output == text.encode()
