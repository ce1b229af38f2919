"""One watch request as a stream of events: what the reflector and `ObjectWatch` have in common.

Protocol facts, from client-go's reflector and the API concepts page of Kubernetes:

* An ERROR event carries a metav1.Status. 410 means the resourceVersion left the watch cache.
* BOOKMARK carries only metadata.resourceVersion; it comes about once a minute, so silence of
  `read_timeout` means a dead peer.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import NoReturn

import aiohttp
import msgspec

from vknode.kube.client import KubeClient
from vknode.kube.errors import Unreachable
from vknode.kube.lines import LineSplitter, LineTooLong
from vknode.kube.models import WatchEvent, decode_event, decode_status

# What reading a watch may raise besides ApiError, Expired and WatchFailed: it broke off.
BROKEN = (Unreachable, aiohttp.ClientError, OSError, LineTooLong)


class Expired(Exception):
    """The resourceVersion is too old (or unusable): look anew."""


class WatchFailed(Exception):
    """The watch ended with an ERROR event; resume after a delay."""

    def __init__(self, message: str, retry_after: float | None) -> None:
        self.retry_after = retry_after
        super().__init__(message)


async def watch(
    client: KubeClient,
    path: str,
    selectors: Mapping[str, str],
    resource_version: str,
    *,
    timeout: tuple[float, float],
    read_timeout: float,
    max_line: int,
    heard: Callable[[], None] = lambda: None,
    impersonate: str | None = None,
) -> AsyncGenerator[WatchEvent, None]:
    """Events, bookmarks among them, until the server ends the watch after `timeout` seconds
    (chosen at random in the range). Close the generator if it is left earlier.

    Raises ApiError, Expired, WatchFailed and what `BROKEN` lists. `heard` is called whenever
    something came.
    """
    lasts = random.uniform(*timeout)
    query = {
        **selectors,
        "watch": "1",
        "allowWatchBookmarks": "true",
        "timeoutSeconds": str(max(1, int(lasts))),
    }
    if resource_version:
        query["resourceVersion"] = resource_version
    splitter = LineSplitter(max_line)
    async with client.stream(
        path,
        query=query,
        impersonate=impersonate,
        total=lasts + 30.0,
        sock_read=read_timeout,
    ) as content:
        heard()
        async for chunk in content.iter_any():
            for line in splitter.feed(chunk):
                yield _event(path, line)
            heard()
            # iter_any does not yield to the loop while data is buffered.
            await asyncio.sleep(0)
    if splitter.pending:
        raise Unreachable(f"watch of {path} was cut off within a line")


def _event(path: str, line: bytes) -> WatchEvent:
    try:
        event = decode_event(line)
    except msgspec.DecodeError as error:
        # Not a watch line: nothing behind it can be trusted to be in order.
        raise Unreachable(f"watch of {path}: not an event: {error}") from error
    if event.type == "ERROR":
        _raise_error(event.object)
    return event


def _raise_error(raw: msgspec.Raw) -> NoReturn:
    try:
        status = decode_status(raw)
    except msgspec.DecodeError:
        raise WatchFailed("ERROR event without a status", None) from None
    if status.code == 410 or status.reason in ("Expired", "Gone"):
        raise Expired(status.message or "resourceVersion expired")
    seconds = status.details.retry_after_seconds if status.details else 0
    raise WatchFailed(
        f"ERROR event {status.code} {status.reason}: {status.message}", float(seconds) or None
    )
