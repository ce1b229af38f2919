"""What happened to the Pods of all scenarios: every version that the API server told, and when.

Two watches serve all scenarios, so that nobody polls and nothing short-lived is missed.
Times are seconds of the monotonic clock at which the version arrived here.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import aiohttp

from tests.scenarios.api import Api, ApiRefused


@dataclass(frozen=True)
class Version:
    """One version of one object. `gone`: the last one, as it was deleted."""

    number: int
    at: float
    thing: Mapping[str, Any]
    gone: bool = False

    @property
    def uid(self) -> str:
        return str(self.thing["metadata"]["uid"])


class Namespace:
    """The history of one scenario's namespace; `changed` tells whoever waits."""

    def __init__(self) -> None:
        self.pods: dict[str, list[Version]] = defaultdict(list)
        self.events: dict[str, list[Version]] = defaultdict(list)  # by the event's name
        self.changed = asyncio.Condition()
        self.count = 0

    def add(self, kept: dict[str, list[Version]], thing: Mapping[str, Any], gone: bool) -> None:
        self.count += 1
        name = thing["metadata"]["name"]
        kept[name].append(Version(self.count, time.monotonic(), thing, gone))

    def latest_events(self) -> Iterator[Version]:
        for versions in self.events.values():
            yield versions[-1]


class History:
    """Watches Pods and Events of the whole cluster for the namespaces in `of`."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self.of: dict[str, Namespace] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> History:
        for resource in ("pods", "events"):
            version = await self._list(resource)
            self._tasks.append(asyncio.create_task(self._watch(resource, version)))
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError):
                await task

    def open(self, namespace: str) -> Namespace:
        """Keep what happens in a namespace from now on."""
        return self.of.setdefault(namespace, Namespace())

    async def _watch(self, resource: str, version: str) -> None:
        while True:
            path = (
                f"api/v1/{resource}?watch=true&resourceVersion={version}"
                "&allowWatchBookmarks=true&timeoutSeconds=600"
            )
            try:
                async for line in self._api.lines(path):
                    event = json.loads(line)
                    if event["type"] == "ERROR":  # the version is too old by now
                        version = await self._list(resource)
                        break
                    version = event["object"]["metadata"]["resourceVersion"]
                    if event["type"] != "BOOKMARK":
                        await self._take(resource, event["object"], event["type"] == "DELETED")
            except (aiohttp.ClientError, ApiRefused, TimeoutError):
                await asyncio.sleep(0.2)  # the API server is away for a moment

    async def _list(self, resource: str) -> str:
        """Take all objects as they are now; returns the version to watch from."""
        listed = await self._api.call("GET", f"api/v1/{resource}")
        for thing in listed["items"]:
            await self._take(resource, thing, False)
        return str(listed["metadata"]["resourceVersion"])

    async def _take(self, resource: str, thing: Mapping[str, Any], gone: bool) -> None:
        namespace = self.of.get(thing["metadata"].get("namespace", ""))
        if namespace is None:
            return
        kept = namespace.pods if resource == "pods" else namespace.events
        namespace.add(kept, thing, gone)
        async with namespace.changed:
            namespace.changed.notify_all()
