"""Moves a command's input and output between a WebSocket and a session of the backend.

Theory of operation
-------------------
Two tasks run side by side; each awaits its sink before it reads more, so a slow side holds the
other back and nothing piles up:

  input   WebSocket messages → stdin, end of stdin, terminal size
  output  session events → messages on the stdout and stderr channels

  what happens                          what follows
  ------------------------------------  ------------------------------------------------------
  output ends with an exit code         Status on the error channel, close 1000
  output fails                          Status InternalError on the error channel, close 1000
  client closes or is gone              both tasks cancelled, session left, nothing more said
  client breaks the framing             the same, close 1002 (a message too large: 1009)
  the server stops                      Status InternalError, close 1001
  the backend has a fault               Status InternalError, close 1011

A third task pings the client. Its answers are of no interest: while input waits for a command
that does not read, nothing is read from the socket, and only writing tells that nobody is there.

The status is sent only after all output, and the close frame waits for the client's answer, so
a slow client gets everything.
"""

import asyncio
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import NoReturn

import structlog
from aiohttp import WSCloseCode, WSMsgType, web

from vknode.kubeletapi.backend import (
    BackendError,
    ExecRequest,
    ExecSession,
    Exit,
    Stderr,
    Stdout,
)
from vknode.kubeletapi.streams import STOPPING, ServerStopping, Streams, cancel_and_wait
from vknode.streaming.channels import Channel, ChannelClosed, ChannelError, ChannelProtocol
from vknode.streaming.remotecommand import (
    Exited,
    Failed,
    Outcome,
    ResizeParser,
    encode_outcome,
)

_log = structlog.get_logger()
_PIECE = 64 * 1024

Socket = web.WebSocketResponse[bool]


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """
    max_message_bytes: largest WebSocket message taken
    ping_interval:     seconds between pings to the client
    """

    max_message_bytes: int
    ping_interval: float


class _ClientGone(Exception):
    """The client has left, or broke the protocol: nobody is there to be told the outcome."""


async def serve_session(
    request: web.Request,
    wanted: ExecRequest,
    opening: AbstractAsyncContextManager[ExecSession],
    protocol: ChannelProtocol,
    streams: Streams,
    limits: SessionLimits,
) -> web.StreamResponse:
    """Upgrades the request and serves the session to its end."""
    socket: Socket = web.WebSocketResponse(
        protocols=(protocol.name,) if protocol.name else (),
        compress=False,
        max_msg_size=limits.max_message_bytes,
        decode_text=False,
    )
    await socket.prepare(request)
    session = _Session(socket, protocol, wanted, limits.ping_interval)
    try:
        await session.greet()
        code = WSCloseCode.OK
        try:
            outcome = await streams.run(session.run(opening), lambda: session.leaving)
        except ServerStopping:
            outcome, code = Failed(STOPPING), WSCloseCode.GOING_AWAY
        except (_ClientGone, ConnectionResetError):
            raise
        except Exception:  # a fault of our own: the client must not hang or see a bare 1006
            _log.exception("exec_session_failed", **dict(request.match_info))
            outcome = Failed("the node's agent failed, see its log")
            code = WSCloseCode.INTERNAL_ERROR
        await session.tell(outcome)
        await socket.close(code=code)
    except (_ClientGone, ConnectionResetError) as error:
        _log.debug("exec_client_gone", reason=str(error), **dict(request.match_info))
    return socket


class _Session:
    def __init__(
        self,
        socket: Socket,
        protocol: ChannelProtocol,
        wanted: ExecRequest,
        ping_interval: float,
    ) -> None:
        self._ping_interval = ping_interval
        self._socket = socket
        self._protocol = protocol
        self._wanted = wanted
        self._stdin_open = wanted.stdin
        self._sizes = ResizeParser()
        self.leaving = False

    async def greet(self) -> None:
        """An empty message says that the connection is there (some clients wait for it)."""
        if self._wanted.stdout:
            channel = Channel.STDOUT
        else:
            channel = Channel.STDERR if self._wanted.stderr else Channel.ERROR
        await self._send(channel, b"")

    async def tell(self, outcome: Outcome) -> None:
        data = encode_outcome(outcome, as_json=self._protocol.status_is_json)
        if data:
            await self._send(Channel.ERROR, data)

    async def run(self, opening: AbstractAsyncContextManager[ExecSession]) -> Outcome:
        """Raises `_ClientGone` if there is nobody to tell the outcome to."""
        try:
            async with opening as session:
                try:
                    return await self._move(session)
                finally:
                    self.leaving = True
        except BackendError as error:
            return Failed(f"error executing command in container: {error}")

    async def _move(self, session: ExecSession) -> Outcome:
        output = asyncio.create_task(self._output(session))
        input_ = asyncio.create_task(self._input(session))
        pings = asyncio.create_task(self._ping())
        try:
            await asyncio.wait({output, input_, pings}, return_when=asyncio.FIRST_COMPLETED)
            if not output.done():
                # Neither ends by itself: the one that is done raises.
                (input_ if input_.done() else pings).result()
            return await output
        finally:
            await cancel_and_wait(output, input_, pings)

    async def _output(self, session: ExecSession) -> Outcome:
        async for event in session:
            match event:
                case Stdout(data):
                    if self._wanted.stdout:
                        await self._send(Channel.STDOUT, data)
                case Stderr(data):
                    if self._wanted.stderr:
                        await self._send(Channel.STDERR, data)
                case Exit(code):
                    return Exited(code)
        return Failed("error executing command in container: its exit code is unknown")

    async def _input(self, session: ExecSession) -> NoReturn:
        """Ends by cancellation, `_ClientGone` or `BackendError`."""
        while True:
            message = await self._socket.receive()
            if message.type not in (WSMsgType.BINARY, WSMsgType.TEXT):
                raise _ClientGone(message.type.name.lower())
            try:
                part = self._protocol.decode(message.data)
            except ChannelError as error:
                await self._socket.close(code=WSCloseCode.PROTOCOL_ERROR)
                raise _ClientGone(str(error)) from None
            if part is None:
                continue
            if isinstance(part, ChannelClosed):
                if part.channel is Channel.STDIN and self._stdin_open:
                    self._stdin_open = False
                    await session.close_stdin()
            elif part.channel == Channel.STDIN and self._stdin_open:
                for start in range(0, len(part.data), _PIECE):
                    await session.write_stdin(part.data[start : start + _PIECE])
            elif part.channel == Channel.RESIZE and self._wanted.tty:
                for size in self._sizes.feed(part.data):
                    await session.resize(size.width, size.height)
            # All else is ignored, as a kubelet does.

    async def _ping(self) -> NoReturn:
        while True:
            await asyncio.sleep(self._ping_interval)
            await self._socket.ping()

    async def _send(self, channel: Channel, data: bytes) -> None:
        payload = self._protocol.encode(channel, data)
        await self._socket.send_frame(
            payload, WSMsgType.TEXT if self._protocol.text else WSMsgType.BINARY
        )
