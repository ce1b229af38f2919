"""A backend of real processes on this machine: what a pool does, without a pool.

`exec` runs the command as a child process in a folder of the container's own, with pipes or with
a real pseudo-terminal. Logs are what a test gives.
"""

import asyncio
import fcntl
import os
import pty
import signal
import struct
import termios
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from vknode.kubeletapi import (
    AttachRequest,
    BackendError,
    ContainerView,
    Ended,
    ExecRequest,
    ExecSession,
    Exit,
    ForwardedConnection,
    LogOptions,
    PodView,
    SessionEvent,
    Stderr,
    Stdout,
)

PIECE = 32 * 1024

OpenLogs = Callable[[PodView, LogOptions], AsyncGenerator[bytes, None]]


@dataclass
class LocalBackend:
    root: Path
    pods: dict[tuple[str, str], PodView] = field(default_factory=dict)
    logs: OpenLogs | None = None
    asked: list[LogOptions] = field(default_factory=list)
    logs_closed: asyncio.Event = field(default_factory=asyncio.Event)
    sessions: list["LocalSession"] = field(default_factory=list)
    exec_error: Exception | None = None
    # What the containers run that are attached to.
    main_command: tuple[str, ...] = ("cat",)
    attached: list[AttachRequest] = field(default_factory=list)
    forwarded: int = 0  # connections that are open now

    def add(
        self,
        name: str,
        *containers: ContainerView,
        namespace: str = "default",
        uid: str = "u-1",
        node: str = "node-1",
    ) -> PodView:
        by_name = {c.name: c for c in containers or (running("main"),)}
        pod = PodView(namespace, name, uid, node, by_name)
        self.pods[namespace, name] = pod
        return pod

    def lookup(self, namespace: str, name: str) -> PodView | None:
        return self.pods.get((namespace, name))

    def pods_json(self, node: str | None) -> Iterable[bytes]:
        for pod in self.pods.values():
            if node in (None, pod.node):
                yield b'{"metadata":{"name":"%s"}}' % pod.name.encode()

    async def open_logs(self, pod: PodView, options: LogOptions) -> AsyncGenerator[bytes, None]:
        self.asked.append(options)
        assert self.logs is not None
        try:
            async for data in self.logs(pod, options):
                yield data
        finally:
            self.logs_closed.set()

    @asynccontextmanager
    async def open_exec(self, pod: PodView, request: ExecRequest) -> AsyncIterator[ExecSession]:
        if self.exec_error is not None:
            raise self.exec_error
        folder = self.root / pod.name
        folder.mkdir(exist_ok=True)
        session = LocalSession(request, folder)
        self.sessions.append(session)
        try:
            await session.start()
            yield session
        finally:
            await session.end()

    @asynccontextmanager
    async def open_attach(self, pod: PodView, request: AttachRequest) -> AsyncIterator[ExecSession]:
        self.attached.append(request)
        command = ExecRequest(
            request.container,
            self.main_command,
            request.stdin,
            request.stdout,
            request.stderr,
            request.tty,
        )
        async with self.open_exec(pod, command) as session:
            yield _Attached(session)

    @asynccontextmanager
    async def open_port_forward(
        self, pod: PodView, port: int
    ) -> AsyncIterator[ForwardedConnection]:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=PIECE)
        except OSError:
            raise BackendError("connection refused") from None
        self.forwarded += 1
        try:
            yield _Connection(reader, writer)
        finally:
            self.forwarded -= 1
            writer.transport.abort()


class _Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        with suppress(ConnectionError):
            await self._writer.drain()

    async def close_write(self) -> None:
        if self._writer.can_write_eof() and not self._writer.is_closing():
            self._writer.write_eof()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while data := await self._reader.read(PIECE):
            yield data


class _Attached:
    """A container's main process: its exit code is nobody's business here."""

    def __init__(self, session: ExecSession) -> None:
        self.write_stdin = session.write_stdin
        self.close_stdin = session.close_stdin
        self.resize = session.resize
        self._session = session

    async def __aiter__(self) -> AsyncIterator[SessionEvent]:
        async for event in self._session:
            yield Ended() if isinstance(event, Exit) else event


