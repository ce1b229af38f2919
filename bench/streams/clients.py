"""Clients of exec, logs and port-forward that do as little as possible themselves.

What is measured is the server's side: these open the stream, move bytes and count.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import ssl
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import aiohttp

REMOTE_COMMAND = "v5.channel.k8s.io"
_STDIN, _STDOUT, _STATUS, _CLOSE = 0, 1, 3, 255
_PIECE = 64 * 1024


class StreamBroken(Exception):
    """A stream did not do what was asked of it; the text says what came instead."""


@dataclass(frozen=True)
class Door:
    """Where streams of one Pod are opened: the API server's address or a kubelet's own, whose
    paths and parameters differ (k8s.io/kubelet/pkg/server, `getExecRequestParams`)."""

    session: aiohttp.ClientSession
    url: str
    namespace: str
    pod: str
    kubelet: bool = False

    def exec_url(self, command: Sequence[str], *, stdin: bool) -> str:
        names = ("input", "output") if self.kubelet else ("stdin", "stdout")
        query = [("command", word) for word in command] + [(names[1], "1")]
        if stdin:
            query.append((names[0], "1"))
        if self.kubelet:
            path = f"/exec/{self.namespace}/{self.pod}/main"
        else:
            path = f"/api/v1/namespaces/{self.namespace}/pods/{self.pod}/exec"
        return f"{self.url}{path}?{urlencode(query)}"

    def logs_url(self, **query: str) -> str:
        path = f"/api/v1/namespaces/{self.namespace}/pods/{self.pod}/log"
        return f"{self.url}{path}?{urlencode(query)}"


class Remote:
    """One command over WebSocket, protocol v5."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self.output = bytearray()

    async def write(self, data: bytes) -> None:
        await self._socket.send_bytes(bytes([_STDIN]) + data)

    async def close_stdin(self) -> None:
        await self._socket.send_bytes(bytes([_CLOSE, _STDIN]))

    async def read_until(self, count: int) -> None:
        """Until so many bytes of output came. Raises StreamBroken."""
        while len(self.output) < count:
            if await self._next() is not None:
                raise StreamBroken(f"ended after {len(self.output)} of {count} bytes")

    async def exit_code(self) -> int:
        """Reads to the end. Raises StreamBroken without a status."""
        while True:
            status = await self._next()
            if status is None:
                continue
            if status.get("status") == "Success":
                return 0
            for cause in status.get("details", {}).get("causes", ()):
                if cause.get("reason") == "ExitCode":
                    return int(cause["message"])
            raise StreamBroken(str(status.get("message")))

    async def _next(self) -> dict[str, Any] | None:
        """Takes one message; the status, if it was that."""
        message = await self._socket.receive()
        if message.type is not aiohttp.WSMsgType.BINARY:
            raise StreamBroken(f"closed without a status ({message.type.name})")
        channel, data = message.data[0], message.data[1:]
        if channel == _STDOUT:
            self.output += data
        elif channel == _STATUS:
            status: dict[str, Any] = json.loads(data)
            return status
        return None


@asynccontextmanager
async def remote(door: Door, *command: str, stdin: bool = False) -> AsyncIterator[Remote]:
    async with door.session.ws_connect(
        door.exec_url(command, stdin=stdin), protocols=(REMOTE_COMMAND,), max_msg_size=0
    ) as socket:
        yield Remote(socket)


async def run(door: Door, *command: str) -> float:
    """Seconds of one command from before the connection to its exit code 0."""
    started = time.perf_counter()
    async with remote(door, *command) as session:
        code = await session.exit_code()
        took = time.perf_counter() - started
    if code != 0:
        raise StreamBroken(f"{' '.join(command)} ended with {code}")
    return took


async def connect(door: Door) -> float:
    """Seconds of a new connection, TLS included, to the first answer on it (`/healthz`)."""
    started = time.perf_counter()
    async with door.session.get(f"{door.url}/healthz", headers={"Connection": "close"}) as response:
        response.raise_for_status()
        await response.read()
        return time.perf_counter() - started


@dataclass(frozen=True)
class Download:
    count: int
    digest: str
    seconds: float

    @property
    def mib_per_second(self) -> float:
        return self.count / self.seconds / (1 << 20)


async def download(
    session: aiohttp.ClientSession, url: str, on_first: Callable[[], None] | None = None
) -> Download:
    """The whole body, hashed as it comes; `on_first` is called at its first bytes."""
    digest, count = hashlib.sha256(), 0
    started = time.perf_counter()
    timeout = aiohttp.ClientTimeout(total=None, sock_read=120)
    async with session.get(url, timeout=timeout) as response:
        response.raise_for_status()
        async for piece in response.content.iter_any():
            if on_first is not None and not count:
                on_first()
            digest.update(piece)
            count += len(piece)
    return Download(count, digest.hexdigest(), time.perf_counter() - started)


@asynccontextmanager
async def forwarded(kubectl: Path, kubeconfig: Path, pod: str, port: int) -> AsyncIterator[int]:
    """A local port of the real kubectl's port-forward."""
    child = await asyncio.create_subprocess_exec(
        str(kubectl),
        f"--kubeconfig={kubeconfig}",
        *("port-forward", "--address=127.0.0.1", f"pod/{pod}", f":{port}"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        assert child.stdout is not None
        async with asyncio.timeout(30):
            line = (await child.stdout.readline()).decode()
        found = re.search(r"127\.0\.0\.1:(\d+) ->", line)
        if found is None:
            raise StreamBroken(f"kubectl port-forward said {line!r}")
        yield int(found[1])
    finally:
        if child.returncode is None:
            child.terminate()
        await child.wait()


async def pull(host: str, port: int, count: int) -> float:
    """MiB a second of `count` bytes that the other side sends. Raises StreamBroken."""
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection(host, port, limit=1 << 20)
    got = 0
    while piece := await reader.read(1 << 20):
        got += len(piece)
    took = time.perf_counter() - started
    writer.close()
    if got != count:
        raise StreamBroken(f"{got} of {count} bytes came")
    return got / took / (1 << 20)


async def push(host: str, port: int, count: int) -> float:
    """MiB a second of `count` bytes to a side that says how many it got once that is all.
    Raises StreamBroken."""
    piece = bytes(_PIECE)
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection(host, port)
    for _ in range(count // _PIECE):
        writer.write(piece)
        await writer.drain()
    said = await reader.readline()
    took = time.perf_counter() - started
    writer.close()
    if said.strip() != str(count).encode():
        raise StreamBroken(f"{count} bytes sent, the other side counted {said!r}")
    return count / took / (1 << 20)


def trusting(ca: Path, cert: Path, key: Path) -> ssl.SSLContext:
    """TLS with a client certificate; the names of kubelets' certificates are not looked at."""
    context = ssl.create_default_context(cafile=str(ca))
    context.check_hostname = False
    context.load_cert_chain(cert, key)
    return context
