"""The agent's side of the contract: one channel a pool, watches that heal by themselves.

Theory of operation: a `PoolClient` owns one gRPC channel. Its two watches (`cells`,
`sandboxes`) are endless iterators: whenever a stream breaks they say so, wait with
jittered back-off and connect again, `sandboxes` from where its consumer stands. The
client is

| state        | when                                                            |
|--------------|-----------------------------------------------------------------|
| disconnected | at first, and from the moment one of its open watches breaks    |
| connected    | once every open watch has delivered a response                  |

and calls back at each change, with the reason. It never judges how long is too long:
that is the caller's hysteresis. All other calls are tried once; each failure is a
`PoolFailure`. A peer that went away without a word is noticed by keepalive pings
within about 8 s.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import grpc
import grpc.aio
import structlog

from vknode.pool.endpoint import EndpointError, TlsFiles, parse_endpoint
from vknode.pool.errors import REFUSED, RETRYABLE, PoolFailure, from_rpc_error
from vknode.pool.v1 import (
    cell_pb2,
    pool_pb2,
    pool_pb2_grpc,
    spec_pb2,
    stats_pb2,
    status_pb2,
    stream_pb2,
)

log = structlog.get_logger()

PIECE = 64 * 1024
MESSAGE_LIMIT = 16 * 1024 * 1024  # bytes; what every pool takes
CALL_TIMEOUT = 30.0  # seconds; a pool answers when it has written a spec down
FIRST_RESPONSE_TIMEOUT = 10.0  # seconds until a watch's first response
_FIRST_DELAY = 0.05
_LONGEST_DELAY = 5.0
# For a minute after a loss a pool is expected back soon, and asked once a second.
_SOON = 60.0
_SOON_DELAY = 1.0

T = TypeVar("T")


def _options(server_name: str) -> list[tuple[str, Any]]:
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", 64 * 1024 * 1024),
        ("grpc.max_send_message_length", MESSAGE_LIMIT),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", 50),
        ("grpc.min_reconnect_backoff_ms", 1_000),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        ("grpc.keepalive_time_ms", 5_000),
        ("grpc.keepalive_timeout_ms", 3_000),
        # While a ping for gRPC's own measuring is under way, none for keepalive is sent:
        # that one's timeout, a minute by default, would hold.
        ("grpc.http2.ping_timeout_ms", 3_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.enable_retries", 0),
    ]
    if server_name:
        options.append(("grpc.ssl_target_name_override", server_name))
    return options


@dataclass(frozen=True, slots=True)
class CellsUpdate:
    """With `snapshot`, `cells` are all there are; else only what changed."""

    snapshot: bool
    cells: list[cell_pb2.Cell]
    removed: list[str]


@dataclass(frozen=True, slots=True)
class SandboxesUpdate:
    """With `snapshot`, `sandboxes` are all there are: what the consumer holds and does
    not find in it is gone. The parts of a snapshot are put together already."""

    snapshot: bool
    sandboxes: list[status_pb2.Sandbox]
    gone: list[status_pb2.Sandbox] = field(default_factory=list)
    events: list[status_pb2.SandboxEvent] = field(default_factory=list)
    epoch: str = ""
    revision: int = 0


class Backoff:
    """Jittered delays that grow; after a loss they stay short for a minute."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._delay = 0.0
        self._spent = 0.0

    def reset(self) -> None:
        self._delay = self._spent = 0.0

    def next(self) -> float:
        """Seconds to wait before the next try."""
        cap = _SOON_DELAY if self._spent < _SOON else _LONGEST_DELAY
        self._delay = min(cap, self._delay * 2 if self._delay else _FIRST_DELAY)
        delay = self._delay * self._rng.uniform(0.5, 1.0)
        self._spent += delay
        return delay


