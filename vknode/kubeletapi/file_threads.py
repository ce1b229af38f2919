"""Threads for what may wait for a disk: a few, and none that the process waits for at its end.

The event loop's own threads serve everything else; a network file system that hangs must not
take them all.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar, cast

T = TypeVar("T")


class FileThreads:
    """At most `most` at one time; further work waits. A thread keeps its place until it is back,
    whoever has given up waiting for it."""

    def __init__(self, most: int) -> None:
        self._places = asyncio.Semaphore(most)

    async def run(self, work: Callable[[], T]) -> T:
        """Returns or raises what `work` does."""
        await self._places.acquire()
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

        def back(result: T | None, error: Exception | None) -> None:
            self._places.release()
            if done.done():
                return  # nobody waits any more
            if error is not None:
                done.set_exception(error)
            else:
                done.set_result(cast(T, result))

        def body() -> None:
            result: T | None = None
            failure: Exception | None = None
            try:
                result = work()
            except Exception as error:
                failure = error
            with suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(back, result, failure)

        try:
            threading.Thread(target=body, name="kubelet-api-files", daemon=True).start()
        except BaseException:
            self._places.release()
            raise
        return await done
