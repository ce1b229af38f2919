"""Threads for what a file system may never answer: a path of the host on a dead server.

Theory of operation: such a thread cannot be ended, only given up. So each call has a thread
of its own, and a time limit after which its caller goes on without it; a Pod whose thread
still hangs begins no second one, and all Pods together no more than `most`. A thread that
comes back after it was given up undoes what it has made.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")


def _keep() -> None:
    """Nothing is to be undone."""


class Patience:
    """Use it on one event loop."""

    def __init__(self, most: int, seconds: float) -> None:
        self.seconds = seconds
        self._room = asyncio.Semaphore(most)
        self._busy: dict[str, asyncio.Event] = {}  # by UID, set at its end

    async def run(
        self, uid: str, work: Callable[[], Result], undo: Callable[[], None] = _keep
    ) -> Result:
        """What `work` returns or raises, from a thread. Raises TimeoutError after `seconds`,
        those in which it waited for its turn among them. May be cancelled. `undo` is called
        where `work` has come to its end and nobody waited for that any more."""
        async with asyncio.timeout(self.seconds):
            while uid in self._busy:
                await self._busy[uid].wait()
            self._busy[uid] = asyncio.Event()
            try:
                await self._room.acquire()
            except BaseException:
                self._end(uid)
                raise
            call = _Call(work, undo, lambda: self._leave(uid))
            thread = threading.Thread(target=call.run, name=f"volumes-{uid}", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the machine gives us no more
                self._leave(uid)
                raise
            try:
                return await call.answer
            except asyncio.CancelledError:
                call.give_up()
                raise

    def _leave(self, uid: str) -> None:
        self._room.release()
        self._end(uid)

    def _end(self, uid: str) -> None:
        self._busy.pop(uid).set()


class _Call(Generic[Result]):
    """Between its thread and the loop: the caller takes the result, or it is undone."""

    def __init__(
        self, work: Callable[[], Result], undo: Callable[[], None], ended: Callable[[], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._work, self._undo, self._ended = work, undo, ended
        self._lock = threading.Lock()
        self._given_up = self._done = False
        self.answer: asyncio.Future[Result] = self._loop.create_future()

    def run(self) -> None:
        """In the thread."""
        try:
            result = self._work()
        except BaseException as error:
            self._tell(self._fail, error)
            return
        with self._lock:
            self._done = True
            late = self._given_up
        try:
            if late:
                self._undo()
        finally:
            self._tell(self._succeed, result)

    def give_up(self) -> None:
        """On the loop."""
        with self._lock:
            self._given_up = True
            there_already = self._done
        if there_already:
            self._undo()

    def _tell(self, what: Callable[[Any], None], outcome: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
            self._loop.call_soon_threadsafe(what, outcome)

    def _succeed(self, result: Result) -> None:
        self._ended()
        if not self.answer.done():
            self.answer.set_result(result)

    def _fail(self, error: BaseException) -> None:
        self._ended()
        if not self.answer.done():
            self.answer.set_exception(error)
