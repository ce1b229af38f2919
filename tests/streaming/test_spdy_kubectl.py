"""Our server's role against a real client: kubectl's exec over SPDY, on a bare socket."""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from vknode.devcluster.programs.catalog import ProgramsMissing
from vknode.devcluster.programs.provide import require
from vknode.streaming.remotecommand import Exited, encode_outcome
from vknode.streaming.spdy import (
    ConnectionClosed,
    DataReceived,
    SpdyConnection,
    StreamEnded,
    StreamOpened,
)

POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "web", "namespace": "default"},
    "spec": {"containers": [{"name": "main"}]},
    "status": {"phase": "Running"},
}
# What kubectl looks up before it asks for the Pod and its exec.
ANSWERS = {
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/apis": {"apiVersion": "v1", "kind": "APIGroupList", "groups": []},
    "/api/v1": {
        "kind": "APIResourceList",
        "groupVersion": "v1",
        "resources": [
            {"name": "pods", "singularName": "pod", "namespaced": True, "kind": "Pod", "verbs": []}
        ],
    },
    "/api/v1/namespaces/default/pods/web": POD,
}


@dataclass
class FakeNode:
    """Answers for a Pod, then echoes stdin to stdout and ends with the wanted exit code."""

    exit_code: int = 0
    port: int = 0
    kinds: set[str] = field(default_factory=set)
    failures: list[BaseException] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._serve(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # kubectl is done with this connection
        except AssertionError as error:
            self.failures.append(error)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            if "upgrade: spdy/3.1" in head:
                writer.write(
                    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"
                    b"Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n"
                )
                return await self._exec(reader, writer, head)
            path = head.split(" ", 2)[1].partition("?")[0]
            body = json.dumps(ANSWERS[path]).encode()
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
            )

    async def _exec(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: str
    ) -> None:
        spdy = SpdyConnection(client=False)
        ids: dict[str, int] = {}
        expected = 1 + sum(f"{name}=true" in head for name in ("stdin", "stdout", "stderr", "tty"))
        echoed = b""
        over = "stdin=true" not in head
        while not (over and len(ids) == expected):
            for event in spdy.receive_data(await reader.read(65536)):
                match event:
                    case StreamOpened(stream_id, headers):
                        ids[headers["streamtype"]] = stream_id
                        spdy.accept_stream(stream_id)
                    case DataReceived(stream_id, data) if stream_id == ids.get("stdin"):
                        echoed += data
                    case StreamEnded(stream_id) if stream_id == ids.get("stdin"):
                        over = True
                    case ConnectionClosed(reason):
                        raise AssertionError(reason)
                    case _:
                        pass
            writer.write(spdy.data_to_send())
        self.kinds = set(ids)
        spdy.send_data(ids["stdout"], b"got " + echoed, fin=True)
        if "stderr" in ids:
            spdy.send_data(ids["stderr"], b"", fin=True)
        status = encode_outcome(Exited(self.exit_code), as_json=True)
        spdy.send_data(ids["error"], status, fin=True)
        spdy.go_away()
        writer.write(spdy.data_to_send())
        await writer.drain()
        while data := await reader.read(65536):
            spdy.receive_data(data)


@pytest.fixture
async def node() -> AsyncIterator[FakeNode]:
    made = FakeNode()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    yield made
    server.close()
    await server.wait_closed()
    assert made.failures == []


async def kubectl(
    node: FakeNode, folder: Path, *arguments: str, stdin: bytes = b""
) -> tuple[int, bytes, str]:
    try:
        program = require(("kubectl",))["kubectl"]
    except ProgramsMissing as problem:
        pytest.skip(str(problem))
    kubeconfig = folder / "kubeconfig"
    kubeconfig.write_text("")
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(
        program,
        f"--server=http://127.0.0.1:{node.port}",
        f"--cache-dir={folder}",
        f"--kubeconfig={kubeconfig}",
        "-n",
        "default",
        "exec",
        *arguments,
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        env={**os.environ, "KUBECTL_REMOTE_COMMAND_WEBSOCKETS": "false"},
    )
    async with asyncio.timeout(30):
        out, err = await child.communicate(stdin)
    assert child.returncode is not None
    return child.returncode, out, err.decode()


async def test_output_and_exit_code(node: FakeNode, tmp_path: Path) -> None:
    node.exit_code = 7
    code, out, err = await kubectl(node, tmp_path, "web", "--", "true")
    assert (code, out) == (7, b"got ")
    assert "command terminated with exit code 7" in err
    assert node.kinds == {"error", "stdout", "stderr"}


async def test_stdin_and_its_end(node: FakeNode, tmp_path: Path) -> None:
    data = bytes(range(48, 58)) * 20_000
    code, out, err = await kubectl(node, tmp_path, "-i", "web", "--", "cat", stdin=data)
    assert (code, err) == (0, "")
    assert out == b"got " + data
    assert node.kinds == {"error", "stdin", "stdout", "stderr"}
