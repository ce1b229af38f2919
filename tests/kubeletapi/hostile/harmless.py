"""A backend for peers that send anything: it runs no command, dials no port and reads no file.

Sessions give back what they are sent. All that it has to tell is marked with `CONTENT`, so that a
test can see whether it got out.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.kubeletapi.local_backend import LocalBackend, running
from vknode.kubeletapi import (
    BackendError,
    ContainerView,
    ExecRequest,
    ExecSession,
    Exit,
    ForwardedConnection,
    LogOptions,
    PodView,
    SessionEvent,
    Stdout,
)

CONTENT = b"top-secret"
#: A command, a container and a port that never come to an end with what they say.
ENDLESS, ENDLESS_PORT = "endless", 9
_PIECE = CONTENT * 3000


@dataclass
class Harmless(LocalBackend):
    """`given`: bytes that were taken from what never ends, by who took them."""

    root: Path = Path("/nonexistent")
    given: dict[str, int] = field(default_factory=dict)
    open: int = 0  # sessions, connections and logs

    def __post_init__(self) -> None:
        self.add("web", running("main"), running("terminal", tty=True), ContainerView("new"))
        self.add("db", node="node-2", uid="u-2")

    def pods_json(self, node: str | None) -> Iterable[bytes]:
        for pod in super().pods_json(node):
            yield pod[:-1] + b',"spec":{"hostname":"' + CONTENT + b'"}}'

    async def open_logs(self, pod: PodView, options: LogOptions) -> AsyncGenerator[bytes, None]:
        self.open += 1
        try:
            if options.container == "terminal":
                raise BackendError("the log is not to be had")
            yield CONTENT + b"\n"
            while options.follow and options.stream == "Stdout":
                yield self._count("logs")
                await asyncio.sleep(0)
        finally:
            self.open -= 1

    @asynccontextmanager
    async def open_exec(self, pod: PodView, request: ExecRequest) -> AsyncIterator[ExecSession]:
        self.open += 1
        try:
            yield _Session(self, request)
        finally:
            self.open -= 1

    @asynccontextmanager
    async def open_port_forward(
        self, pod: PodView, port: int
    ) -> AsyncIterator[ForwardedConnection]:
        if port % 7 == 0:
            raise BackendError("connection refused")
        self.open += 1
        try:
            yield _Connection(self, endless=port == ENDLESS_PORT)
        finally:
            self.open -= 1

    def _count(self, who: str) -> bytes:
        self.given[who] = self.given.get(who, 0) + len(_PIECE)
        return _PIECE


class _Session:
    def __init__(self, backend: Harmless, request: ExecRequest) -> None:
        self._backend = backend
        self._command = request.command
        # At most one piece is in memory, as with a pool.
        self._events: asyncio.Queue[SessionEvent] = asyncio.Queue(1)
        self._stdin = request.stdin

    async def write_stdin(self, data: bytes) -> None:
        if self._command[0] != ENDLESS:
            await self._events.put(Stdout(data))

    async def close_stdin(self) -> None:
        await self._events.put(Exit(0))

    async def resize(self, width: int, height: int) -> None:
        await self._events.put(Stdout(b"%d x %d" % (width, height)))

    async def __aiter__(self) -> AsyncIterator[SessionEvent]:
        yield Stdout(CONTENT)
        while self._command[0] == ENDLESS:
            yield Stdout(self._backend._count(" ".join(self._command)))
            await asyncio.sleep(0)
        if not self._stdin:
            yield Exit(0)
        while True:
            yield await self._events.get()


class _Connection:
    def __init__(self, backend: Harmless, *, endless: bool) -> None:
        self._backend = backend
        self._endless = endless
        self._data: asyncio.Queue[bytes] = asyncio.Queue(1)

    async def write(self, data: bytes) -> None:
        if not self._endless:
            await self._data.put(data)

    async def close_write(self) -> None:
        if not self._endless:
            await self._data.put(b"")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while self._endless:
            yield self._backend._count("port")
            await asyncio.sleep(0)
        while data := await self._data.get():
            yield data
