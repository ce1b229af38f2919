"""exec, attach and port-forward: CRI gives a URL, `spdy_client` speaks to it."""

from __future__ import annotations

from collections.abc import AsyncIterator

from vknode.pool.runtimes.cri.client import CriClient, NotFound
from vknode.pool.runtimes.cri.spdy_client import (
    PORT_FORWARD,
    REMOTE_COMMAND,
    SpdySession,
    connect,
    headers,
)
from vknode.pool.runtimes.cri.wire import cri_pb2
from vknode.pool.runtimes.facts import ContainerRef, Failure, RunningSandbox
from vknode.pool.v1 import stream_pb2

_CALL = 30.0


class Sessions:
    def __init__(self, client: CriClient) -> None:
        self._client = client

    async def exec(self, ref: ContainerRef, start: stream_pb2.ExecRequest.Start) -> SpdySession:
        request = cri_pb2.ExecRequest(
            container_id=ref.id,
            cmd=start.command,
            tty=start.tty,
            stdin=start.stdin,
            stdout=start.stdout,
            stderr=start.stderr and not start.tty,
        )
        try:
            answer = await self._client.call(
                "ExecFailed", self._client.runtime.Exec(request, timeout=_CALL)
            )
        except NotFound as error:
            raise Failure("NotFound", str(error), retryable=False) from None
        return await _remote_command(
            answer.url,
            tty=start.tty,
            stdin=request.stdin,
            stdout=request.stdout,
            stderr=request.stderr,
        )

    async def attach(self, ref: ContainerRef, start: stream_pb2.AttachRequest.Start) -> SpdySession:
        request = cri_pb2.AttachRequest(
            container_id=ref.id,
            tty=start.tty,
            stdin=start.stdin,
            stdout=start.stdout,
            stderr=start.stderr and not start.tty,
        )
        try:
            answer = await self._client.call(
                "AttachFailed", self._client.runtime.Attach(request, timeout=_CALL)
            )
        except NotFound as error:
            raise Failure("NotFound", str(error), retryable=False) from None
        return await _remote_command(
            answer.url,
            tty=start.tty,
            stdin=request.stdin,
            stdout=request.stdout,
            stderr=request.stderr,
        )

    async def port_forward(self, sandbox: RunningSandbox, port: int) -> PortForwardSession:
        request = cri_pb2.PortForwardRequest(pod_sandbox_id=sandbox.id, port=[port])
        try:
            answer = await self._client.call(
                "PortForwardFailed", self._client.runtime.PortForward(request, timeout=_CALL)
            )
        except NotFound as error:
            raise Failure("NotFound", str(error), retryable=False) from None
        reader, writer = await connect(answer.url, PORT_FORWARD)
        opening = [headers(kind, port=str(port), requestid="0") for kind in ("error", "data")]
        return PortForwardSession(reader, writer, opening, {"data": 1}, "data")


class PortForwardSession(SpdySession):
    """`receive` raises Failure("PortForwardFailed") where nobody listens."""

    async def receive(self) -> AsyncIterator[tuple[int, bytes]]:
        async for piece in super().receive():
            yield piece
        if self.error_text:
            raise Failure("PortForwardFailed", self.error_text)


async def _remote_command(
    url: str, *, tty: bool, stdin: bool, stdout: bool, stderr: bool
) -> SpdySession:
    wanted = [("error", True), ("stdin", stdin), ("stdout", stdout), ("stderr", stderr)]
    kinds = [kind for kind, yes in [*wanted, ("resize", tty)] if yes]
    reader, writer = await connect(url, REMOTE_COMMAND)
    return SpdySession(
        reader, writer, [headers(kind) for kind in kinds], {"stdout": 1, "stderr": 2}, "stdin"
    )
