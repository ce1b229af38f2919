"""Moves a command's input and output between a client and a session of the backend.

Theory of operation
-------------------
What carries the client's streams, a WebSocket or SPDY, is a `Wire`. Three tasks run side by
side; each awaits its sink before it reads more, so a slow side holds the other back and nothing
piles up:

  input   what the client sends → stdin, end of stdin, terminal size
  output  session events → stdout and stderr
  keep    the wire's own signs of life

  what happens                          what follows
  ------------------------------------  ------------------------------------------------------
  output ends, with an exit code or not Status on the error stream, a normal end
  output fails                          Status InternalError on the error stream, a normal end
  client closes or is gone              all tasks cancelled, session left, nothing more said
  client breaks the protocol            the same, and the wire says so
  the server stops                      Status InternalError, the wire says that we go
  the backend has a fault               Status InternalError, the wire says so

The status is sent only after all output, and the end waits for the client, so a slow one gets
everything.
"""

import asyncio
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import Enum
from typing import NoReturn, Protocol

import structlog
from aiohttp import web

from vknode.kubeletapi.backend import (
    AttachRequest,
    BackendError,
    Ended,
    ExecRequest,
    ExecSession,
    Exit,
    Stderr,
    Stdout,
)
from vknode.kubeletapi.streams import STOPPING, ServerStopping, Streams, cancel_and_wait
from vknode.streaming.channels import Channel
from vknode.streaming.remotecommand import Exited, Failed, Outcome

_log = structlog.get_logger()
_PIECE = 64 * 1024

Asked = ExecRequest | AttachRequest


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """
    max_message_bytes: largest WebSocket message taken
    ping_interval:     seconds between pings to the client
    """

    max_message_bytes: int
    ping_interval: float


class ClientGone(Exception):
    """The client has left, or broke the protocol: nobody is there to be told the outcome."""


class Close(Enum):
    """Why a session ends."""

    DONE = "done"
    STOPPING = "stopping"
    FAULT = "fault"


class Wire(Protocol):
    """What carries one client's streams. Raises ClientGone or ConnectionResetError."""

    response: web.StreamResponse | None
    """The answer to the upgrade, once `open` has begun it."""

    async def open(self) -> None:
        """Answers the upgrade, and waits until all streams are there."""

    async def send(self, channel: Channel, data: bytes) -> None:
        """On stdout or stderr; returns when more may be given."""

    async def feed(self, session: ExecSession) -> NoReturn:
        """Gives to the session what the client sends, for ever."""

    async def keep(self) -> NoReturn:
        """Finds out that nobody is there any more, also while nothing is read."""

    async def tell(self, outcome: Outcome) -> None:
        """The last words."""

    async def close(self, why: Close) -> None:
        """Ends it in order; not called where the client has gone."""

    async def drop(self) -> None:
        """Lets go of everything, whatever has happened."""


async def give(session: ExecSession, data: bytes) -> None:
    """To its input, in pieces as `ExecSession` takes them."""
    for start in range(0, len(data), _PIECE):
        await session.write_stdin(data[start : start + _PIECE])


async def serve_session(
    request: web.Request,
    wire: Wire,
    wanted: Asked,
    opening: AbstractAsyncContextManager[ExecSession],
    streams: Streams,
    trouble: str,
) -> web.StreamResponse:
    """Upgrades the request and serves the session to its end. `trouble` begins the text that
    the client gets where the backend fails."""
    session = _Session(wire, wanted, trouble)
    try:
        await wire.open()
        why = Close.DONE
        try:
            outcome = await streams.run(session.run(opening), lambda: session.leaving)
        except ServerStopping:
            outcome, why = Failed(STOPPING), Close.STOPPING
        except (ClientGone, ConnectionError):
            raise
        except Exception:  # a fault of our own: the client must not hang or see a bare 1006
            _log.exception("session_failed", **dict(request.match_info))
            outcome, why = Failed("the node's agent failed, see its log"), Close.FAULT
        await wire.tell(outcome)
        await wire.close(why)
    except (ClientGone, ConnectionError) as error:
        _log.debug("session_client_gone", reason=str(error), **dict(request.match_info))
    finally:
        await wire.drop()
    return wire.response or web.Response()  # which nobody is there to see


class _Session:
    def __init__(self, wire: Wire, wanted: Asked, trouble: str) -> None:
        self._wire = wire
        self._wanted = wanted
        self._trouble = trouble
        self.leaving = False

    async def run(self, opening: AbstractAsyncContextManager[ExecSession]) -> Outcome:
        """Raises `ClientGone` if there is nobody to tell the outcome to."""
        try:
            async with opening as session:
                try:
                    return await self._move(session)
                finally:
                    self.leaving = True
        except BackendError as error:
            return Failed(f"{self._trouble}: {error}")

    async def _move(self, session: ExecSession) -> Outcome:
        output = asyncio.create_task(self._output(session))
        input_ = asyncio.create_task(self._wire.feed(session))
        keep = asyncio.create_task(self._wire.keep())
        try:
            await asyncio.wait({output, input_, keep}, return_when=asyncio.FIRST_COMPLETED)
            if not output.done():
                # Neither ends by itself: the one that is done raises.
                (input_ if input_.done() else keep).result()
            return await output
        finally:
            await cancel_and_wait(output, input_, keep)

    async def _output(self, session: ExecSession) -> Outcome:
        async for event in session:
            match event:
                case Stdout(data):
                    if self._wanted.stdout:
                        await self._wire.send(Channel.STDOUT, data)
                case Stderr(data):
                    if self._wanted.stderr:
                        await self._wire.send(Channel.STDERR, data)
                case Exit(code):
                    return Exited(code)
                case Ended():
                    return Exited(0)
        return Failed(f"{self._trouble}: its exit code is unknown")
