"""Keeps a handler in step with one kind of object: list, then watch, for ever.

Theory of operation. The reflector remembers of each object only its key, UID and
resourceVersion; the handler keeps what it needs. Callbacks are synchronous: while the handler
works the socket is not read, so back-pressure reaches the API server through TCP, and nothing
is queued here. The handler should do little (put a key into a coalescing queue).

=========  ==========================================  =====================================
state      what it does                                leaves when
=========  ==========================================  =====================================
listing    pages of 500 at a consistent revision;      complete → watching;
           differences to what is known become         410 on a continue token → lists anew,
           upserts and deletes                         the second time without pages;
                                                       other errors → waits (listing)
watching   one GET with bookmarks, random              ends or breaks → watching again from
           timeoutSeconds; each event moves the        the last resourceVersion (waits first
           resourceVersion                             if it was short or an error);
                                                       410 (status or ERROR) → listing;
                                                       3 refusals or 2 silences in a row →
                                                       listing
waiting    back-off with jitter, at least Retry-After  the delay is over
=========  ==========================================  =====================================

Protocol facts, from client-go's reflector and the API concepts page of Kubernetes:

* A list without resourceVersion is consistent; `resourceVersion=0` may be older than what
  another client saw before, so a restarted agent could act on the past. We never use it.
* After etcd was restored from a backup our resourceVersion lies in the future. The server may
  refuse it with 504 "Too large resource version" for ever, hence the relist after three refusals;
  or (seen with 1.37.2) accept the watch and send nothing at all, not even bookmarks, hence the
  relist after two watches that stayed silent for `read_timeout`.

A name that comes back with another UID is reported as a delete of the old and then the new.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Generic, NoReturn, Protocol, TypeVar

import aiohttp
import msgspec
import structlog

from vknode.kube.backoff import Backoff
from vknode.kube.client import KubeClient
from vknode.kube.errors import ApiError, Forbidden, Unauthorized, Unreachable
from vknode.kube.gcpause import freeze_survivors, gc_paused
from vknode.kube.lines import MAX_LINE_BYTES
from vknode.kube.models import ObjectKey, ObjectMeta, WatchEvent, decode_identity, decode_list
from vknode.kube.watch import BROKEN, Expired, WatchFailed, watch

log = structlog.get_logger()

PAGE_SIZE = 500
FREEZE_FROM_ITEMS = 1000
SHORT_WATCH_SECONDS = 1.0
REFUSALS_BEFORE_RELIST = 3
SILENCES_BEFORE_RELIST = 2


class HasMeta(Protocol):
    @property
    def metadata(self) -> ObjectMeta: ...


T = TypeVar("T", bound=HasMeta)
_T_contra = TypeVar("_T_contra", bound=HasMeta, contravariant=True)


class Handler(Protocol[_T_contra]):
    """What a reflector calls, synchronously and in order. Exceptions end `Reflector.run`."""

    def upsert(self, obj: _T_contra) -> None:
        """The object is new or changed. May repeat a state already reported."""

    def deleted(self, key: ObjectKey, last: _T_contra | None) -> None:
        """The object with this UID is gone. `last` is its final state where the watch told it;
        None when it went while nobody watched."""

    def synced(self) -> None:
        """A complete list has been handed over: everything that exists has been seen."""


@dataclass
class ReflectorStats:
    """Counters since start, and when something was last heard (time.monotonic seconds). Several
    watches may count in one."""

    lists: int = 0
    relists: int = 0  # lists after the first complete one
    watches: int = 0
    restarts: int = 0  # watches that did not end by their own timeout
    events: int = 0
    bookmarks: int = 0
    undecodable: int = 0
    last_heard: float = 0.0


@dataclass
class ReflectorOptions:
    """Seconds and bytes; the defaults are for production, tests shorten them."""

    page_size: int = PAGE_SIZE
    watch_timeout: tuple[float, float] = (300.0, 600.0)
    # Bookmarks come every minute or so: two missed ones mean nobody is there.
    read_timeout: float = 150.0
    list_timeout: float = 60.0
    max_line: int = MAX_LINE_BYTES
    make_backoff: Callable[[], Backoff] = field(default=Backoff)


class Reflector(Generic[T]):
    """One list-and-watch. `run` it in a task; cancel the task to stop.

    `path` is the collection, such as `/api/v1/pods`. `decode` turns an object's JSON into what
    the handler wants; bytes it keeps must be copied (a `msgspec.Raw` field: `.copy()`).
    """

    def __init__(
        self,
        client: KubeClient,
        path: str,
        decode: Callable[[msgspec.Raw], T],
        handler: Handler[T],
        *,
        field_selector: str = "",
        label_selector: str = "",
        options: ReflectorOptions | None = None,
        stats: ReflectorStats | None = None,
    ) -> None:
        self.stats = stats or ReflectorStats()
        self._client = client
        self._path = path
        self._decode = decode
        self._handler = handler
        self._options = options or ReflectorOptions()
        self._selectors: dict[str, str] = {}
        if field_selector:
            self._selectors["fieldSelector"] = field_selector
        if label_selector:
            self._selectors["labelSelector"] = label_selector
        # (namespace, name) -> (uid, resourceVersion)
        self._known: dict[tuple[str, str], tuple[str, str]] = {}
        self._resource_version = ""
        self._synced = asyncio.Event()

    @property
    def has_synced(self) -> bool:
        return self._synced.is_set()

    async def wait_synced(self) -> None:
        """Returns once the first complete list has been handed over."""
        await self._synced.wait()

    def __len__(self) -> int:
        return len(self._known)

    async def run(self) -> NoReturn:
        """Lists and watches until cancelled.

        Before the first sync, 401, 403 and 404 are raised: they are mistakes of configuration
        that a person must see. Later they are waited out like any other failure, since
        credentials and rights come back without us.
        """
        backoff = self._options.make_backoff()
        while True:
            try:
                await self._list()
                backoff.reset()
                await self._watch_until_expired(backoff)
            except Expired as expired:
                log.info("reflector_relist", path=self._path, reason=str(expired))
            except (ApiError, Unreachable) as error:
                fatal = isinstance(error, Unauthorized | Forbidden) or (
                    isinstance(error, ApiError) and error.is_not_found
                )
                if fatal and not self.has_synced:
                    raise
                at_least = error.retry_after if isinstance(error, ApiError) else None
                delay = backoff.next(at_least)
                log.warning(
                    "reflector_list_failed", path=self._path, error=str(error), retry_in=delay
                )
                await asyncio.sleep(delay)

    # -- listing ---------------------------------------------------------------------------

    async def _list(self) -> None:
        self.stats.lists += 1
        if self.has_synced:
            self.stats.relists += 1
        seen: set[tuple[str, str]] = set()
        with gc_paused():
            revision = await self._list_pages(seen)
        for name in [name for name in self._known if name not in seen]:
            uid, _ = self._known.pop(name)
            self._handler.deleted(ObjectKey(name[0], name[1], uid), None)
        self._resource_version = revision
        if len(seen) >= FREEZE_FROM_ITEMS:
            freeze_survivors()
        self._heard()
        self._handler.synced()
        self._synced.set()

    async def _list_pages(self, seen: set[tuple[str, str]]) -> str:
        token = ""
        paged = True
        while True:
            query = dict(self._selectors)
            if paged:
                query["limit"] = str(self._options.page_size)
            if token:
                query["continue"] = token
            try:
                body = await self._client.get(
                    self._path,
                    query=query,
                    timeout=self._options.list_timeout,
                    # Our own loop waits, longer and without a limit on tries.
                    retry=False,
                )
            except ApiError as error:
                if not (error.is_expired and token):
                    raise
                # The continue token outlived etcd's history. What this pass has seen may be
                # stale, so the whole list is taken anew, in one piece: it cannot expire midway.
                log.info("reflector_list_expired", path=self._path)
                token, paged = "", False
                seen.clear()
                continue
            try:
                page = decode_list(body)
            except msgspec.DecodeError as error:
                raise Unreachable(f"GET {self._path}: not a list: {error}") from error
            for raw in page.items or ():
                obj = self._decode_object(raw)
                if obj is None:
                    self._keep_undecodable(raw, seen)
                    continue
                seen.add((obj.metadata.namespace, obj.metadata.name))
                self._observe(obj)
            token = page.metadata.continue_
            if not token:
                # All pages of a list are of the first one's revision; the last one names it too.
                return page.metadata.resource_version
            await asyncio.sleep(0)

    def _keep_undecodable(self, raw: msgspec.Raw, seen: set[tuple[str, str]]) -> None:
        """An object that exists but cannot be read must not look deleted."""
        try:
            meta = decode_identity(raw).metadata
        except msgspec.DecodeError:
            return
        seen.add((meta.namespace, meta.name))

    # -- watching --------------------------------------------------------------------------

    async def _watch_until_expired(self, backoff: Backoff) -> NoReturn:
        """Watches again and again from where the last watch stopped. Raises `Expired`."""
        refusals = 0
        silences = 0
        while True:
            started = time.monotonic()
            before = self._resource_version
            heard = self.stats.events + self.stats.bookmarks
            at_least: float | None = None
            try:
                await self._watch()
                refusals = 0
                problem = ""
            except ApiError as error:
                if error.is_expired:
                    raise Expired(error.message) from error
                refusals += 1
                at_least = error.retry_after
                # 429 says the server is busy, not that our resourceVersion is bad.
                if refusals >= REFUSALS_BEFORE_RELIST and not error.is_throttled:
                    raise Expired(f"{refusals} refusals in a row: {error.message}") from error
                problem = str(error)
            except WatchFailed as error:
                refusals += 1
                at_least = error.retry_after
                if refusals >= REFUSALS_BEFORE_RELIST:
                    raise Expired(f"{refusals} refusals in a row: {error}") from error
                problem = str(error)
            except BROKEN as error:
                problem = str(error) or type(error).__name__
                if isinstance(error, aiohttp.SocketTimeoutError):
                    silences += 1
            if self.stats.events + self.stats.bookmarks != heard:
                silences = 0
            if silences >= SILENCES_BEFORE_RELIST:
                raise Expired(f"{silences} watches in a row stayed silent")
            moved = self._resource_version != before
            lasted = time.monotonic() - started
            if moved:
                backoff.reset()
                refusals = 0
            if not problem and (moved or lasted >= SHORT_WATCH_SECONDS):
                backoff.reset()
                continue
            if problem:
                self.stats.restarts += 1
            delay = backoff.next(at_least)
            log.info(
                "reflector_watch_restart",
                path=self._path,
                problem=problem or "ended at once",
                lasted=round(lasted, 3),
                retry_in=round(delay, 3),
            )
            await asyncio.sleep(delay)

    async def _watch(self) -> None:
        options = self._options
        self.stats.watches += 1
        events = watch(
            self._client,
            self._path,
            self._selectors,
            self._resource_version,
            timeout=options.watch_timeout,
            read_timeout=options.read_timeout,
            max_line=options.max_line,
            heard=self._heard,
        )
        async with aclosing(events):
            async for event in events:
                self._event(event)

    def _event(self, event: WatchEvent) -> None:
        if event.type == "BOOKMARK":
            self.stats.bookmarks += 1
            self._advance(event.object)
            return
        self.stats.events += 1
        obj = self._decode_object(event.object)
        if obj is None:
            self._event_undecodable(event)
            return
        meta = obj.metadata
        if event.type == "DELETED":
            self._known.pop((meta.namespace, meta.name), None)
            self._handler.deleted(meta.key, obj)
        else:
            self._observe(obj)
        self._resource_version = meta.resource_version or self._resource_version

    def _event_undecodable(self, event: WatchEvent) -> None:
        self._advance(event.object)
        if event.type != "DELETED":
            return
        try:
            meta = decode_identity(event.object).metadata
        except msgspec.DecodeError:
            return  # the next relist finds out
        self._known.pop((meta.namespace, meta.name), None)
        self._handler.deleted(ObjectKey(meta.namespace, meta.name, meta.uid), None)

    def _advance(self, raw: msgspec.Raw) -> None:
        try:
            revision = decode_identity(raw).metadata.resource_version
        except msgspec.DecodeError:
            return
        self._resource_version = revision or self._resource_version

    # -- both ------------------------------------------------------------------------------

    def _observe(self, obj: T) -> None:
        meta = obj.metadata
        name = (meta.namespace, meta.name)
        known = self._known.get(name)
        if known is not None:
            uid, revision = known
            if uid == meta.uid and revision == meta.resource_version:
                return  # a relist of what the handler has already
            if uid != meta.uid:
                del self._known[name]
                self._handler.deleted(ObjectKey(meta.namespace, meta.name, uid), None)
        self._known[name] = (meta.uid, meta.resource_version)
        self._handler.upsert(obj)

    def _decode_object(self, raw: msgspec.Raw) -> T | None:
        try:
            return self._decode(raw)
        except msgspec.DecodeError as error:
            # One strange object must not stop the others. msgspec names the path, not values.
            self.stats.undecodable += 1
            name = "unknown"
            try:
                meta = decode_identity(raw).metadata
                name = f"{meta.namespace}/{meta.name}"
            except msgspec.DecodeError:
                pass
            log.error("object_undecodable", path=self._path, object=name, error=str(error))
            return None

    def _heard(self) -> None:
        self.stats.last_heard = time.monotonic()
