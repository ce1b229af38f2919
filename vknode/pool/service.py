"""The gRPC service `vknode.pool.v1.Pool` over a host: bytes in, calls out, errors typed.

Streams have gRPC's own backpressure: `context.write` waits until the transport takes
the message, and a request is only read when the one before it was consumed. When the
client goes, gRPC cancels the handler, and whatever it started ends with it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from typing import Any, NoReturn, Protocol, TypeVar

import grpc.aio
import structlog

from vknode.pool.errors import (
    NOT_FOUND,
    REFUSED,
    RETRYABLE,
    PoolFailure,
    abort,
)
from vknode.pool.runtimes.base import (
    ContainerRef,
    ExecStreams,
    Failure,
    LogOptions,
    RunningSandbox,
    Runtime,
    RuntimeAway,
)
from vknode.pool.v1 import (
    cell_pb2,
    pool_pb2,
    pool_pb2_grpc,
    spec_pb2,
    stats_pb2,
    status_pb2,
    stream_pb2,
)
from vknode.pool.validation import check_container, check_spec, check_uid, check_update, refused

log = structlog.get_logger()

PIECE = 64 * 1024
# Seconds that a finished call waits for its client to stop writing.
_LINGER = 1.0

T = TypeVar("T")
Context = grpc.aio.ServicerContext[Any, Any]


class PoolHost(Protocol):
    """What the service needs of `vknode.pool.host.Host`; all raise PoolFailure."""

    @property
    def runtime(self) -> Runtime: ...

    async def create(
        self, spec: spec_pb2.SandboxSpec, owner: str
    ) -> tuple[status_pb2.Sandbox, bool]: ...

    async def update(self, spec: spec_pb2.SandboxSpec) -> tuple[status_pb2.Sandbox, list[str]]: ...

    async def delete(self, uid: str, grace: float | None, reason: str) -> bool: ...

    def last_of(self, uid: str) -> status_pb2.Sandbox | None: ...

    def watch(
        self, epoch: str, revision: int
    ) -> AsyncIterator[pool_pb2.WatchSandboxesResponse]: ...

    def watch_cells(self) -> AsyncIterator[cell_pb2.WatchCellsResponse]: ...

    def instance(
        self, uid: str, container: str, previous: bool = False
    ) -> tuple[ContainerRef, asyncio.Event]: ...

    def running_sandbox(self, uid: str) -> RunningSandbox: ...

    def probe_stats(self, uids: Collection[str], cell: str) -> list[stats_pb2.SandboxStats]: ...


def from_runtime(failure: Failure) -> PoolFailure:
    """What a client is told when a runtime call failed."""
    if isinstance(failure, RuntimeAway) or failure.retryable:
        return PoolFailure(RETRYABLE, failure.message)
    if failure.reason == "NotFound":
        return PoolFailure(NOT_FOUND, failure.message)
    return PoolFailure(REFUSED, failure.message, wrong_state=failure.reason == "NotRunning")


async def _fail(context: Context, error: Exception) -> NoReturn:
    if isinstance(error, PoolFailure):
        await abort(context, error)
    if isinstance(error, Failure):
        await abort(context, from_runtime(error))
    log.error("rpc_failed", error=type(error).__name__, exc_info=error)
    # Not the text: it may hold what was in the request.
    await abort(context, PoolFailure(RETRYABLE, f"the pool has a defect ({type(error).__name__})"))


async def _answer(context: Context, call: Callable[[], Awaitable[T]]) -> T:
    """The result of a call, every failure made a typed one."""
    try:
        return await call()
    except Exception as error:  # each failure must leave as a PoolError
        await _fail(context, error)


class PoolService(pool_pb2_grpc.PoolServicer):
    """All RPCs of the contract."""

    def __init__(self, host: PoolHost) -> None:
        self._host = host

    def _running(self, uid: str, container: str) -> ContainerRef:
        """The instance that runs. Raises PoolFailure, in the wrong state too."""
        ref, ended = self._host.instance(uid, container)
        if ended.is_set():
            message = f'container "{container}" is not running'
            raise PoolFailure(REFUSED, message, wrong_state=True)
        return ref

    # --- sandboxes --------------------------------------------------------------

    async def CreateSandbox(
        self, request: pool_pb2.CreateSandboxRequest, context: Context
    ) -> pool_pb2.CreateSandboxResponse:
        async def call() -> pool_pb2.CreateSandboxResponse:
            check_spec(request.spec)
            sandbox, created = await self._host.create(request.spec, request.owner)
            return pool_pb2.CreateSandboxResponse(sandbox=sandbox, created=created)

        return await _answer(context, call)

    async def UpdateSandbox(
        self, request: pool_pb2.UpdateSandboxRequest, context: Context
    ) -> pool_pb2.UpdateSandboxResponse:
        async def call() -> pool_pb2.UpdateSandboxResponse:
            check_update(request.spec)
            sandbox, kept = await self._host.update(request.spec)
            return pool_pb2.UpdateSandboxResponse(sandbox=sandbox, kept=kept)

        return await _answer(context, call)

    async def DeleteSandbox(
        self, request: pool_pb2.DeleteSandboxRequest, context: Context
    ) -> pool_pb2.DeleteSandboxResponse:
        async def call() -> pool_pb2.DeleteSandboxResponse:
            check_uid(request.uid)
            grace = None
            if request.HasField("grace_period_seconds"):
                grace = float(request.grace_period_seconds)
                if grace < 0:
                    raise refused("grace_period_seconds", "is negative")
            found = await self._host.delete(request.uid, grace, request.reason)
            last = None if found else self._host.last_of(request.uid)
            return pool_pb2.DeleteSandboxResponse(found=found, last=last)

        return await _answer(context, call)

    async def ListStats(
        self, request: stats_pb2.ListStatsRequest, context: Context
    ) -> stats_pb2.ListStatsResponse:
        async def call() -> stats_pb2.ListStatsResponse:
            for index, uid in enumerate(request.uids):
                check_uid(uid, f"uids[{index}]")
            found = await self._host.runtime.stats(list(request.uids), request.cell)
            by_uid = {entry.uid: entry for entry in found}
            for probed in self._host.probe_stats(request.uids, request.cell):
                entry = by_uid.get(probed.uid)
                if entry is None:
                    found.append(probed)
                else:
                    entry.probes.extend(probed.probes)
            return stats_pb2.ListStatsResponse(sandboxes=found)

        return await _answer(context, call)

    # --- watches ----------------------------------------------------------------

    async def WatchCells(  # type: ignore[override]  # the stub allows sync and async
        self, request: cell_pb2.WatchCellsRequest, context: Context
    ) -> None:
        async def call() -> None:
            async with _closing(self._host.watch_cells()) as responses:
                async for response in responses:
                    await context.write(response)

        await _answer(context, call)

    async def WatchSandboxes(  # type: ignore[override]  # the stub allows sync and async
        self, request: pool_pb2.WatchSandboxesRequest, context: Context
    ) -> None:
        async def call() -> None:
            async with _closing(self._host.watch(request.epoch, request.revision)) as responses:
                async for response in responses:
                    await context.write(response)

        await _answer(context, call)

    # --- streams ----------------------------------------------------------------

    async def StreamLogs(  # type: ignore[override]  # the stub allows sync and async
        self, request: stream_pb2.StreamLogsRequest, context: Context
    ) -> None:
        async def call() -> None:
            check_uid(request.uid)
            check_container(request.container)
            options = log_options(request)
            ref, ended = self._host.instance(request.uid, request.container, request.previous)
            found = False
            async with _closing(self._host.runtime.logs(ref, options, ended)) as pieces:
                first = asyncio.ensure_future(anext(pieces, None))
                try:
                    # A log that stays silent has been found all the same.
                    done, _ = await asyncio.wait((first,), timeout=0.1)
                    if not done:
                        found = True
                        await context.write(stream_pb2.StreamLogsResponse())
                    piece = await first
                finally:
                    first.cancel()
                if not found and piece is None:
                    await context.write(stream_pb2.StreamLogsResponse())
                while piece is not None:
                    for part in _split(piece):
                        await context.write(stream_pb2.StreamLogsResponse(data=part))
                    piece = await anext(pieces, None)

        await _answer(context, call)

    async def Exec(  # type: ignore[override]  # the stub allows sync and async
        self, request_iterator: AsyncIterator[stream_pb2.ExecRequest], context: Context
    ) -> None:
        async def call() -> None:
            start = (await _first(request_iterator)).start
            check_uid(start.uid, "start.uid")
            if not start.container:
                raise refused("start.container", "is empty; name one container of the sandbox")
            if not start.command:
                raise refused("start.command", "is empty")
            if start.tty and start.stderr:
                raise refused("start.stderr", "cannot be had apart with a TTY; leave it out")
            ref = self._running(start.uid, start.container)
            streams = await self._host.runtime.exec(ref, start)
            try:
                await context.write(
                    stream_pb2.ExecResponse(started=stream_pb2.ExecResponse.Started())
                )
                async with _Input(streams, request_iterator) as requests:
                    async for fd, data in streams.receive():
                        for part in _split(data):
                            await context.write(_exec_output(fd, part))
                    code = await _exit_code(streams)
                    await context.write(
                        stream_pb2.ExecResponse(exit=stream_pb2.ExecResponse.Exit(code=code))
                    )
                    await requests.linger()
            finally:
                await streams.close()

        await _answer(context, call)

    async def Attach(  # type: ignore[override]  # the stub allows sync and async
        self, request_iterator: AsyncIterator[stream_pb2.AttachRequest], context: Context
    ) -> None:
        async def call() -> None:
            start = (await _first(request_iterator)).start
            check_uid(start.uid, "start.uid")
            if not start.container:
                raise refused("start.container", "is empty; name one container of the sandbox")
            ref = self._running(start.uid, start.container)
            streams = await self._host.runtime.attach(ref, start)
            try:
                await context.write(
                    stream_pb2.AttachResponse(started=stream_pb2.AttachResponse.Started())
                )
                async with _Input(streams, request_iterator) as requests:
                    async for fd, data in streams.receive():
                        for part in _split(data):
                            await context.write(
                                stream_pb2.AttachResponse(stderr=part)
                                if fd == 2
                                else stream_pb2.AttachResponse(stdout=part)
                            )
                    await requests.linger()
            finally:
                await streams.close()

        await _answer(context, call)

    async def PortForward(  # type: ignore[override]  # the stub allows sync and async
        self, request_iterator: AsyncIterator[stream_pb2.PortForwardRequest], context: Context
    ) -> None:
        async def call() -> None:
            start = (await _first(request_iterator)).start
            check_uid(start.uid, "start.uid")
            if not 1 <= start.port <= 65535:
                raise refused("start.port", "is not from 1 to 65535")
            sandbox = self._host.running_sandbox(start.uid)
            streams = await self._host.runtime.port_forward(sandbox, start.port)
            try:
                await context.write(
                    stream_pb2.PortForwardResponse(
                        connected=stream_pb2.PortForwardResponse.Connected()
                    )
                )
                async with _Input(streams, request_iterator) as requests:
                    async for _, data in streams.receive():
                        for part in _split(data):
                            await context.write(stream_pb2.PortForwardResponse(data=part))
                    await context.write(
                        stream_pb2.PortForwardResponse(
                            close_write=stream_pb2.PortForwardResponse.CloseWrite()
                        )
                    )
                    # The other direction may go on: a client that still sends.
                    await requests.over.wait()
            finally:
                await streams.close()

        await _answer(context, call)


def log_options(request: stream_pb2.StreamLogsRequest) -> LogOptions:
    """Raises PoolFailure(REFUSED)."""
    if request.HasField("tail_lines") and request.tail_lines < 0:
        raise refused("tail_lines", "is negative")
    if request.HasField("limit_bytes") and request.limit_bytes < 0:
        raise refused("limit_bytes", "is negative")
    return LogOptions(
        follow=request.follow,
        tail_lines=request.tail_lines if request.HasField("tail_lines") else None,
        since=request.since.ToNanoseconds() if request.HasField("since") else None,
        limit_bytes=request.limit_bytes if request.HasField("limit_bytes") else None,
        timestamps=request.timestamps,
        stream=request.stream,
    )


def _exec_output(fd: int, data: bytes) -> stream_pb2.ExecResponse:
    return stream_pb2.ExecResponse(stderr=data) if fd == 2 else stream_pb2.ExecResponse(stdout=data)


async def _exit_code(streams: ExecStreams) -> int:
    """A command that could not be run at all (no such program, say) will not run when
    asked again, whatever the runtime thinks of its own failure."""
    try:
        return await streams.exit_code()
    except RuntimeAway:
        raise
    except Failure as failure:
        raise PoolFailure(REFUSED, failure.message) from failure


def _split(data: bytes) -> list[bytes]:
    if len(data) <= PIECE:
        return [data] if data else []
    return [data[start : start + PIECE] for start in range(0, len(data), PIECE)]


def _closing(iterator: AsyncIterator[T]) -> contextlib.aclosing[Any]:
    """Ends an async generator when its reader stops, not when it is collected."""
    return contextlib.aclosing(iterator)


async def _first(requests: AsyncIterator[Any]) -> Any:
    first = await anext(requests, None)
    if first is None or first.WhichOneof("message") != "start":
        raise refused("start", "is missing; it must be the first message of the stream")
    return first


class _Input:
    """While open, a task carries the client's messages into the streams.

    `over` is set when the client sends no more data, or when the other side takes no
    more. A failure to deliver input is no failure of the call: a command may close its
    standard input long before it ends.
    """

    def __init__(self, streams: ExecStreams, requests: AsyncIterator[Any]) -> None:
        self._streams = streams
        self._requests = requests
        self._takes = True
        self.over = asyncio.Event()

    async def __aenter__(self) -> _Input:
        self._task = asyncio.create_task(self._carry())
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        self._task.cancel()
        (result,) = await asyncio.gather(self._task, return_exceptions=True)
        if error is None and isinstance(result, Exception):
            raise result

    async def linger(self) -> None:
        """Read on, for a moment, after the last response: a call that ends while its
        client is writing looks broken to it, and it may lose what it has not read."""
        self._takes = False
        await self._streams.close()
        await asyncio.wait((self._task,), timeout=_LINGER)

    async def _carry(self) -> None:
        try:
            async for request in self._requests:
                await self._deliver(request)
            self.over.set()
            if self._takes:
                with contextlib.suppress(Failure, OSError):
                    await self._streams.close_write()
        except grpc.aio.BaseError:
            pass  # the client has gone: gRPC cancels the whole call
        finally:
            self.over.set()

    async def _deliver(self, request: Any) -> None:
        kind = request.WhichOneof("message")
        if kind not in ("stdin", "data", "close_stdin", "close_write", "resize"):
            await self._streams.close()
            raise refused(kind or "message", "was not expected here")
        if not self._takes:
            return
        try:
            if kind in ("stdin", "data"):
                await self._streams.write(getattr(request, kind))
            elif kind == "resize":
                await self._streams.resize(request.resize.width, request.resize.height)
            else:
                self.over.set()
                await self._streams.close_write()
        except (Failure, OSError):
            self._takes = False
            self.over.set()
