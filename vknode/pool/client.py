"""The agent's side of the contract: one channel a pool, watches that heal by themselves.

Theory of operation: a `PoolClient` owns one gRPC channel (`line.py`). Its two watches (`cells`,
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

Its TLS files may be renewed at any time. New ones are tried on a new channel beside the old one,
and once a connection has been made with them everything that comes next uses it: watches go on
there from where they stand, sessions stay where they are until they end. While new files do not
work the old connection is kept, and that is said; a connection that breaks comes back with
whatever the files hold by then.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import structlog

from vknode.filemark import Mark, mark
from vknode.pool.endpoint import EndpointError, TlsFiles
from vknode.pool.errors import REFUSED, RETRYABLE, PoolFailure, from_rpc_error
from vknode.pool.line import MESSAGE_LIMIT, Line
from vknode.pool.sessions import (
    AttachSession,
    ExecSession,
    ForwardedConnection,
    LogStream,
    cancelled_from_outside,
)
from vknode.pool.v1 import (
    cell_pb2,
    pool_pb2,
    spec_pb2,
    stats_pb2,
    status_pb2,
    stream_pb2,
)

log = structlog.get_logger()

CALL_TIMEOUT = 30.0  # seconds; a pool answers when it has written a spec down
CERTIFICATE_CHECK = 10.0  # seconds between two looks at the TLS files
CONNECT_TIMEOUT = 5.0  # seconds for a connection with new ones
FIRST_RESPONSE_TIMEOUT = 10.0  # seconds until a watch's first response
_FIRST_DELAY = 0.05
_LONGEST_DELAY = 5.0
# For a minute after a loss a pool is expected back soon, and asked once a second.
_SOON = 60.0
_SOON_DELAY = 1.0


@dataclass(frozen=True, slots=True)
class CellsUpdate:
    """With `snapshot`, `cells` are all there are; else only what changed."""

    snapshot: bool
    cells: list[cell_pb2.Cell]
    removed: list[str]


@dataclass(frozen=True, slots=True)
class Deletion:
    """`found` False: there was no such sandbox. `last` is then what the pool still knows of one
    that has ended."""

    found: bool
    last: status_pb2.Sandbox | None = None


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


@dataclass(slots=True)
class WatchState:
    """`up`: the stream is open and has delivered. `breaks`: how often it broke, or could not be
    opened."""

    up: bool = False
    breaks: int = 0


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
        certificate_check_interval: float = CERTIFICATE_CHECK,
    ) -> None:
        """`name` is for logs, `certificate_check_interval` in seconds. Raises EndpointError for
        an unusable endpoint or TLS file."""
        self.name = name
        self.endpoint = endpoint
        self._tls = tls
        self._line = Line(endpoint, tls)
        self._old_lines: list[Line] = []
        self._watch_calls: dict[str, Any] = {}
        self._complained = self._line.mark
        self._following: asyncio.Task[None] | None = None
        if tls is not None and self._line.mark:
            self._following = asyncio.get_running_loop().create_task(
                self._follow_files(certificate_check_interval), name=f"certificates-{name}"
            )
        self._connection = _Connection(name, on_connected, on_disconnected)
        self._rng = random.Random()

    @property
    def channel(self) -> grpc.aio.Channel:
        """Where new calls go."""
        return self._line.channel

    @property
    def certificate_expires(self) -> str:
        """When the client's certificate in use ends (ISO 8601); empty for a Unix socket."""
        return self._line.expires

    @property
    def connected(self) -> bool:
        return self._connection.up

    @property
    def last_error(self) -> str:
        """Why a watch broke the last time; empty if none ever did."""
        return self._connection.last_error

    @property
    def watch_states(self) -> Mapping[str, WatchState]:
        """Of `cells` and `sandboxes`, from the first time that each was watched."""
        return self._connection.states

    async def close(self) -> None:
        """End all calls; watches end with it."""
        self._connection.close()
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        for line in (self._line, *self._old_lines):
            await line.close()

    # --- renewed certificates -----------------------------------------------------

    async def _follow_files(self, interval: float) -> None:
        while True:
            await asyncio.sleep(interval)
            assert self._tls is not None
            if mark(self._tls.paths) == self._line.mark:
                continue
            line = self._new_line()
            if line is None:
                continue
            # While nothing is connected there is nothing to be kept either.
            if self.connected and (problem := await line.problem(CONNECT_TIMEOUT)):
                await line.close()
                self._complain(line.mark, f"no connection with them: {problem}")
                continue
            self._use(line)

    def _new_line(self) -> Line | None:
        """None, and it is said, where the files cannot be used."""
        try:
            return Line(self.endpoint, self._tls)
        except EndpointError as error:
            assert self._tls is not None
            self._complain(mark(self._tls.paths), str(error))
            return None

    def _complain(self, about: Mark, problem: str) -> None:
        """Once for each state of the files."""
        if about != self._complained:
            self._complained = about
            log.error(
                "pool_certificates_unusable",
                pool=self.name,
                problem=problem,
                hint="the connection with the earlier ones is kept while it lasts",
            )

    def _use(self, line: Line) -> None:
        log.info("pool_certificates_renewed", pool=self.name, expires=line.expires)
        old, self._line = self._line, line
        self._old_lines = [one for one in self._old_lines if not one.closed] + [old]
        for call in self._watch_calls.values():
            call.cancel()  # it goes on on the new line
        old.retire()

    def _take_new_files(self) -> None:
        """Before a watch connects again: what the files hold now, tried or not."""
        if self._tls is None or not self._line.mark or mark(self._tls.paths) == self._line.mark:
            return
        line = self._new_line()
        if line is not None:
            self._use(line)

    # --- watches ----------------------------------------------------------------

    async def cells(self) -> AsyncGenerator[CellsUpdate, None]:
        """All cells, then their changes, for ever; a snapshot again after each break."""

        def open_stream() -> Any:
            return self._line.stub.WatchCells(cell_pb2.WatchCellsRequest())

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
            return self._line.stub.WatchSandboxes(
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
                line = self._line
                call = self._watch_calls[what] = line.on(open_stream())
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
                    reason = ""  # the channel was closed
                except asyncio.CancelledError:
                    if cancelled_from_outside():
                        raise
                    reason = ""  # the same, seen by a read that was under way
                finally:
                    call.cancel()
                if self._connection.is_closed():
                    return
                if self._line is not line:
                    continue  # that was ours: on the new line
                if not reason:
                    return
                self._connection.broke(what, reason)
                await asyncio.sleep(backoff.next())
                self._take_new_files()
        finally:
            self._watch_calls.pop(what, None)
            self._connection.left(what)

    # --- single calls -----------------------------------------------------------

    async def create(
        self, spec: spec_pb2.SandboxSpec, owner: str, *, timeout: float = CALL_TIMEOUT
    ) -> tuple[status_pb2.Sandbox, bool]:
        """The sandbox, and whether this call created it. Raises PoolFailure."""
        request = pool_pb2.CreateSandboxRequest(spec=spec, owner=owner)
        _check_size(request.ByteSize())
        response = await self._call(self._line.stub.CreateSandbox, request, timeout)
        return response.sandbox, response.created

    async def update(
        self, spec: spec_pb2.SandboxSpec, *, timeout: float = CALL_TIMEOUT
    ) -> tuple[status_pb2.Sandbox, list[str]]:
        """The sandbox, and the paths of fields that stay as they were. Raises PoolFailure."""
        request = pool_pb2.UpdateSandboxRequest(spec=spec)
        _check_size(request.ByteSize())
        response = await self._call(self._line.stub.UpdateSandbox, request, timeout)
        return response.sandbox, list(response.kept)

    async def delete(
        self,
        uid: str,
        grace: float | None = None,
        reason: str = "",
        *,
        timeout: float = CALL_TIMEOUT,
    ) -> Deletion:
        """`grace` in seconds, None for the spec's. Raises PoolFailure."""
        request = pool_pb2.DeleteSandboxRequest(uid=uid, reason=reason)
        if grace is not None:
            request.grace_period_seconds = max(0, math.ceil(grace))
        response = await self._call(self._line.stub.DeleteSandbox, request, timeout)
        return Deletion(response.found, response.last if response.HasField("last") else None)

    async def stats(
        self, uids: list[str] | None = None, cell: str = "", *, timeout: float = CALL_TIMEOUT
    ) -> list[stats_pb2.SandboxStats]:
        """Raises PoolFailure."""
        request = stats_pb2.ListStatsRequest(uids=uids or [], cell=cell)
        return list((await self._call(self._line.stub.ListStats, request, timeout)).sandboxes)

    async def _call(self, method: Any, request: Any, timeout: float) -> Any:
        try:
            return await self._line.on(method(request, timeout=timeout))
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        except grpc.aio.UsageError as error:
            raise PoolFailure(RETRYABLE, "the connection to the pool was closed") from error

    # --- streams ----------------------------------------------------------------

    async def logs(self, request: stream_pb2.StreamLogsRequest) -> LogStream:
        """Returns once the pool has found the log. Raises PoolFailure."""
        stream = LogStream(self._line.on(self._line.stub.StreamLogs(request)))
        await stream.open()
        return stream

    async def exec(self, start: stream_pb2.ExecRequest.Start) -> ExecSession:
        """Returns once the command is running or about to. Raises PoolFailure."""
        session = ExecSession(self._line.on(self._line.stub.Exec()), stream_pb2.ExecRequest)
        await session.open(stream_pb2.ExecRequest(start=start))
        return session

    async def attach(self, start: stream_pb2.AttachRequest.Start) -> AttachSession:
        """Raises PoolFailure."""
        session = AttachSession(self._line.on(self._line.stub.Attach()), stream_pb2.AttachRequest)
        await session.open(stream_pb2.AttachRequest(start=start))
        return session

    async def port_forward(self, uid: str, port: int) -> ForwardedConnection:
        """Returns once the connection is made. Raises PoolFailure."""
        session = ForwardedConnection(
            self._line.on(self._line.stub.PortForward()), stream_pb2.PortForwardRequest
        )
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
        self.states: dict[str, WatchState] = {}
        self._said_down = False
        self._closed = False
        self.last_error = ""
        self.up = False

    def opened(self, what: str) -> None:
        if what in self._watches:
            raise RuntimeError(f"pool {self._name}: {what}() is being watched already")
        self._watches[what] = False
        self.states.setdefault(what, WatchState())

    def left(self, what: str) -> None:
        self._watches.pop(what, None)
        self.states[what].up = False

    def close(self) -> None:
        self._closed = True
        self.up = False

    def is_closed(self) -> bool:
        return self._closed

    def delivered(self, what: str) -> None:
        self._watches[what] = self.states[what].up = True
        if not self.up and all(self._watches.values()):
            self.up = True
            self._said_down = False
            log.info("pool_connected", pool=self._name)
            if self._on_connected is not None:
                self._on_connected()

    def broke(self, what: str, reason: str) -> None:
        self._watches[what] = self.states[what].up = False
        self.states[what].breaks += 1
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
