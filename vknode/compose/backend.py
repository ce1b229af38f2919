"""What the kubelet API asks, answered from the agent's memory and by the pools.

A container's state comes from the newest word of the pool, as a kubelet answers from its own
status and not from the API server's, which may lag; where there is no sandbox, from the Pod.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from vknode.agent.pod_record import PodRecord
from vknode.agent.pod_store import PodStore
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
    LogStream,
    PodView,
    SessionEvent,
    Stderr,
    Stdout,
)
from vknode.pool import sessions as pool_sessions
from vknode.pool.errors import PoolFailure
from vknode.pool.v1 import status_pb2, stream_pb2

_STREAMS = {
    LogStream.ALL: stream_pb2.LOG_STREAM_UNSPECIFIED,
    LogStream.STDOUT: stream_pb2.LOG_STREAM_STDOUT,
    LogStream.STDERR: stream_pb2.LOG_STREAM_STDERR,
}
_STDOUT = 1
# Seconds for a pool to take the end of a forwarded connection.
_LAST_BYTES = 5.0
_LISTS = (
    ("initContainers", "initContainerStatuses"),
    ("containers", "containerStatuses"),
    ("ephemeralContainers", "ephemeralContainerStatuses"),
)
# A container that never ran is reported as terminated with these.
_NEVER_STARTED = frozenset(("ContainerCannotRun", "StartError", "ContainerStatusUnknown"))


class Streams(Protocol):
    """The part of `PoolClient` that carries data."""

    async def logs(self, request: stream_pb2.StreamLogsRequest) -> pool_sessions.LogStream: ...

    async def exec(self, start: stream_pb2.ExecRequest.Start) -> pool_sessions.ExecSession: ...

    async def attach(
        self, start: stream_pb2.AttachRequest.Start
    ) -> pool_sessions.AttachSession: ...

    async def port_forward(self, uid: str, port: int) -> pool_sessions.ForwardedConnection: ...


class _Stream(Protocol):
    async def close(self) -> None: ...


Opened = TypeVar("Opened", bound=_Stream)


class AgentBackend:
    """The kubelet API's `PodBackend`. `streams` gives the client of a Pod's pool."""

    def __init__(
        self, store: PodStore, records: Mapping[str, PodRecord], streams: Mapping[str, Streams]
    ) -> None:
        self._store = store
        self._records = records
        self._streams = streams

    def lookup(self, namespace: str, name: str) -> PodView | None:
        pod = self._store.by_name(namespace, name)
        if pod is None:
            return None
        record = self._records.get(pod.uid)
        if record is None:
            return None
        return PodView(
            namespace, name, pod.uid, pod.node, _containers(pod.decode(), record.sandbox)
        )

    def pods_json(self, node: str | None) -> Iterable[bytes]:
        for uid in list(self._records):
            pod = self._store.get(uid)
            if pod is not None and node in (None, pod.node):
                yield pod.raw

    async def open_logs(self, pod: PodView, options: LogOptions) -> AsyncGenerator[bytes, None]:
        request = stream_pb2.StreamLogsRequest(
            uid=pod.uid,
            container=options.container,
            follow=options.follow,
            previous=options.previous,
            tail_lines=options.tail_lines,
            limit_bytes=options.limit_bytes,
            timestamps=options.timestamps,
            stream=_STREAMS[options.stream],
        )
        if options.since is not None:
            request.since.FromDatetime(options.since)
        async with _opened(self._pool(pod).logs(request)) as stream:
            yield b""  # found: the answer may begin
            try:
                async for data in stream:
                    yield data
            except PoolFailure as failure:
                raise _error(failure) from failure

    @asynccontextmanager
    async def open_exec(self, pod: PodView, request: ExecRequest) -> AsyncIterator[ExecSession]:
        start = stream_pb2.ExecRequest.Start(
            uid=pod.uid,
            container=request.container,
            command=request.command,
            tty=request.tty,
            stdin=request.stdin,
            stdout=request.stdout,
            stderr=request.stderr,
        )
        async with _opened(self._pool(pod).exec(start)) as session:
            yield PoolExec(session)

    @asynccontextmanager
    async def open_attach(self, pod: PodView, request: AttachRequest) -> AsyncIterator[ExecSession]:
        start = stream_pb2.AttachRequest.Start(
            uid=pod.uid,
            container=request.container,
            tty=request.tty,
            stdin=request.stdin,
            stdout=request.stdout,
            stderr=request.stderr,
        )
        async with _opened(self._pool(pod).attach(start)) as session:
            yield PoolAttach(session)

    @asynccontextmanager
    async def open_port_forward(
        self, pod: PodView, port: int
    ) -> AsyncIterator[ForwardedConnection]:
        async with _opened(self._pool(pod).port_forward(pod.uid, port)) as connection:
            yield PoolConnection(connection)
            # Cancelled at once, the call could lose what was written last.
            with suppress(TimeoutError, PoolFailure):
                async with asyncio.timeout(_LAST_BYTES):
                    await connection.finish()

    def _pool(self, pod: PodView) -> Streams:
        record = self._records.get(pod.uid)
        if record is None:
            raise BackendError(f'pods "{pod.name}" not found')
        return self._streams[record.link.name]


@asynccontextmanager
async def _opened(opening: Coroutine[Any, Any, Opened]) -> AsyncIterator[Opened]:
    """Raises `BackendError` on entering."""
    try:
        stream = await opening
    except PoolFailure as failure:
        raise _error(failure) from failure
    try:
        yield stream
    finally:
        await stream.close()


class PoolExec:
    """A command in a pool, as the kubelet API uses it."""

    def __init__(self, session: pool_sessions.ExecSession) -> None:
        self._session = session

    async def write_stdin(self, data: bytes) -> None:
        await self._session.write(data)

    async def close_stdin(self) -> None:
        await self._session.close_write()

    async def resize(self, width: int, height: int) -> None:
        await self._session.resize(width, height)

    async def __aiter__(self) -> AsyncGenerator[SessionEvent, None]:
        try:
            async for stream, data in self._session.receive():
                yield Stdout(data) if stream == _STDOUT else Stderr(data)
            yield await self._end()
        except PoolFailure as failure:
            raise _error(failure) from failure

    async def _end(self) -> SessionEvent:
        return Exit(await self._session.exit_code())


class PoolAttach(PoolExec):
    """A container's own streams."""

    async def _end(self) -> SessionEvent:
        return Ended()


