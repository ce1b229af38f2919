"""Exec over WebSocket: real commands, their output, their exit codes and their end."""

import asyncio
import hashlib
import random
import tracemalloc
from dataclasses import dataclass, field

import aiohttp
import pytest

from tests.kubeletapi.conftest import Served
from tests.kubeletapi.local_backend import running
from vknode.kubeletapi import BackendError, ContainerView
from vknode.streaming.channels import (
    UNNAMED,
    V1,
    V1_BASE64,
    V4,
    V4_BASE64,
    V5,
    Channel,
    ChannelData,
    ChannelProtocol,
)
from vknode.streaming.remotecommand import (
    Exited,
    Failed,
    Outcome,
    TerminalSize,
    decode_outcome,
    encode_resize,
)

EXEC = "/exec/default/web/main"
MIB = 1024 * 1024


@dataclass
class Seen:
    """What a client got."""

    stdout: bytearray = field(default_factory=bytearray)
    stderr: bytearray = field(default_factory=bytearray)
    error: bytearray = field(default_factory=bytearray)
    close_code: int | None = None
    order: list[int] = field(default_factory=list)

    def outcome(self, protocol: ChannelProtocol = V5) -> Outcome:
        return decode_outcome(bytes(self.error), as_json=protocol.status_is_json)


def query(*command: str, flags: str = "output error") -> list[tuple[str, str]]:
    return [("command", word) for word in command] + [(name, "1") for name in flags.split()]


