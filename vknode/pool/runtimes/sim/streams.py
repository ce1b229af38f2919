"""Exec, attach and port-forward sessions of the simulation (`base.ExecStreams`)."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from vknode.pool.runtimes.base import Failure
from vknode.pool.runtimes.sim.shell import CHUNK, Out, Pause, Program, World

KILLED = 137


class _Input:
    """Data from the client: at most one piece waits, `put` waits for its taking."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[bytes] = asyncio.Queue(maxsize=1)
        self._closed = asyncio.Event()

    async def put(self, data: bytes) -> None:
        if self._closed.is_set():
            return  # nobody reads any more, as with a closed pipe
        if not self._queue.full():
            self._queue.put_nowait(data)
            return
        put = asyncio.ensure_future(self._queue.put(data))
        closed = asyncio.ensure_future(self._closed.wait())
        try:
            await asyncio.wait((put, closed), return_when=asyncio.FIRST_COMPLETED)
        finally:
            put.cancel()
            closed.cancel()

    async def get(self) -> bytes:
        """b"" at the end."""
        if not self._queue.empty():
            return self._queue.get_nowait()
        if self._closed.is_set():
            return b""
        get = asyncio.ensure_future(self._queue.get())
        closed = asyncio.ensure_future(self._closed.wait())
        try:
            await asyncio.wait((get, closed), return_when=asyncio.FIRST_COMPLETED)
            if get.done():
                return get.result()
            return b"" if self._queue.empty() else self._queue.get_nowait()
        finally:
            get.cancel()
            closed.cancel()

    def close(self) -> None:
        self._closed.set()


class SimExec:
    """A command run in real time; `receive` drives it, there is no task."""

    def __init__(
        self,
        program: Program,
        world: World,
        *,
        stdin: bool,
        tty: bool,
        forced_code: int | None = None,
        on_close: Callable[[SimExec], None] = lambda session: None,
    ) -> None:
        self._program = program
        self._world = world
        self._tty = tty
        self._input = _Input()
        if not stdin:
            self._input.close()
        self._forced = forced_code
        self._code: int | None = None
        self._killed = asyncio.Event()
        self._on_close = on_close
        self.size = (0, 0)

    def kill(self) -> None:
        """The container has ended, or nobody wants the session any more."""
        self._killed.set()
        self._input.close()

    async def receive(self) -> AsyncIterator[tuple[int, bytes]]:
        answer: bytes | None = None
        begin = time.monotonic()
        while not self._killed.is_set():
            try:
                op = self._program.send(answer)
            except StopIteration as end:
                self._code = int(end.value) if self._forced is None else self._forced
                break
            answer = None
            if isinstance(op, Out):
                fd, data = (1, op.data.replace(b"\n", b"\r\n")) if self._tty else (op.fd, op.data)
                for start in range(0, len(data), CHUNK):
                    yield fd, data[start : start + CHUNK]
            elif isinstance(op, Pause):
                await self._pause(op.seconds)
            else:
                answer = await self._input.get()
            self._world.elapsed = time.monotonic() - begin
        if self._code is None:
            self._code = KILLED
        self._input.close()

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(None if math.isinf(seconds) else seconds):
                await self._killed.wait()
        except TimeoutError:
            pass

    async def write(self, data: bytes) -> None:
        await self._input.put(data)

    async def close_write(self) -> None:
        self._input.close()

    async def resize(self, width: int, height: int) -> None:
        self.size = (width, height)

    async def exit_code(self) -> int:
        if self._code is None:
            raise Failure("ExecEnded", "the command was given up before its end")
        return self._code

    async def close(self) -> None:
        self.kill()
        self._program.close()
        self._on_close(self)


class SimAttach:
    """The container's further output; input is echoed by a container that runs
    `cat`, and read by nobody in any other."""

    def __init__(
        self,
        output: AsyncIterator[tuple[int, bytes]],
        *,
        echo: bool,
        on_input_end: Callable[[], None],
        ended: Awaitable[None],
    ) -> None:
        self._output = output
        self._echo = echo
        self._on_input_end = on_input_end
        self._ended = asyncio.ensure_future(ended)
        self._input = _Input()

    async def receive(self) -> AsyncIterator[tuple[int, bytes]]:
        if not self._echo:
            async for piece in self._output:
                yield piece
            return
        while data := await self._next_input():
            yield 1, data

    async def _next_input(self) -> bytes:
        get = asyncio.ensure_future(self._input.get())
        try:
            await asyncio.wait((get, self._ended), return_when=asyncio.FIRST_COMPLETED)
            if get.done() and (data := get.result()):
                return data
            if not self._ended.done():
                self._on_input_end()
            return b""
        finally:
            get.cancel()

    async def write(self, data: bytes) -> None:
        if self._echo:
            await self._input.put(data)

    async def close_write(self) -> None:
        self._input.close()

    async def resize(self, width: int, height: int) -> None:
        pass  # nothing in the simulation looks at the size of its terminal

    async def exit_code(self) -> int:
        raise Failure("NoExitCode", "an attached session has no exit code of its own")

    async def close(self) -> None:
        self._input.close()
        self._ended.cancel()


class SimConnection:
    """A forwarded TCP connection: answers each HTTP request with the Pod's name."""

    def __init__(self, hostname: str, address: str, port: int) -> None:
        self._body = f"{hostname} {address}:{port} (simulated)\n".encode()
        self._input = _Input()
        self._closed = False

    async def receive(self) -> AsyncIterator[tuple[int, bytes]]:
        buffer = b""
        while data := await self._input.get():
            buffer += data
            if len(buffer) > CHUNK:
                return
            while b"\r\n\r\n" in buffer:
                _, _, buffer = buffer.partition(b"\r\n\r\n")
                head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(self._body)}\r\n"
                yield 1, head.encode() + b"Content-Type: text/plain\r\n\r\n" + self._body

    async def write(self, data: bytes) -> None:
        await self._input.put(data)

    async def close_write(self) -> None:
        self._input.close()

    async def resize(self, width: int, height: int) -> None:
        raise Failure("NoTerminal", "a forwarded connection has no terminal")

    async def exit_code(self) -> int:
        raise Failure("NoExitCode", "a forwarded connection has no exit code")

    async def close(self) -> None:
        self._input.close()
