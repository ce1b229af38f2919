"""Lets connections in: accepts them, and holds each until it has shown that it is a client.

Theory of operation
-------------------
Anybody who reaches the port may connect, before anything is known of them. What that may cost
the agent, whose watches and leases live in the same process, is bounded here:

| a connection            | at most so many         | for at most     | then it            |
|-------------------------|-------------------------|-----------------|--------------------|
| shaking hands (TLS)     | `SHAKING`; the oldest   | `PATIENCE`      | is reset           |
|                         | goes when one more comes|                 |                    |
| without a first request | `SHAKING`; the oldest   | `PATIENCE` more | is reset           |
|                         | goes when one more comes|                 |                    |
| open                    | `most_open`             | the server's    | a further one is   |
|                         |                         | keep-alive      | reset              |

Who has asked and is nobody (401) is sent away by the server at once. A connection costs about
100 KiB. Where the process has no files left, accepting
rests for a second, as asyncio's own servers do. A listener costs no task.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import resource
import socket
import ssl
from collections.abc import Callable

import structlog

_log = structlog.get_logger()

SHAKING = 512
PATIENCE = 10.0  # seconds
#: Connections taken from one listener before the loop does something else.
_AT_ONCE = 64
_REST = 1.0
_TELL_EVERY = 10.0
_NO_FILES = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))


def most_open_by_files() -> int:
    """Half of the files that the process may have open: the rest is for its own errands. And
    what fits into some hundred MiB."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(64, min(soft // 2, 4096))


class Doorman:
    """Accepts connections of any number of listeners. `close` at the end.

    `guest` makes the protocol of one connection, `has_asked` tells whether one has had a
    request, `open_now` how many are open.
    """

    def __init__(
        self,
        guest: Callable[[], asyncio.Protocol],
        has_asked: Callable[[asyncio.Protocol], bool],
        open_now: Callable[[], int],
        *,
        shaking: int = SHAKING,
        most_open: int | None = None,
        patience: float = PATIENCE,
    ) -> None:
        self._guest = guest
        self._has_asked = has_asked
        self._open_now = open_now
        self._most_shaking = shaking
        self._most_open = most_open_by_files() if most_open is None else most_open
        self._patience = patience
        self._loop = asyncio.get_running_loop()
        self._listeners: dict[socket.socket, Callable[[], ssl.SSLContext]] = {}
        # The oldest first; handshakes with the listener that they came by.
        self._shaking: dict[asyncio.Task[None], socket.socket] = {}
        self._silent: dict[asyncio.Transport, asyncio.Protocol] = {}
        self._resting: dict[socket.socket, asyncio.TimerHandle] = {}
        self._told = -_TELL_EVERY
        self.refused = 0

    def listen(self, listener: socket.socket, tls: Callable[[], ssl.SSLContext]) -> None:
        """Takes over a non-blocking socket that listens; `tls` is asked for each connection."""
        self._listeners[listener] = tls
        self._loop.add_reader(listener.fileno(), self._accept, listener)

    def leave(self, listener: socket.socket) -> None:
        """Closes the listener and ends its handshakes; who is in stays."""
        if self._listeners.pop(listener, None) is None:
            return
        for task, by in list(self._shaking.items()):
            if by is listener:
                task.cancel()
        resting = self._resting.pop(listener, None)
        if resting is not None:
            resting.cancel()
        else:
            self._loop.remove_reader(listener.fileno())
        listener.close()

    def begin_anew(self) -> None:
        """Ends all handshakes: who is in the middle of one may come again, by the present `tls`."""
        for task in list(self._shaking):
            task.cancel()

    async def close(self) -> None:
        """Closes all listeners, and ends all handshakes."""
        for listener in list(self._listeners):
            self.leave(listener)
        shaking = list(self._shaking)
        self.begin_anew()
        await asyncio.gather(*shaking, return_exceptions=True)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_AT_ONCE):
            try:
                connection, _ = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _NO_FILES:
                    raise
                self._tell("kubelet_api_cannot_accept", error=error.strerror)
                self._rest(listener)
                return
            connection.setblocking(False)
            if self._open_now() >= self._most_open:
                self.refused += 1
                self._tell("kubelet_api_full", open=self._open_now(), refused=self.refused)
                connection.close()
                continue
            task = self._loop.create_task(self._shake(connection, self._listeners[listener]()))
            self._shaking[task] = listener
            task.add_done_callback(functools.partial(self._shaken, connection))
            if len(self._shaking) > self._most_shaking:
                oldest = next(iter(self._shaking))
                del self._shaking[oldest]  # it is not counted twice before it has ended
                oldest.cancel()
                self.refused += 1
                self._tell("kubelet_api_handshakes_flooded", refused=self.refused)

    async def _shake(self, connection: socket.socket, tls: ssl.SSLContext) -> None:
        guest = self._guest()
        try:
            transport, _ = await self._loop.connect_accepted_socket(
                lambda: guest, connection, ssl=tls, ssl_handshake_timeout=self._patience
            )
        except OSError:  # ssl's errors and a handshake that takes too long are some
            return  # the loop has closed it
        self._silent[transport] = guest
        self._loop.call_later(self._patience, self._look_after, transport)
        if len(self._silent) > self._most_shaking:
            self._look_after(next(iter(self._silent)))

    def _look_after(self, transport: asyncio.Transport) -> None:
        guest = self._silent.pop(transport, None)
        if guest is not None and not self._has_asked(guest) and not transport.is_closing():
            transport.abort()

    def _shaken(self, connection: socket.socket, task: asyncio.Task[None]) -> None:
        self._shaking.pop(task, None)
        if task.cancelled():
            connection.close()  # it may never have been begun; else the loop closes it, too
        elif task.exception() is not None:
            # Not the network's doing: a defect of ours, which the log must show.
            _log.error("kubelet_api_handshake_failed", exc_info=task.exception())

    def _rest(self, listener: socket.socket) -> None:
        self._loop.remove_reader(listener.fileno())
        self._resting[listener] = self._loop.call_later(_REST, self._wake, listener)

    def _wake(self, listener: socket.socket) -> None:
        self._resting.pop(listener, None)
        if listener in self._listeners:
            self._loop.add_reader(listener.fileno(), self._accept, listener)

    def _tell(self, event: str, **facts: object) -> None:
        now = self._loop.time()
        if now - self._told >= _TELL_EVERY:
            self._told = now
            _log.warning(event, **facts)
