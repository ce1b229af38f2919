"""A host whose every answer the test decides, and endpoints for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path

from vknode.pool.endpoint import parse_endpoint
from vknode.pool.errors import NOT_FOUND, PoolFailure
from vknode.pool.runtimes.base import ContainerRef, RunningSandbox, Runtime
from vknode.pool.runtimes.sim.config import Latency, SimConfig
from vknode.pool.runtimes.sim.runtime import SimRuntime
from vknode.pool.server import PoolServer
from vknode.pool.v1 import cell_pb2, pool_pb2, spec_pb2, stats_pb2, status_pb2


class FakeHost:
    """Answers watches from queues; streams go to a simulated runtime."""

    def __init__(self) -> None:
        self.sim = SimRuntime(
            SimConfig(
                latency={name: Latency(0.0) for name in ("sandbox", "container", "image_pull")}
            )
        )
        self.runtime: Runtime = self.sim
        self.asked: list[tuple[str, int]] = []
        self.responses: asyncio.Queue[pool_pb2.WatchSandboxesResponse] = asyncio.Queue()
        self.cells: asyncio.Queue[cell_pb2.WatchCellsResponse] = asyncio.Queue()
        self.failure: Exception | None = None
        self.refs: dict[tuple[str, str], ContainerRef] = {}
        self.sandboxes: dict[str, RunningSandbox] = {}
        self.ended = asyncio.Event()
        self.open_watches = 0
        self.set_health(cell_pb2.HEALTH_HEALTHY)

    def set_health(self, health: cell_pb2.Health.ValueType) -> None:
        self.health = health

    async def create(
        self, spec: spec_pb2.SandboxSpec, owner: str
    ) -> tuple[status_pb2.Sandbox, bool]:
        if self.failure is not None:
            raise self.failure
        return status_pb2.Sandbox(uid=spec.uid, owner=owner), True

    async def update(self, spec: spec_pb2.SandboxSpec) -> tuple[status_pb2.Sandbox, list[str]]:
        raise PoolFailure(NOT_FOUND, "no such sandbox")

    async def delete(self, uid: str, grace: float | None, reason: str) -> bool:
        return False

    def last_of(self, uid: str) -> status_pb2.Sandbox | None:
        return None

    async def watch(
        self, epoch: str, revision: int
    ) -> AsyncGenerator[pool_pb2.WatchSandboxesResponse, None]:
        self.asked.append((epoch, revision))
        self.open_watches += 1
        try:
            while True:
                yield await self.responses.get()
        finally:
            self.open_watches -= 1

    def probe_stats(self, uids: Collection[str], cell: str) -> list[stats_pb2.SandboxStats]:
        return []

    async def watch_cells(self) -> AsyncGenerator[cell_pb2.WatchCellsResponse, None]:
        yield cell_pb2.WatchCellsResponse(
            snapshot=True, cells=[cell_pb2.Cell(name="z-a", zone="z", health=self.health)]
        )
        while True:
            yield await self.cells.get()

    def instance(
        self, uid: str, container: str, previous: bool = False
    ) -> tuple[ContainerRef, asyncio.Event]:
        try:
            return self.refs[uid, container], self.ended
        except KeyError:
            raise PoolFailure(NOT_FOUND, f"no container {container!r}") from None

    def running_sandbox(self, uid: str) -> RunningSandbox:
        try:
            return self.sandboxes[uid]
        except KeyError:
            raise PoolFailure(NOT_FOUND, "no such sandbox") from None

    async def run(self, command: list[str]) -> None:
        """Run container "main" of sandbox "uid-1" in the simulation."""
        await self.sim.connect()
        spec = spec_pb2.SandboxSpec(uid="uid-1", namespace="default", name="pod")
        container = spec.containers.add(name="main", image="busybox", command=command)
        container.ports.add(container_port=80)
        image = await self.sim.ensure_image("busybox", spec_pb2.IMAGE_PULL_POLICY_ALWAYS, [])
        sandbox = await self.sim.run_sandbox(spec, 0)
        started = await self.sim.start_container(spec, container, sandbox, image, 0)
        self.refs["uid-1", "main"] = started.ref
        self.sandboxes["uid-1"] = sandbox


@asynccontextmanager
async def served(host: FakeHost, path: Path) -> AsyncIterator[str]:
    """The host behind a real server on a Unix socket."""
    server = PoolServer(host, parse_endpoint(f"unix:{path}"))
    endpoint = await server.start()
    try:
        yield endpoint
    finally:
        await server.stop(0)
        await host.sim.close()


def small_spec() -> spec_pb2.SandboxSpec:
    """One container of one Pod."""
    spec = spec_pb2.SandboxSpec(
        uid="uid-1",
        namespace="default",
        name="pod",
        cell="z-a",
        tenant="default",
        restart_policy=spec_pb2.RESTART_POLICY_ALWAYS,
    )
    spec.containers.add(
        name="main", image="busybox", image_pull_policy=spec_pb2.IMAGE_PULL_POLICY_ALWAYS
    )
    return spec


def sandbox(uid: str) -> status_pb2.Sandbox:
    return status_pb2.Sandbox(uid=uid)


def changes(revision: int, *uids: str, epoch: str = "e1") -> pool_pb2.WatchSandboxesResponse:
    return pool_pb2.WatchSandboxesResponse(
        epoch=epoch, revision=revision, sandboxes=[sandbox(uid) for uid in uids]
    )


def snapshot(
    revision: int, *uids: str, epoch: str = "e1", end: bool = True
) -> pool_pb2.WatchSandboxesResponse:
    response = changes(revision, *uids, epoch=epoch)
    response.snapshot = True
    response.snapshot_end = end
    return response
