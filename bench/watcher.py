"""An independent watcher: when a Pod became Running, as any client of the API sees it."""

from __future__ import annotations

import asyncio
import time

import msgspec

from vknode.kube.client import KubeClient

NAMESPACE = "default"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"


class _Meta(msgspec.Struct):
    name: str = ""


class _Status(msgspec.Struct):
    phase: str = ""


class _Pod(msgspec.Struct):
    metadata: _Meta = msgspec.field(default_factory=_Meta)
    status: _Status = msgspec.field(default_factory=_Status)


class _Event(msgspec.Struct):
    type: str
    object: _Pod


def pod(name: str) -> bytes:
    """The Pod that is measured: one busybox container, with the service account's token
    volume that every Pod gets."""
    return msgspec.json.encode(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": {"app": "bench"}},
            "spec": {
                "terminationGracePeriodSeconds": 0,
                "containers": [
                    {"name": "main", "image": "busybox:1.36", "command": ["sleep", "3600"]}
                ],
            },
        }
    )


class Watcher:
    """Creates Pods and tells when each was first seen Running. Times are perf_counter
    seconds; creation counts from before the request is sent."""

    def __init__(self, client: KubeClient) -> None:
        self._client = client
        self._decoder = msgspec.json.Decoder(_Event)
        self._running: dict[str, asyncio.Future[float]] = {}
        self._gone: dict[str, asyncio.Future[float]] = {}
        self._task: asyncio.Task[None] | None = None
        self._open = asyncio.Event()

    async def __aenter__(self) -> Watcher:
        self._task = asyncio.create_task(self._watch())
        await self._open.wait()
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self) -> None:
        query = {"watch": "1", "timeoutSeconds": "3600"}
        async with self._client.stream(PODS, query=query) as body:
            self._open.set()
            rest = b""
            async for piece in body.iter_any():
                *lines, rest = (rest + piece).split(b"\n")
                now = time.perf_counter()
                for line in lines:
                    self._seen(self._decoder.decode(line), now)

    def _seen(self, event: _Event, now: float) -> None:
        name = event.object.metadata.name
        if event.type == "DELETED":
            _resolve(self._gone.get(name), now)
        elif event.object.status.phase == "Running":
            _resolve(self._running.get(name), now)

    async def start(self, name: str) -> float:
        """Seconds from create to Running. Raises TimeoutError after 120 s."""
        loop = asyncio.get_running_loop()
        seen: asyncio.Future[float] = loop.create_future()
        self._running[name] = seen
        self._gone[name] = loop.create_future()
        started = time.perf_counter()
        await self._client.create(PODS, pod(name))
        return await asyncio.wait_for(seen, 120) - started

    async def burst(self, names: list[str]) -> tuple[float, list[float]]:
        """Pods a second until the last one was Running, and each one's own seconds."""
        started = time.perf_counter()
        times = await asyncio.gather(*map(self.start, names))
        return len(names) / (time.perf_counter() - started), list(times)

    async def clear(self) -> None:
        """Delete every Pod made so far and wait until all objects are gone."""
        names = list(self._gone)
        for name in names:
            await self._client.delete(f"{PODS}/{name}")
        await asyncio.wait_for(asyncio.gather(*self._gone.values()), 180)
        self._gone.clear()
        self._running.clear()


def _resolve(future: asyncio.Future[float] | None, now: float) -> None:
    if future is not None and not future.done():
        future.set_result(now)