class PoolConnection:
    """A TCP connection into a sandbox, as the kubelet API uses it."""

    def __init__(self, connection: pool_sessions.ForwardedConnection) -> None:
        self._connection = connection

    async def write(self, data: bytes) -> None:
        await self._connection.write(data)

    async def close_write(self) -> None:
        await self._connection.close_write()

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        try:
            async for data in self._connection.receive():
                yield data
        except PoolFailure as failure:
            raise _error(failure) from failure


def _error(failure: PoolFailure) -> BackendError:
    return BackendError(failure.message)


def _containers(
    pod: dict[str, Any], sandbox: status_pb2.Sandbox | None
) -> dict[str, ContainerView]:
    """Every container of the spec, in its order."""
    views: dict[str, ContainerView] = {}
    told: dict[str, status_pb2.ContainerStatus] = {}
    if sandbox is not None:
        for statuses in (sandbox.init_containers, sandbox.containers, sandbox.ephemeral_containers):
            told.update((status.name, status) for status in statuses)
    for kind, statuses_name in _LISTS:
        written = {one["name"]: one for one in pod.get("status", {}).get(statuses_name) or ()}
        for container in pod["spec"].get(kind) or ():
            name = container["name"]
            if name in told:
                view = _from_pool(told[name])
            elif name in written:
                view = _from_status(written[name])
            else:
                view = ContainerView(name)
            views[name] = replace(view, tty=bool(container.get("tty")))
    return views


def _from_pool(status: status_pb2.ContainerStatus) -> ContainerView:
    state = status.state
    previous = status.HasField("last_termination")
    match state.WhichOneof("state"):
        case "running":
            return ContainerView(status.name, "running", started=True, has_previous=previous)
        case "terminated":
            return ContainerView(
                status.name,
                "terminated",
                started=_ran(state.terminated.reason, bool(state.terminated.container_id)),
                has_previous=previous,
            )
        case "waiting":
            return ContainerView(
                status.name, "waiting", waiting_reason=state.waiting.reason, has_previous=previous
            )
        case _:
            return ContainerView(status.name, has_previous=previous)


def _from_status(status: dict[str, Any]) -> ContainerView:
    state = status.get("state") or {}
    previous = bool((status.get("lastState") or {}).get("terminated"))
    name = status["name"]
    if "running" in state:
        return ContainerView(name, "running", started=True, has_previous=previous)
    if "terminated" in state:
        ended = state["terminated"]
        started = _ran(ended.get("reason", ""), bool(ended.get("containerID")))
        return ContainerView(name, "terminated", started=started, has_previous=previous)
    if "waiting" in state:
        reason = state["waiting"].get("reason", "")
        return ContainerView(name, "waiting", waiting_reason=reason, has_previous=previous)
    return ContainerView(name, has_previous=previous)


def _ran(reason: str, has_id: bool) -> bool:
    return has_id and reason not in _NEVER_STARTED
