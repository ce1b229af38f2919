"""Development clusters for tests: run in a thread with an event loop of its own.

A cluster that is shared by a session outlives every test's event loop, and its
children must be watched between tests too.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from vknode.devcluster.cluster import DevCluster

T = TypeVar("T")

#: Seconds for a cancelled step of a cluster to undo what it has done.
CLEARING_WITHIN = 60.0


class ClusterThread:
    """A DevCluster on its own loop; `run` calls into it from any test, blocking."""

    def __init__(
        self, make_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    ) -> None:
        self.loop = make_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="cluster", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T], timeout: float = 280.0) -> T:
        """Run a coroutine on the cluster's loop and wait for it.

        Ctrl-C or the timeout cancels it, and is raised when it has cleared up: what comes next
        must not meet a cluster that is still being started."""
        ended = threading.Event()

        async def tracked() -> T:
            try:
                return await work
            finally:
                ended.set()

        future = self.submit(tracked())
        try:
            return future.result(timeout)
        except BaseException:
            if future.cancel():
                ended.wait(CLEARING_WITHIN)
            raise

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine on the cluster's loop; the caller waits when it likes."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def close(self) -> None:
        """End the loop and the thread."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@contextlib.contextmanager
def running(make: Callable[[Path], DevCluster]) -> Iterator[tuple[DevCluster, ClusterThread]]:
    """A started cluster in a short temporary folder (Unix sockets have short paths), ended
    and removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="vkn-"))
    thread = ClusterThread()

    async def begin() -> DevCluster:
        cluster = make(folder / "s")
        await cluster.start()
        return cluster

    try:
        cluster = thread.run(begin())
        try:
            yield cluster, thread
        finally:
            thread.run(cluster.stop())
    finally:
        thread.close()
        shutil.rmtree(folder, ignore_errors=True)
