"""An independent watcher: when a Pod became Running, as any client of the API sees it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import msgspec

from vknode.kube.client import KubeClient

NAMESPACE = "default"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"


class _Meta(msgspec.Struct):
    name: str = ""


class _Spec(msgspec.Struct):
    node_name: str = msgspec.field(default="", name="nodeName")


class _Status(msgspec.Struct):
    phase: str = ""


@dataclass
class Sight:
    """One start in Unix nanoseconds: before the create was sent, and first sights."""

    created: int
    bound: int = 0
    running: int = 0

    @property
    def seconds(self) -> float:
        """From create to Running."""
        return (self.running - self.created) / 1e9


class _Pod(msgspec.Struct):
    metadata: _Meta = msgspec.field(default_factory=_Meta)
    spec: _Spec = msgspec.field(default_factory=_Spec)
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
    """Creates Pods and tells when each was first seen bound and Running, by the clock of
    this machine, which the agent and the pool use too."""

    def __init__(self, client: KubeClient) -> None:
        self._client = client
        self._decoder = msgspec.json.Decoder(_Event)
        self._sights: dict[str, Sight] = {}
        self._running: dict[str, asyncio.Future[None]] = {}
        self._gone: dict[str, asyncio.Future[None]] = {}
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
                now = time.time_ns()
                for line in lines:
                    self._seen(self._decoder.decode(line), now)

    def _seen(self, event: _Event, now: int) -> None:
        name = event.object.metadata.name
        sight = self._sights.get(name)
        if sight is None:
            return
        if event.type == "DELETED":
            _resolve(self._gone[name])
            return
        if event.object.spec.node_name:
            sight.bound = sight.bound or now
        if event.object.status.phase == "Running":
            sight.running = sight.running or now
            _resolve(self._running[name])

    async def start(self, name: str) -> Sight:
        """Create a Pod and wait until it is Running. Raises TimeoutError after 120 s."""
        loop = asyncio.get_running_loop()
        self._running[name] = loop.create_future()
        self._gone[name] = loop.create_future()
        sight = self._sights[name] = Sight(time.time_ns())
        await self._client.create(PODS, pod(name))
        await asyncio.wait_for(self._running[name], 120)
        return sight

    async def burst(self, names: list[str]) -> tuple[float, list[float]]:
        """Pods a second until the last one was Running, and each one's own seconds."""
        sights = await asyncio.gather(*map(self.start, names))
        span = max(s.running for s in sights) - min(s.created for s in sights)
        return len(names) / (span / 1e9), [s.seconds for s in sights]

    async def clear(self) -> None:
        """Delete every Pod made so far and wait until all objects are gone."""
        names = list(self._gone)
        for name in names:
            await self._client.delete(f"{PODS}/{name}")
        await asyncio.wait_for(asyncio.gather(*self._gone.values()), 180)
        self._gone.clear()
        self._running.clear()
        self._sights.clear()


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
