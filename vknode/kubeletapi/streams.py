"""What all long-lived requests of the server share: their number, and their common end."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import structlog
from aiohttp import web

from vknode.kubeletapi.responses import plain_error

STOPPING = "the node's agent is stopping"

T = TypeVar("T")
_log = structlog.get_logger()


class ServerStopping(Exception):
    """The server stops while a stream is open."""


class StreamLimitError(Exception):
    """Too many streams at one time."""

    def response(self) -> web.Response:
        """As from a kubelet whose streaming server is full."""
        text = "maximum number of in-flight requests exceeded"
        return plain_error(429, text, {"Retry-After": "60"})


class Streams:
    """Counts the streams that run, and ends them when the server stops."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._running = 0
        self._stopping = asyncio.Event()

    @property
    def running(self) -> int:
        return self._running

    def stop(self) -> None:
        """Ends all streams, and every later one as soon as it begins."""
        self._stopping.set()

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Raises `StreamLimitError` if all are taken."""
        if self._running >= self._limit:
            raise StreamLimitError
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1

    async def run(
        self, work: Coroutine[Any, Any, T], leaving: Callable[[], bool] = lambda: False
    ) -> T:
        """Runs `work` in a task of its own and returns its result.

        Raises `ServerStopping` if the server stops before. If that happens, or the caller is
        cancelled, `work` is cancelled and has ended when this returns. Once `leaving()` says
        that `work` only tidies up, it is waited for instead: a client often says good-bye and
        then cuts the connection, and the second must not interrupt what the first has begun.
        """
        task = asyncio.create_task(work)
        stop = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done() and leaving():
                await asyncio.wait({task})
            if task.done():
                return task.result()
            raise ServerStopping
        finally:
            if leaving():
                await _wait_through(task)
            await cancel_and_wait(task, stop)


async def cancel_and_wait(*tasks: asyncio.Task[Any]) -> None:
    """Cancels what still runs and waits for it, even if the caller is cancelled meanwhile.

    A failure on the way out is logged, unless it is that the client has gone.
    """
    pending = [task for task in tasks if not task.done()]
    for task in pending:
        task.cancel()
    try:
        await _wait_through(*pending)
    finally:
        # All have ended, also where the caller is cancelled: what nobody looks at asyncio logs.
        for task in tasks:
            error = None if task.cancelled() else task.exception()
            if error is None or task not in pending or isinstance(error, ConnectionError):
                continue
            _log.warning("stream_end_failed", error=type(error).__name__, reason=str(error))


async def _wait_through(*tasks: asyncio.Task[Any]) -> None:
    cancelled: asyncio.CancelledError | None = None
    while not all(task.done() for task in tasks):
        try:
            await asyncio.wait(tasks)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
