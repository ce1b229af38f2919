"""Writes Pod statuses: one PATCH per real change, never a GET, the newest wins.

Theory of operation. The writer holds no statuses, only UIDs that are dirty. The body is made at
the moment a PATCH is about to leave (`StatusSource.render`), from the newest that is known; so a
status that was overtaken while it waited is never sent, and several changes become one PATCH.

=========  ====================================================  ==========================
state      meaning                                               leaves when
=========  ====================================================  ==========================
clean      what the API server has is what we would write        `mark` → waiting
waiting    dirty; its time (a delay, a back-off) has not come    due and a slot free → sending
sending    one PATCH is on its way                               answered → clean, or waiting
                                                                 if marked meanwhile or refused
=========  ====================================================  ==========================

At most `SLOTS` are sending. A mark without a delay starts the request in the same turn of the
loop if a slot is free. There is no task for a clean or a waiting Pod.

Answers: 404, 409, and 422 of `metadata.uid` (what a current API server says to a UID that is not
the Pod's) mean the Pod is another one or gone, so the write is dropped; any other 422 and 400 are
defects of ours, logged and dropped, or they would be repeated for ever; everything else (429,
5xx, 403 of a Node authorizer that lags, no connection) is tried again with a back-off, with a
body made anew.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import structlog

from vknode.agent.wheel import DelayQueue
from vknode.kube.backoff import Backoff
from vknode.kube.errors import ApiError, Unreachable

log = structlog.get_logger()

SLOTS = 24
PATCH_TIMEOUT = 15.0
_DROPPED = frozenset((404, 409))
_DEFECTS = frozenset((400, 413, 415, 422))


class Write(NamedTuple):
    """A PATCH about to leave. `token` comes back in `written`."""

    path: str
    body: bytes
    node: str
    token: object = None


class StatusSource(Protocol):
    """Who knows what to write. Synchronous: called in the loop's turn that sends."""

    def render(self, uid: str) -> Write | None:
        """The newest change to write, None if there is none (any more)."""

    def written(self, uid: str, write: Write, answer: bytes) -> None:
        """The API server has taken it and answered with the whole object."""

    def dropped(self, uid: str, write: Write, error: ApiError) -> None:
        """It never will."""


class PatchStatus(Protocol):
    """The part of `KubeClient` that is used here."""

    async def patch_status(
        self,
        path: str,
        body: bytes,
        *,
        impersonate: str | None = None,
        timeout: float = 30.0,
        retry: bool = True,
    ) -> bytes: ...