class PoolClient:
    """One pool. Must be made and used in one event loop."""

    def __init__(
        self,
        name: str,
        endpoint: str,
        tls: TlsFiles | None = None,
        *,
        on_connected: Callable[[], None] | None = None,
        on_disconnected: Callable[[str], None] | None = None,
    ) -> None:
        """`name` is for logs. Raises EndpointError for an unusable endpoint or TLS file."""
        self.name = name
        self.endpoint = endpoint
        address = parse_endpoint(endpoint)
        options = _options(tls.server_name if tls else "")
        if address.path is not None:
            self.channel = grpc.aio.insecure_channel(address.target, options=options)
        elif tls is None:
            raise EndpointError(f"{endpoint}: a pool over TCP needs mutual TLS; give its files")
        else:
            cert, key, ca = tls.read()
            self.channel = grpc.aio.secure_channel(
                address.target, grpc.ssl_channel_credentials(ca, key, cert), options=options
            )
        self._stub = pool_pb2_grpc.PoolStub(self.channel)
        self._connection = _Connection(name, on_connected, on_disconnected)
        self._rng = random.Random()

    @property
    def connected(self) -> bool:
        return self._connection.up

    @property
    def last_error(self) -> str:
        """Why a watch broke the last time; empty if none ever did."""
        return self._connection.last_error

    async def close(self) -> None:
        """End all calls; watches end with it."""
        self._connection.close()
        await self.channel.close()

    # --- watches ----------------------------------------------------------------

    async def cells(self) -> AsyncGenerator[CellsUpdate, None]:
        """All cells, then their changes, for ever; a snapshot again after each break."""

        def open_stream() -> Any:
            return self._stub.WatchCells(cell_pb2.WatchCellsRequest())

        async for response in self._watch("cells", open_stream):
            yield CellsUpdate(response.snapshot, list(response.cells), list(response.removed))

    async def sandboxes(self) -> AsyncGenerator[SandboxesUpdate, None]:
        """All sandboxes, then their changes, for ever. What the consumer was given
        counts as acted on when it asks for more; after a break the pool replays from
        there, or begins with a snapshot."""
        epoch, revision = "", 0
        parts: list[pool_pb2.WatchSandboxesResponse] = []

        def open_stream() -> Any:
            parts.clear()
            return self._stub.WatchSandboxes(
                pool_pb2.WatchSandboxesRequest(epoch=epoch, revision=revision)
            )

        async for response in self._watch("sandboxes", open_stream):
            if response.snapshot:
                parts.append(response)
                if not response.snapshot_end:
                    continue
                update = SandboxesUpdate(
                    True,
                    [sandbox for part in parts for sandbox in part.sandboxes],
                    [sandbox for part in parts for sandbox in part.gone],
                    [event for part in parts for event in part.events],
                    response.epoch,
                    response.revision,
                )
                parts.clear()
            else:
                update = SandboxesUpdate(
                    False,
                    list(response.sandboxes),
                    list(response.gone),
                    list(response.events),
                    response.epoch,
                    response.revision,
                )
            if update.snapshot or update.sandboxes or update.gone or update.events:
                yield update
            epoch, revision = update.epoch, update.revision

    async def _watch(self, what: str, open_stream: Callable[[], Any]) -> AsyncIterator[Any]:
        backoff = Backoff(self._rng)
        self._connection.opened(what)
        try:
            while not self._connection.is_closed():
                call = open_stream()
                try:
                    first = True
                    while True:
                        async with asyncio.timeout(FIRST_RESPONSE_TIMEOUT if first else None):
                            response = await call.read()
                        if response is grpc.aio.EOF:
                            reason = "the pool ended the stream"
                            break
                        if first:
                            first = False
                            backoff.reset()
                            self._connection.delivered(what)
                        yield response
                except grpc.aio.AioRpcError as error:
                    reason = f"{error.code().name}: {error.details()}"
                except TimeoutError:
                    reason = f"no response to Watch within {FIRST_RESPONSE_TIMEOUT:g} s"
                except grpc.aio.UsageError:
                    return  # the channel was closed
                except asyncio.CancelledError:
                    if _cancelled_from_outside():
                        raise
                    return  # the same, seen by a read that was under way
                finally:
                    call.cancel()
                if self._connection.is_closed():
                    return
                self._connection.broke(what, reason)
                await asyncio.sleep(backoff.next())
        finally:
            self._connection.left(what)

    # --- single calls -----------------------------------------------------------

    async def create(
        self, spec: spec_pb2.SandboxSpec, owner: str, *, timeout: float = CALL_TIMEOUT
    ) -> tuple[status_pb2.Sandbox, bool]:
        """The sandbox, and whether this call created it. Raises PoolFailure."""
        request = pool_pb2.CreateSandboxRequest(spec=spec, owner=owner)
        _check_size(request.ByteSize())
        response = await self._call(self._stub.CreateSandbox, request, timeout)
        return response.sandbox, response.created

    async def update(
        self, spec: spec_pb2.SandboxSpec, *, timeout: float = CALL_TIMEOUT
    ) -> status_pb2.Sandbox:
        """Raises PoolFailure."""
        request = pool_pb2.UpdateSandboxRequest(spec=spec)
        _check_size(request.ByteSize())
        response = await self._call(self._stub.UpdateSandbox, request, timeout)
        sandbox: status_pb2.Sandbox = response.sandbox
        return sandbox

    async def delete(
        self,
        uid: str,
        grace: float | None = None,
        reason: str = "",
        *,
        timeout: float = CALL_TIMEOUT,
    ) -> bool:
        """False: there was no such sandbox. `grace` in seconds, None for the spec's.
        Raises PoolFailure."""
        request = pool_pb2.DeleteSandboxRequest(uid=uid, reason=reason)
        if grace is not None:
            request.grace_period_seconds = max(0, math.ceil(grace))
        response = await self._call(self._stub.DeleteSandbox, request, timeout)
        return bool(response.found)

    async def stats(
        self, uids: list[str] | None = None, cell: str = "", *, timeout: float = CALL_TIMEOUT
    ) -> list[stats_pb2.SandboxStats]:
        """Raises PoolFailure."""
        request = stats_pb2.ListStatsRequest(uids=uids or [], cell=cell)
        return list((await self._call(self._stub.ListStats, request, timeout)).sandboxes)

    async def _call(self, method: Any, request: Any, timeout: float) -> Any:
        try:
            return await method(request, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        except grpc.aio.UsageError as error:
            raise PoolFailure(RETRYABLE, "the connection to the pool was closed") from error

    # --- streams ----------------------------------------------------------------

    async def logs(self, request: stream_pb2.StreamLogsRequest) -> LogStream:
        """Returns once the pool has found the log. Raises PoolFailure."""
        stream = LogStream(self._stub.StreamLogs(request))
        await stream.open()
        return stream

    async def exec(self, start: stream_pb2.ExecRequest.Start) -> ExecSession:
        """Returns once the command is running or about to. Raises PoolFailure."""
        session = ExecSession(self._stub.Exec(), stream_pb2.ExecRequest)
        await session.open(stream_pb2.ExecRequest(start=start))
        return session

    async def attach(self, start: stream_pb2.AttachRequest.Start) -> AttachSession:
        """Raises PoolFailure."""
        session = AttachSession(self._stub.Attach(), stream_pb2.AttachRequest)
        await session.open(stream_pb2.AttachRequest(start=start))
        return session

    async def port_forward(self, uid: str, port: int) -> ForwardedConnection:
        """Returns once the connection is made. Raises PoolFailure."""
        session = ForwardedConnection(self._stub.PortForward(), stream_pb2.PortForwardRequest)
        start = stream_pb2.PortForwardRequest.Start(uid=uid, port=port)
        await session.open(stream_pb2.PortForwardRequest(start=start))
        return session


class _Connection:
    """The client's state, from that of its watches; calls back when it changes."""

    def __init__(
        self,
        name: str,
        on_connected: Callable[[], None] | None,
        on_disconnected: Callable[[str], None] | None,
    ) -> None:
        self._name = name
        self._on_connected = on_connected
        self._on_disconnected = on_disconnected
        self._watches: dict[str, bool] = {}
        self._said_down = False
        self._closed = False
        self.last_error = ""
        self.up = False

    def opened(self, what: str) -> None:
        if what in self._watches:
            raise RuntimeError(f"pool {self._name}: {what}() is being watched already")
        self._watches[what] = False

    def left(self, what: str) -> None:
        self._watches.pop(what, None)

    def close(self) -> None:
        self._closed = True
        self.up = False

    def is_closed(self) -> bool:
        return self._closed

    def delivered(self, what: str) -> None:
        self._watches[what] = True
        if not self.up and all(self._watches.values()):
            self.up = True
            self._said_down = False
            log.info("pool_connected", pool=self._name)
            if self._on_connected is not None:
                self._on_connected()

    def broke(self, what: str, reason: str) -> None:
        self._watches[what] = False
        self.last_error = reason
        self.up = False
        if not self._said_down:  # also when the first try of all fails
            self._said_down = True
            log.warning("pool_disconnected", pool=self._name, watch=what, reason=reason)
            if self._on_disconnected is not None:
                self._on_disconnected(reason)


def _check_size(size: int) -> None:
    """gRPC would say RESOURCE_EXHAUSTED, as if the pool were full."""
    if size > MESSAGE_LIMIT:
        raise PoolFailure(
            REFUSED,
            f"the Pod's volumes and environment make {size >> 20} MiB; a pool takes at most "
            f"{MESSAGE_LIMIT >> 20} MiB; use smaller ConfigMaps and Secrets",
            field="volumes",
        )


def _cancelled_from_outside() -> bool:
    """gRPC raises CancelledError also where only its call was cancelled, by us."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


class _Stream(Generic[T]):
    """What all streaming calls share. Cancelling a read or a write ends the call."""

    def __init__(self, call: Any) -> None:
        self._call = call

    async def _read(self) -> T | None:
        """None at the end. Raises PoolFailure."""
        try:
            message = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        except grpc.aio.UsageError as error:
            raise PoolFailure(RETRYABLE, "the connection to the pool was closed") from error
        except asyncio.CancelledError:
            if _cancelled_from_outside():
                raise
            raise PoolFailure(RETRYABLE, "the stream was closed on this side") from None
        return None if message is grpc.aio.EOF else message

    async def close(self) -> None:
        """End the call, whatever its state; idempotent. The pool ends what it began."""
        self._call.cancel()


class LogStream(_Stream[stream_pb2.StreamLogsResponse]):
    """A container's log: iterate over it, and `close` it."""

    async def open(self) -> None:
        self._first = await self._read()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        response = self._first
        while response is not None:
            if response.data:
                yield response.data
            response = await self._read()


class _Session(_Stream[T]):
    """A stream in both directions, after its `Start`."""

    def __init__(self, call: Any, request: Any) -> None:
        super().__init__(call)
        self._request = request
        self._sending = asyncio.Lock()
        self._over = False

    async def open(self, start: Any) -> None:
        """Send `start` and wait for the answer to it. Raises PoolFailure."""
        await self._send(start)
        if await self._read() is None:
            raise PoolFailure(RETRYABLE, "the pool ended the stream before it began")

    async def _send(self, message: Any) -> None:
        """Waits while the pool takes no more. Without effect once the call is over:
        how it ended is told by the reading side."""
        async with self._sending:
            if self._over:
                return
            try:
                await self._call.write(message)
            except (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError):
                self._over = True
            except asyncio.CancelledError:
                if _cancelled_from_outside():
                    raise
                self._over = True


class ExecSession(_Session[stream_pb2.ExecResponse]):
    """A running command. Input and output may be used by two tasks at once."""

    _code: int | None = None

    async def receive(self) -> AsyncIterator[tuple[int, bytes]]:
        """(1, stdout) or (2, stderr) until the command's end. Raises PoolFailure."""
        while (response := await self._read()) is not None:
            kind = response.WhichOneof("message")
            if kind == "stdout":
                yield 1, response.stdout
            elif kind == "stderr":
                yield 2, response.stderr
            elif kind == "exit":
                self._code = response.exit.code
                self._over = True
                return  # the last message; `close` tells the pool that we have it

    async def exit_code(self) -> int:
        """After `receive` has ended. Raises PoolFailure where the pool sent none."""
        if self._code is None:
            raise PoolFailure(RETRYABLE, "the stream ended without an exit code")
        return self._code

    async def write(self, data: bytes) -> None:
        for start in range(0, len(data), PIECE):
            await self._send(self._request(stdin=data[start : start + PIECE]))

    async def close_write(self) -> None:
        await self._send(self._request(close_stdin=self._request.CloseStdin()))

    async def resize(self, width: int, height: int) -> None:
        await self._send(self._request(resize=stream_pb2.TerminalSize(width=width, height=height)))


class AttachSession(ExecSession):
    """A container's own streams. `receive` ends with the container; `exit_code` always
    raises, the container's code is in its status."""


class ForwardedConnection(_Session[stream_pb2.PortForwardResponse]):
    """A TCP connection into a sandbox."""

    async def receive(self) -> AsyncIterator[bytes]:
        """Data until the sandbox's side sends no more. Raises PoolFailure."""
        while (response := await self._read()) is not None:
            kind = response.WhichOneof("message")
            if kind == "data":
                yield response.data
            elif kind == "close_write":
                return

    async def write(self, data: bytes) -> None:
        for start in range(0, len(data), PIECE):
            await self._send(self._request(data=data[start : start + PIECE]))

    async def close_write(self) -> None:
        await self._send(self._request(close_write=self._request.CloseWrite()))