def running(name: str, *, tty: bool = False) -> ContainerView:
    return ContainerView(name, "running", started=True, tty=tty)


class LocalSession:
    """One child process; at most one piece of each stream is in memory."""

    def __init__(self, request: ExecRequest, folder: Path) -> None:
        self._request = request
        self._folder = folder
        self._events: asyncio.Queue[SessionEvent] = asyncio.Queue(1)
        self._tasks: list[asyncio.Task[None]] = []
        self._stdin: asyncio.StreamWriter | None = None
        self._terminal: int | None = None
        self._pid = 0
        self.ended = asyncio.Event()
        self.stdin_bytes = 0
        self.size = (0, 0)

    async def start(self) -> None:
        request = self._request
        slave: int | None = None
        try:
            if request.tty:
                self._terminal, slave = pty.openpty()
                os.set_blocking(self._terminal, False)
            pipe = asyncio.subprocess.PIPE
            child = await asyncio.create_subprocess_exec(
                *request.command,
                stdin=slave or (pipe if request.stdin else asyncio.subprocess.DEVNULL),
                stdout=slave or pipe,
                stderr=slave or pipe,
                cwd=self._folder,
                start_new_session=True,
                limit=PIECE,
                preexec_fn=_take_terminal if request.tty else None,
            )
        except FileNotFoundError:
            if self._terminal is not None:
                os.close(self._terminal)
                self._terminal = None
            raise BackendError(f'exec: "{request.command[0]}": file not found in $PATH') from None
        finally:
            if slave is not None:
                os.close(slave)
        self._pid = child.pid
        self._stdin = child.stdin
        self._tasks = [asyncio.create_task(self._run(child))]

    async def _run(self, child: asyncio.subprocess.Process) -> None:
        if self._terminal is not None:
            await asyncio.gather(child.wait(), self._read_terminal(self._terminal))
        else:
            assert child.stdout is not None
            assert child.stderr is not None
            await asyncio.gather(
                self._read(child.stdout, Stdout), self._read(child.stderr, Stderr), child.wait()
            )
        code = child.returncode
        assert code is not None
        await self._events.put(Exit(code if code >= 0 else 128 - code))

    async def _read(
        self, stream: asyncio.StreamReader, event: Callable[[bytes], SessionEvent]
    ) -> None:
        while data := await stream.read(PIECE):
            await self._events.put(event(data))

    async def _read_terminal(self, terminal: int) -> None:
        while True:
            await _readable(terminal)
            try:
                data = os.read(terminal, PIECE)
            except OSError:  # EIO: the last process with this terminal has ended
                return
            await self._events.put(Stdout(data))

    async def write_stdin(self, data: bytes) -> None:
        self.stdin_bytes += len(data)
        if self._terminal is not None:
            os.write(self._terminal, data)
        elif self._stdin is not None:
            self._stdin.write(data)
            try:
                await self._stdin.drain()
            except ConnectionError:
                self._stdin = None

    async def close_stdin(self) -> None:
        if self._stdin is not None:
            self._stdin.close()

    async def resize(self, width: int, height: int) -> None:
        self.size = (width, height)
        if self._terminal is not None:
            fcntl.ioctl(
                self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0)
            )

    async def __aiter__(self) -> AsyncIterator[SessionEvent]:
        while True:
            yield await self._events.get()

    async def end(self) -> None:
        for task in self._tasks:
            if not task.done():
                # It may have ended, and what it said waits to be read.
                with suppress(ProcessLookupError):
                    os.killpg(self._pid, signal.SIGKILL)
                drain = asyncio.create_task(self._drain())
                await asyncio.wait({task})
                drain.cancel()
        if self._stdin is not None:
            self._stdin.close()
        if self._terminal is not None:
            os.close(self._terminal)
            self._terminal = None
        self.ended.set()

    async def _drain(self) -> None:
        while True:
            await self._events.get()


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


async def _readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)
