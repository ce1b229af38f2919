"""Watches one named object, without ever listing, on behalf of a Node that may read it.

Theory of operation. The Node authorizer lets a node watch a Secret or ConfigMap that a Pod of it
refers to, one object at a time: the field selector `metadata.name` is what names it. A watch
without a resourceVersion begins with an ADDED event of the object as it is, so one request tells
what is there and what becomes of it (a reflector would need a list as well).

=========  ==========================================  =====================================
state      what it does                                leaves when
=========  ==========================================  =====================================
starting   a watch without resourceVersion: ADDED      the first event or bookmark → following
           tells that the object is there; a
           bookmark before it, that it is not
following  a watch from where the last one stopped     410, 2 refusals or silences in a row,
                                                       or another target → starting
waiting    back-off with jitter, at least Retry-After  the delay is over
=========  ==========================================  =====================================

Before each request `aim` is asked which object is meant and who shall ask: nodes come and go,
and the right to watch is looked at when a watch begins. Nothing to aim at ends the run.

Protocol fact (seen with 1.37.2): such a first state comes from the watch cache and may be some
milliseconds old; it is never in the future, and all later changes follow it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import NamedTuple, Protocol

import msgspec
import structlog

from vknode.kube.client import KubeClient
from vknode.kube.errors import ApiError
from vknode.kube.models import WatchEvent, decode_identity
from vknode.kube.reflector import (
    SHORT_WATCH_SECONDS,
    ReflectorOptions,
    ReflectorStats,
)
from vknode.kube.watch import BROKEN, Expired, WatchFailed, watch

log = structlog.get_logger()

FAILURES_BEFORE_START = 2


class Target(NamedTuple):
    """`path` is the collection's, such as `/api/v1/namespaces/NS/secrets`."""

    path: str
    name: str
    node: str


class Observer(Protocol):
    """Synchronous; exceptions end the run. `raw` is a view: copy what is kept."""

    def present(self, resource_version: str, raw: msgspec.Raw) -> None:
        """The object is there, new or changed. May repeat a state."""

    def absent(self, resource_version: str, last: msgspec.Raw | None) -> None:
        """It is not (any more), as of that resourceVersion; `last` where it just went."""


class ObjectWatch:
    """`run` it in a task; cancel the task to stop."""

    def __init__(
        self,
        client: KubeClient,
        aim: Callable[[], Target | None],
        observer: Observer,
        options: ReflectorOptions | None = None,
        stats: ReflectorStats | None = None,
    ) -> None:
        """`stats`: where this one counts, too (`relists`: times it began anew)."""
        self._client = client
        self._aim = aim
        self._observer = observer
        self._options = options or ReflectorOptions()
        self._stats = stats or ReflectorStats()
        self._resource_version = ""
        self._heard = 0

    async def run(self) -> None:
        """Watches until cancelled, or until there is nothing to aim at. Never raises what a
        server may do: that is waited out."""
        backoff = self._options.make_backoff()
        last: tuple[str, str] | None = None
        refusals = silences = 0
        while (target := self._aim()) is not None:
            if last != (target.path, target.name):
                last, self._resource_version = (target.path, target.name), ""
            started, heard = time.monotonic(), self._heard
            problem, at_least = "", None
            try:
                await self._watch(target)
                refusals = 0
            except Expired as error:
                if self._resource_version:
                    self._begin_anew()
                    continue
                problem = str(error)
            except ApiError as error:
                if error.is_expired and self._resource_version:
                    self._begin_anew()
                    continue
                # 429 says the server is busy, not that our resourceVersion is bad.
                refusals += not error.is_throttled
                problem, at_least = str(error), error.retry_after
            except WatchFailed as error:
                refusals += 1
                problem, at_least = str(error), error.retry_after
            except BROKEN as error:
                problem = str(error) or type(error).__name__
                silences += self._heard == heard
            if self._heard != heard:
                refusals = silences = 0
                backoff.reset()
            if max(refusals, silences) >= FAILURES_BEFORE_START:
                self._begin_anew()
                refusals = silences = 0
            self._stats.restarts += bool(problem)
            if not problem and time.monotonic() - started >= SHORT_WATCH_SECONDS:
                continue
            delay = backoff.next(at_least)
            log.info(
                "object_watch_restart",
                path=target.path,
                name=target.name,
                node=target.node,
                problem=problem or "ended at once",
                retry_in=round(delay, 3),
            )
            await asyncio.sleep(delay)

    def _begin_anew(self) -> None:
        self._stats.relists += 1
        self._resource_version = ""

    async def _watch(self, target: Target) -> None:
        self._stats.watches += 1
        options = self._options
        events = watch(
            self._client,
            target.path,
            {"fieldSelector": f"metadata.name={target.name}"},
            self._resource_version,
            timeout=options.watch_timeout,
            read_timeout=options.read_timeout,
            max_line=options.max_line,
            impersonate=target.node,
        )
        async with aclosing(events):
            async for event in events:
                self._event(event)

    def _event(self, event: WatchEvent) -> None:
        self._heard += 1
        self._stats.events += event.type != "BOOKMARK"
        self._stats.bookmarks += event.type == "BOOKMARK"
        revision = decode_identity(event.object).metadata.resource_version
        if event.type == "BOOKMARK":
            if not self._resource_version:
                self._observer.absent(revision, None)
        elif event.type == "DELETED":
            self._observer.absent(revision, event.object)
        else:
            self._observer.present(revision, event.object)
        self._resource_version = revision or self._resource_version