class Client:
    """One open exec session of a test."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, protocol: ChannelProtocol) -> None:
        self.socket = socket
        self.protocol = protocol
        self.seen = Seen()

    async def send(self, channel: Channel, data: bytes) -> None:
        payload = self.protocol.encode(channel, data)
        if self.protocol.text:
            await self.socket.send_str(payload.decode())
        else:
            await self.socket.send_bytes(payload)

    async def close_stdin(self) -> None:
        await self.socket.send_bytes(self.protocol.encode_close(Channel.STDIN))

    async def read(self) -> bool:
        """Takes one message; False at the end."""
        message = await self.socket.receive()
        if message.type not in (aiohttp.WSMsgType.BINARY, aiohttp.WSMsgType.TEXT):
            self.seen.close_code = self.socket.close_code
            return False
        raw = message.data.encode() if isinstance(message.data, str) else message.data
        part = self.protocol.decode(raw)
        assert isinstance(part, ChannelData)
        self.seen.order.append(part.channel)
        match part.channel:
            case Channel.STDOUT:
                self.seen.stdout += part.data
            case Channel.STDERR:
                self.seen.stderr += part.data
            case Channel.ERROR:
                self.seen.error += part.data
            case other:
                raise AssertionError(f"data on channel {other}")
        return True

    async def read_until(self, text: bytes) -> None:
        async with asyncio.timeout(60):
            while text not in self.seen.stdout:
                assert await self.read(), self.seen

    async def finish(self) -> Seen:
        async with asyncio.timeout(60):
            while await self.read():
                pass
        return self.seen


async def connect(
    served: Served, parameters: list[tuple[str, str]], protocol: ChannelProtocol = V5
) -> Client:
    if ("default", "web") not in served.backend.pods:
        served.backend.add("web")
    socket = await served.http.ws_connect(
        served.url + EXEC, params=parameters, protocols=(protocol.name,) if protocol.name else ()
    )
    assert socket.protocol == (protocol.name or None)
    return Client(socket, protocol)


async def run(served: Served, *command: str, protocol: ChannelProtocol = V5) -> Seen:
    return await (await connect(served, query(*command), protocol)).finish()


async def refused(served: Served, path: str, *protocols: str, **extra: str) -> tuple[int, str]:
    headers = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
        "Sec-WebSocket-Protocol": ", ".join(protocols or (V5.name,)),
        **extra,
    }
    async with served.http.get(served.url + path, headers=headers) as response:
        return response.status, await response.text()


async def test_output_and_success(served: Served) -> None:
    seen = await run(served, "sh", "-c", "echo out; echo err >&2")
    assert (bytes(seen.stdout), bytes(seen.stderr)) == (b"out\n", b"err\n")
    assert seen.outcome() == Exited(0)
    assert seen.close_code == 1000


async def test_exit_code_comes_after_all_output(served: Served) -> None:
    seen = await run(served, "sh", "-c", "head -c 300000 /dev/zero; exit 7")
    assert len(seen.stdout) == 300_000
    assert seen.outcome() == Exited(7)
    assert seen.order[-1] == Channel.ERROR
    assert seen.order.count(Channel.ERROR) == 1


async def test_the_first_message_says_that_the_connection_is_there(served: Served) -> None:
    client = await connect(served, query("cat", flags="input output"))
    await client.read()
    assert client.seen.order == [Channel.STDOUT]
    assert client.seen.stdout == b""
    await client.close_stdin()
    assert (await client.finish()).outcome() == Exited(0)


async def test_stdin_with_its_end(served: Served) -> None:
    client = await connect(served, query("cat", flags="input output error"))
    await client.send(Channel.STDIN, b"one ")
    await client.send(Channel.STDIN, b"")
    await client.send(Channel.STDIN, b"two")
    await client.close_stdin()
    seen = await client.finish()
    assert seen.stdout == b"one two"
    assert seen.outcome() == Exited(0)


async def test_what_was_not_asked_for_is_not_sent(served: Served) -> None:
    client = await connect(served, query("sh", "-c", "cat; echo err >&2", flags="output"))
    await client.send(Channel.STDIN, b"not asked for")
    seen = await client.finish()
    assert (bytes(seen.stdout), bytes(seen.stderr)) == (b"", b"")
    assert seen.outcome() == Exited(0)


@pytest.mark.parametrize("protocol", [V4, V4_BASE64, V1, V1_BASE64, UNNAMED])
async def test_older_protocols(served: Served, protocol: ChannelProtocol) -> None:
    parameters = query("sh", "-c", "read line; echo got $line; exit 3", flags="input output")
    client = await connect(served, parameters, protocol)
    await client.send(Channel.STDIN, b"it\n")
    seen = await client.finish()
    assert seen.stdout == b"got it\n"
    if protocol.status_is_json:
        assert seen.outcome(protocol) == Exited(3)
    else:
        assert seen.error.endswith(b"exit code 3")


async def test_a_terminal_with_resize(served: Served) -> None:
    script = "stty size; read x; stty size; echo got:$x; exec cat"
    client = await connect(served, query("bash", "-c", script, flags="input output error tty"))
    await client.read_until(b"0 0\r\n")
    size = encode_resize(TerminalSize(100, 40))
    await client.send(Channel.RESIZE, size[:9])
    await client.send(Channel.RESIZE, size[9:])
    await client.send(Channel.STDIN, b"hello\r")
    await client.read_until(b"40 100\r\ngot:hello\r\n")
    await client.send(Channel.STDIN, b"\x03")
    seen = await client.finish()
    assert seen.stderr == b""
    assert seen.outcome() == Exited(130)


async def test_50_mb_through_stdin_and_back_with_bounded_memory(served: Served) -> None:
    block = random.Random(2).randbytes(MIB)
    sent, received = hashlib.sha256(), hashlib.sha256()
    size = 0
    client = await connect(served, query("cat", flags="input output"))

    async def send() -> None:
        for _ in range(50):
            sent.update(block)
            for start in range(0, MIB, 32 * 1024):
                await client.send(Channel.STDIN, block[start : start + 32 * 1024])
        await client.close_stdin()

    tracemalloc.start()
    try:
        sender = asyncio.create_task(send())
        async with asyncio.timeout(240):
            while await client.read():
                received.update(client.seen.stdout)
                size += len(client.seen.stdout)
                client.seen.stdout.clear()
        await sender
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size == 50 * MIB
    assert received.digest() == sent.digest()
    assert client.seen.outcome() == Exited(0)
    assert peak < 16 * MIB  # both ends of the connection and the client are in here


async def test_a_command_that_does_not_read_stops_the_client(served: Served) -> None:
    client = await connect(served, query("sleep", "600", flags="input output"))
    given = 0

    async def send() -> None:
        nonlocal given
        while True:
            await client.send(Channel.STDIN, bytes(64 * 1024))
            given += 1

    sender = asyncio.create_task(send())
    before = -1

    def taken() -> int:
        return sum(session.stdin_bytes for session in served.backend.sessions)

    async with asyncio.timeout(60):
        while before != given or not taken():  # until a fifth of a second brings nothing more
            before = given
            await asyncio.sleep(0.2)
    (session,) = served.backend.sessions
    assert 0 < session.stdin_bytes < MIB
    assert given * 64 * 1024 < 32 * MIB
    sender.cancel()
    await asyncio.wait({sender})
    client.socket._response.close()  # gone without a word
    async with asyncio.timeout(60):
        await session.ended.wait()


async def test_a_client_that_does_not_read_stops_the_command(served: Served) -> None:
    client = await connect(served, query("yes", flags="output"))
    await client.read_until(b"y\n")
    (session,) = served.backend.sessions
    assert not session.ended.is_set()
    await client.socket.close()
    async with asyncio.timeout(60):
        await session.ended.wait()


async def test_input_after_the_commands_end_is_dropped(served: Served) -> None:
    client = await connect(served, query("sh", "-c", "exec <&-; exit 5", flags="input output"))
    for _ in range(64):
        await client.send(Channel.STDIN, bytes(64 * 1024))
    assert (await client.finish()).outcome() == Exited(5)


async def test_a_command_that_cannot_be_started(served: Served) -> None:
    seen = await run(served, "no-such-program")
    outcome = seen.outcome()
    assert isinstance(outcome, Failed)
    assert outcome.message == (
        "Internal error occurred: error executing command in container: "
        'exec: "no-such-program": file not found in $PATH'
    )
    assert seen.close_code == 1000


async def test_a_pool_that_is_away(served: Served) -> None:
    served.backend.exec_error = BackendError("pool az1 is unavailable")
    outcome = (await run(served, "true")).outcome()
    assert isinstance(outcome, Failed)
    assert outcome.message.endswith("pool az1 is unavailable")


async def test_a_fault_of_the_backend_is_told_without_its_details(served: Served) -> None:
    served.backend.exec_error = ZeroDivisionError("secret detail")
    seen = await run(served, "true")
    outcome = seen.outcome()
    assert isinstance(outcome, Failed)
    assert outcome.message == "Internal error occurred: the node's agent failed, see its log"
    assert seen.close_code == 1011


async def test_too_many_sessions(served: Served) -> None:
    clients = [await connect(served, query("cat", flags="input output")) for _ in range(4)]
    for client in clients:
        await client.read()
    path = EXEC + "?command=x&output=1"
    status, text = await refused(served, path)
    assert (status, text) == (429, "maximum number of in-flight requests exceeded")
    await clients[0].close_stdin()
    await clients[0].finish()
    async with asyncio.timeout(60):
        while served.api.running_streams == 4:
            await asyncio.sleep(0.01)
    assert (await run(served, "true")).outcome() == Exited(0)


async def test_a_broken_frame_ends_the_session(served: Served) -> None:
    client = await connect(served, query("sleep", "600", flags="input output"))
    await client.socket.send_bytes(b"\xff\x00\x00")
    seen = await client.finish()
    assert seen.close_code == 1002
    assert seen.error == b""
    async with asyncio.timeout(60):
        await served.backend.sessions[0].ended.wait()


async def test_a_message_that_is_too_large_ends_the_session(served: Served) -> None:
    client = await connect(served, query("cat", flags="input output"))
    await client.socket.send_bytes(bytes(32 * MIB + 1))
    # 1009, unless the rest of the message under way resets the connection before it is read.
    assert (await client.finish()).close_code in (1006, 1009)
    async with asyncio.timeout(60):
        await served.backend.sessions[0].ended.wait()


async def test_a_stop_tells_the_client_and_ends_the_command(served: Served) -> None:
    client = await connect(served, query("sh", "-c", "echo up; sleep 600"))
    await client.read_until(b"up\n")
    stop = asyncio.create_task(served.api.stop())
    seen = await client.finish()
    async with asyncio.timeout(20):  # less than it would wait for who does not end
        await stop
    outcome = seen.outcome()
    assert isinstance(outcome, Failed)
    assert outcome.message.endswith("the node's agent is stopping")
    assert seen.close_code == 1001
    assert served.backend.sessions[0].ended.is_set()


async def test_with_a_uid_in_the_path(served: Served) -> None:
    served.backend.add("web", uid="u-7")
    for uid, status in (("u-7", 101), ("u-8", 500)):
        path = f"/exec/default/web/{uid}/main?command=true&output=1"
        if status == 101:
            async with served.http.ws_connect(served.url + path, protocols=(V5.name,)) as socket:
                assert (await Client(socket, V5).finish()).outcome() == Exited(0)
        else:
            assert await refused(served, path) == (500, 'container not found ("main")')


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        (EXEC + "?command=x", 400, "you must specify at least 1 of stdin, stdout, stderr"),
        (
            EXEC + "?command=x&error=1&tty=1",
            400,
            "you must specify at least 1 of stdin, stdout, stderr",
        ),
        (EXEC + "?output=1", 400, "you must specify at least one command for the container"),
        ("/exec/default/gone/main?command=x&output=1", 404, "pod does not exist"),
        ("/exec/default/web/side?command=x&output=1", 500, 'container not found ("side")'),
        ("/exec/default/web/ended?command=x&output=1", 500, 'container not found ("ended")'),
    ],
)
async def test_a_kubelets_refusals(served: Served, path: str, status: int, text: str) -> None:
    served.backend.add("web", running("main"), ContainerView("ended", "terminated", started=True))
    assert await refused(served, path) == (status, text)


async def test_no_common_protocol(served: Served) -> None:
    served.backend.add("web")
    status, text = await refused(served, EXEC + "?command=x&output=1", "v9.channel.k8s.io")
    assert status == 403
    assert "[v9.channel.k8s.io]" in text
    assert "v5.channel.k8s.io" in text


async def test_without_an_upgrade_there_is_no_session(served: Served) -> None:
    served.backend.add("web")
    assert await served.get(EXEC, command="x", output="1") == (400, "Upgrade request required")