class StatusWriter:
    """Use within one loop; `close` at the end, after `flush` if what is dirty should go out."""

    def __init__(
        self,
        client: PatchStatus,
        source: StatusSource,
        *,
        slots: int = SLOTS,
        make_backoff: Callable[[], Backoff] = lambda: Backoff(base=0.2, maximum=5.0),
        took: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        """`took` is told of each request's duration."""
        self._client = client
        self._source = source
        self._slots = slots
        self._make_backoff = make_backoff
        self._took = took
        self._loop = asyncio.get_running_loop()
        self._waiting: DelayQueue[str] = DelayQueue()
        self._sending: dict[str, asyncio.Task[None]] = {}
        self._again: dict[str, float] = {}
        self._backoffs: dict[str, Backoff] = {}
        self._settled: dict[str, list[asyncio.Future[None]]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._flushing = False  # everything that waits is due
        # Counters since start, for metrics.
        self.patches = 0
        self.written = 0
        self.retries = 0
        self.drops = 0
        self.failures = 0

    @property
    def depth(self) -> int:
        """Pods whose status is waiting or being sent."""
        return len(self._waiting) + len(self._sending)

    def mark(self, uid: str, delay: float = 0.0) -> None:
        """The status may have changed: write it in `delay` seconds, or earlier if so asked."""
        if self._closed:
            return
        when = self._loop.time() + delay
        if uid in self._sending:
            self._again[uid] = min(when, self._again.get(uid, when))
            return
        if uid in self._backoffs and uid in self._waiting:
            return  # it is being retried: its back-off holds, and the body will be the newest
        self._waiting.schedule_by(uid, when)
        self._pump()

    async def settled(self, uid: str) -> None:
        """Writes what is dirty now and returns once it is written or dropped (however long the
        API server is away: the caller decides how long it waits)."""
        if uid not in self._sending and uid not in self._waiting:
            return
        self.mark(uid)
        future = self._loop.create_future()
        self._settled.setdefault(uid, []).append(future)
        await future

    def forget(self, uid: str) -> None:
        """The Pod is gone; what waits is dropped."""
        self._waiting.cancel(uid)
        self._again.pop(uid, None)
        self._backoffs.pop(uid, None)
        if uid not in self._sending:
            self._release(uid)

    async def flush(self, timeout: float) -> int:
        """Sends everything that is dirty now; returns how many were not written in time."""
        self._flushing = True
        self._pump()
        deadline = self._loop.time() + timeout
        while self._sending and (left := deadline - self._loop.time()) > 0:
            await asyncio.wait(
                self._sending.values(), timeout=left, return_when=asyncio.FIRST_COMPLETED
            )
        return self.depth

    async def close(self) -> None:
        """Cancels what is being sent. Nothing is written afterwards."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        tasks = list(self._sending.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for uid in list(self._settled):
            self._release(uid)

    # -- inside ----------------------------------------------------------------------------

    def _pump(self) -> None:
        """Starts what is due while there are slots, and sets the timer for what is not."""
        if self._closed:
            return
        now = math.inf if self._flushing else self._loop.time()
        while len(self._sending) < self._slots:
            uid = self._waiting.pop_due(now)
            if uid is None:
                break
            # Rendered here and not in the task: nothing to write costs no task.
            try:
                write = self._source.render(uid)
            except Exception:  # a defect of ours with one Pod must not stop the others' statuses
                log.exception("status_not_rendered", uid=uid)
                write = None
            if write is None:
                self._backoffs.pop(uid, None)
                self._release(uid)
                continue
            self._sending[uid] = self._loop.create_task(self._send(uid, write))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if len(self._sending) < self._slots and (when := self._waiting.next_time()) is not None:
            self._timer = self._loop.call_at(when, self._pump)

    async def _send(self, uid: str, write: Write) -> None:
        again: float | None = None
        begun = self._loop.time()
        try:
            self.patches += 1
            answer = await self._client.patch_status(
                write.path,
                write.body,
                impersonate=write.node,
                timeout=PATCH_TIMEOUT,
                # Our own retry makes the body anew.
                retry=False,
            )
            self.written += 1
            self._backoffs.pop(uid, None)
            self._source.written(uid, write, answer)
        except ApiError as error:
            if error.status in _DROPPED or error.status in _DEFECTS:
                if error.status in _DEFECTS and not _is_another_pod(error):
                    log.error("status_refused", uid=uid, path=write.path, error=str(error))
                self.drops += 1
                self._backoffs.pop(uid, None)
                self._source.dropped(uid, write, error)
            else:
                again = self._retry_in(uid, write, error, error.retry_after)
        except Unreachable as error:
            again = self._retry_in(uid, write, error, None)
        except Exception:  # as above; the task's own result is looked at by nobody
            self.failures += 1
            log.exception("status_not_sent", uid=uid)
        finally:
            self._took(self._loop.time() - begun)
            del self._sending[uid]
            self._after(uid, again)

    def _retry_in(self, uid: str, write: Write, error: Exception, at_least: float | None) -> float:
        self.retries += 1
        delay = self._backoffs.setdefault(uid, self._make_backoff()).next(at_least)
        log.warning("status_retry", uid=uid, path=write.path, error=str(error), retry_in=delay)
        return self._loop.time() + delay

    def _after(self, uid: str, retry_at: float | None) -> None:
        if self._closed:
            return
        marked_at = self._again.pop(uid, None)
        when = retry_at if retry_at is not None else marked_at
        if when is not None:
            self._waiting.schedule_by(uid, when)
        else:
            self._release(uid)
        self._pump()

    def _release(self, uid: str) -> None:
        for future in self._settled.pop(uid, ()):
            if not future.done():
                future.set_result(None)


def _is_another_pod(error: ApiError) -> bool:
    return error.status == 422 and "metadata.uid:" in error.message
