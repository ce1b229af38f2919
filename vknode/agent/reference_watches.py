"""Tells when a ConfigMap or Secret that running Pods use has changed: a trigger, no more.

Theory of operation. Each object in use is a key in one `WorkQueue`; a visit by one of few workers
brings it to where it should be:

=============  =============================================================================
the key has    a visit
=============  =============================================================================
no users       ends its watch, forgets it (it is visited `LINGER` after the last user left,
               so that Pods that follow each other do not each open a watch)
a watch        nothing
users, and     opens the watch. A new use is visited after `SETTLE`: a burst of starts comes
there is room  first, and a Pod that is soon gone again costs nothing. A watch begins with the
for a watch    object as it is, so nothing that happened meanwhile is missed
users, no      reads the object, and again about every minute (`POLL`): beyond `limit` watches.
room           Said once in the log and by a metric
=============  =============================================================================

What counts only when a container is started again (its variables) has room in the first half of
`limit`, and gives it up to what containers see where that has none: the watch of one such object
is ended for it. Without a watch it is not even read: PodSync has it looked up when a container has
crashed. And nobody is in a hurry for it: those that have old variables only are told to `later`.

A watch is opened and an object is read as some node that has a Pod which uses it, so the Node
authorizer decides. No content is kept.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Mapping
from typing import NoReturn
from urllib.parse import quote

import msgspec
import structlog

from vknode.agent.reference_index import ReferenceIndex, RefKey
from vknode.agent.wheel import WorkQueue
from vknode.kube.backoff import Backoff
from vknode.kube.client import KubeClient
from vknode.kube.errors import ApiError, KubeError
from vknode.kube.object_watch import ObjectWatch, Target
from vknode.kube.reflector import ReflectorOptions, ReflectorStats

log = structlog.get_logger()

SETTLE = 2.0
LINGER = 30.0
POLL = (45.0, 75.0)
WORKERS = 4
REQUEST_TIMEOUT = 10.0


class _Content(msgspec.Struct, rename="camel"):
    data: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    binary_data: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    immutable: bool = False


class _Head(msgspec.Struct, rename="camel"):
    resource_version: str = ""


class _Object(msgspec.Struct):
    metadata: _Head


_decode_content = msgspec.json.Decoder(_Content).decode
_decode_head = msgspec.json.Decoder(_Object).decode


class ReferenceWatches:
    """`use` and `drop` at any time; `run` in a task."""

    def __init__(
        self,
        client: KubeClient,
        changed: Callable[[str], None],
        later: Callable[[str], None] | None = None,
        *,
        limit: int,
        options: ReflectorOptions | None = None,
        settle: float = SETTLE,
        linger: float = LINGER,
        poll: tuple[float, float] = POLL,
    ) -> None:
        """`changed` is called with the UID of a Pod that has something old; `later` instead where
        no container sees it before it is started again. `limit`: watches."""
        self.watch_stats = ReflectorStats()  # of all its watches together
        self._client = client
        self._changed = changed
        self._later = later or changed
        self._limit = limit
        self._options = options or ReflectorOptions(make_backoff=lambda: Backoff(base=0.1))
        self._settle = settle
        self._linger = linger
        self._poll = poll
        self._index = ReferenceIndex()
        self._queue: WorkQueue[RefKey] = WorkQueue()
        self._watches: dict[RefKey, asyncio.Task[None]] = {}
        self._polled: set[RefKey] = set()
        # In use, and neither watched nor read: there is no room, and nobody's containers see them.
        self._unwatched: set[RefKey] = set()
        # All watched objects that nobody needs are among these, and perhaps others.
        self._spare: dict[RefKey, None] = {}
        self._overflow_told = False
        # Objects that need no watch any more: they said that they will never change.
        self._immutable: set[RefKey] = set()

    @property
    def counts(self) -> dict[str, float]:
        """Objects that are watched; that are read again and again instead; and that are only
        looked up after a crash."""
        return {
            "watched": float(len(self._watches)),
            "polled": float(len(self._polled)),
            "unwatched": float(len(self._unwatched)),
        }

    def use(
        self,
        uid: str,
        node: str,
        given: Mapping[RefKey, str],
        for_restarts: Mapping[RefKey, str] | None = None,
        *,
        urgent: bool,
    ) -> bool:
        """The Pod's sandbox was made from these objects, each with its resourceVersion ("":
        missing); replaces what was said before. `urgent`: the Pod waits for a change of those
        in `given`. Returns whether every change of them will be told at once (else after some
        time)."""
        before = self._index.drop(uid)
        stale = self._index.use(uid, node, given, for_restarts)
        for key in (*given, *(for_restarts or ())):
            self._immutable.discard(key)  # it was made anew, and can change again
            if key not in self._watches and key not in self._polled:
                now = urgent and key in given
                self._queue.add_after(key, 0.0 if now else self._settle)
        for key in before:
            self._left(key)
        if stale:
            self._changed(uid)
        return all(self._will_watch(key) for key in given)

    def drop(self, uid: str) -> None:
        """The Pod has ended, or uses nothing any more."""
        for key in self._index.drop(uid):
            self._left(key)

    async def run(self) -> NoReturn:
        """Serves until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(WORKERS):
                    group.create_task(self._serve(), name=f"references-{number}")
        finally:
            self._queue.close()
            tasks = list(self._watches.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        raise AssertionError("workers never end")

    # -- visits ----------------------------------------------------------------------------

    async def _serve(self) -> NoReturn:
        while True:
            key = await self._queue.get()
            try:
                await self._visit(key)
            except Exception:  # a defect of ours with one object; the others go on
                log.exception("reference_not_followed", object=str(key))
                self._queue.add_after(key, self._poll[1])
            finally:
                self._queue.done(key)

    async def _visit(self, key: RefKey) -> None:
        self._unwatched.discard(key)
        if not self._index.is_used(key):
            self._forget(key)
        elif key in self._watches or key in self._immutable:
            self._polled.discard(key)
        elif self._has_room(key):
            self._polled.discard(key)
            self._make_room()
            self._open(key)
        elif not self._index.is_needed(key):
            self._polled.discard(key)
            self._wait_for_room(key)
        else:
            self._polled.add(key)
            if not self._overflow_told:
                self._overflow_told = True
                log.warning(
                    "references_not_all_watched",
                    limit=self._limit,
                    hint="changes of further ConfigMaps and Secrets reach Pods after up to "
                    f"{self._poll[1]:g} s; raise references.maxWatches",
                )
            await self._read(key)
            self._queue.add_after(key, random.uniform(*self._poll))

    def _open(self, key: RefKey) -> None:
        turn = 0

        def aim() -> Target | None:
            nonlocal turn
            node = self._index.a_node(key, turn)
            turn += 1
            return None if node is None else Target(key.collection, key.name, node)

        watch = ObjectWatch(self._client, aim, _Eyes(self, key), self._options, self.watch_stats)
        task = asyncio.get_running_loop().create_task(watch.run(), name=f"watch-{key.name}")
        self._watches[key] = task
        if not self._index.is_needed(key):
            self._spare[key] = None
        task.add_done_callback(lambda done: self._closed(key, done))

    def _closed(self, key: RefKey, task: asyncio.Task[None]) -> None:
        if self._watches.get(key) is task:
            del self._watches[key]
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            log.error("reference_watch_failed", object=str(key), exc_info=error)
        if self._index.is_used(key):
            self._queue.add_after(key, self._settle if error is None else self._poll[0])

    def _forget(self, key: RefKey) -> None:
        watch = self._watches.pop(key, None)
        if watch is not None:
            watch.cancel()
        self._polled.discard(key)
        self._unwatched.discard(key)
        self._immutable.discard(key)
        self._index.forget(key)

    def _left(self, key: RefKey) -> None:
        """Some Pod does not use it any more, or otherwise."""
        if key not in self._index:
            return
        if key in self._watches and not self._index.is_needed(key):
            self._spare[key] = None
        if not self._index.is_used(key):
            self._queue.add_after(key, self._linger)

    # -- room ------------------------------------------------------------------------------

    def _has_room(self, key: RefKey) -> bool:
        if not self._index.is_needed(key):
            return len(self._watches) < self._limit // 2
        return len(self._watches) < self._limit or self._a_spare() is not None

    def _a_spare(self) -> RefKey | None:
        """A watched object that nobody needs."""
        while self._spare:
            key = next(iter(self._spare))
            if key in self._watches and not self._index.is_needed(key):
                return key
            del self._spare[key]
        return None

    def _make_room(self) -> None:
        """For one watch, where `_has_room` says that it is there."""
        if len(self._watches) < self._limit:
            return
        spare = self._a_spare()
        assert spare is not None
        self._watches.pop(spare).cancel()
        if self._index.is_used(spare):
            self._wait_for_room(spare)

    def _wait_for_room(self, key: RefKey) -> None:
        self._unwatched.add(key)
        self._queue.add_after(key, random.uniform(*self._poll))

    def _will_watch(self, key: RefKey) -> bool:
        return key in self._watches or (key not in self._polled and self._has_room(key))

    async def _read(self, key: RefKey) -> None:
        node = self._index.a_node(key, random.randrange(1000))
        path = f"{key.collection}/{quote(key.name, safe='')}"
        try:
            raw = await self._client.get(
                path, impersonate=node, timeout=REQUEST_TIMEOUT, retry=False
            )
        except ApiError as error:
            if error.is_not_found:
                self.observe_absent(key, "")
            else:
                log.warning("reference_not_read", object=str(key), error=str(error))
        except KubeError as error:
            log.warning("reference_not_read", object=str(key), error=str(error))
        else:
            version = _decode_head(raw).metadata.resource_version
            self.observe_present(key, version, msgspec.Raw(raw))

    # -- what is seen ----------------------------------------------------------------------

    def observe_present(self, key: RefKey, version: str, raw: msgspec.Raw) -> None:
        content = _decode_content(raw)
        stale = self._index.observe(
            key, version, hash((bytes(content.data), bytes(content.binary_data)))
        )
        if content.immutable and key not in self._immutable:
            # Nobody will be told of its end: each Pod takes it over now (`immutables.py`).
            stale = self._index.users(key)
        self._tell(key, stale)
        if content.immutable:
            self._immutable.add(key)
            watch = self._watches.pop(key, None)
            if watch is not None:
                watch.cancel()

    def observe_absent(self, key: RefKey, version: str) -> None:
        self._tell(key, self._index.observe(key, version, None))

    def _tell(self, key: RefKey, uids: Iterable[str]) -> None:
        for uid in uids:
            (self._changed if self._index.needs(uid, key) else self._later)(uid)


class _Eyes:
    """The observer of one object."""

    def __init__(self, watches: ReferenceWatches, key: RefKey) -> None:
        self._watches = watches
        self._key = key

    def present(self, resource_version: str, raw: msgspec.Raw) -> None:
        self._watches.observe_present(self._key, resource_version, raw)

    def absent(self, resource_version: str, last: msgspec.Raw | None) -> None:
        self._watches.observe_absent(self._key, resource_version)
