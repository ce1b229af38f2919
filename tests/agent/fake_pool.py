"""A pool in this process, at the seam of `PoolClient`: keeps sandboxes, tells of changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from vknode.agent.links import Link
from vknode.pool.client import CellsUpdate, Deletion, SandboxesUpdate, WatchState
from vknode.pool.engine.newer import newer
from vknode.pool.errors import RETRYABLE, PoolFailure
from vknode.pool.v1 import cell_pb2, spec_pb2, status_pb2


class FakePool:
    """The truth; outlives its clients, as a pool outlives an agent."""

    def __init__(self, cells: list[str], zone: str = "az1") -> None:
        self.cells = [
            cell_pb2.Cell(
                name=cell,
                zone=zone,
                capacity={"cpu": "8", "memory": "16Gi", "pods": "110"},
                health=cell_pb2.HEALTH_HEALTHY,
                info=cell_pb2.NodeInfo(operating_system="linux", architecture="amd64"),
            )
            for cell in cells
        ]
        self.sandboxes: dict[str, status_pb2.Sandbox] = {}
        self.ended: dict[str, status_pb2.Sandbox] = {}
        self.specs: dict[str, spec_pb2.SandboxSpec] = {}
        self.creates: list[str] = []
        self.updates: list[spec_pb2.SandboxSpec] = []
        self.deletes: list[tuple[str, float | None]] = []
        self.create_failures: list[PoolFailure] = []
        self.update_failures: list[PoolFailure] = []
        # Paths that it cannot change, besides those that no pool changes.
        self.also_kept: list[str] = []
        # What of updates was not taken so far.
        self.kept: set[str] = set()
        self.away = False
        # Seconds from "deleting" to "gone"; None: when told (`end`).
        self.ends_by_itself = True
        # Starts at once; else when told (`start`).
        self.starts_by_itself = True
        self._clients: list[FakeClient] = []

    def link(self, name: str) -> Link:
        def make(up: Callable[[], None], down: Callable[[str], None]) -> FakeClient:
            client = FakeClient(self, up)
            self._clients.append(client)
            return client

        return Link(name, make)

    def tell(self, sandbox: status_pb2.Sandbox) -> None:
        copy = status_pb2.Sandbox()
        copy.CopyFrom(sandbox)
        self._send(SandboxesUpdate(False, [copy]))

    def start(self, uid: str) -> None:
        sandbox = self.sandboxes[uid]
        sandbox.state = status_pb2.SANDBOX_STATE_RUNNING
        sandbox.network_ready = sandbox.initialized = True
        sandbox.pod_ips[:] = ["10.9.0.7"]
        now = sandbox.created_at
        for phase in ("asked", "images_ready", "sandbox_ready", "containers_started"):
            getattr(sandbox.phases, phase).CopyFrom(now)
        for status in sandbox.containers:
            status.container_id = f"fake://{uid}-{status.name}"
            status.state.running.started_at.CopyFrom(now)
            status.ready = status.started = True
        self.tell(sandbox)

    def waits(self, uid: str, reason: str) -> None:
        """Its first container cannot start yet."""
        sandbox = self.sandboxes[uid]
        sandbox.containers[0].state.waiting.reason = reason
        self.tell(sandbox)

    def crash(self, uid: str) -> None:
        """Its first container has ended again and waits for its next start."""
        sandbox = self.sandboxes[uid]
        status = sandbox.containers[0]
        status.restart_count += 1
        status.state.Clear()
        status.state.waiting.reason = "CrashLoopBackOff"
        self.tell(sandbox)

    def end(self, uid: str) -> None:
        """A deletion is carried out."""
        sandbox = self.sandboxes.pop(uid)
        for status in sandbox.containers:
            if status.container_id:
                status.state.terminated.exit_code = 0
                status.state.terminated.reason = "Completed"
                status.state.terminated.container_id = status.container_id
                status.ready = False
        sandbox.state = status_pb2.SANDBOX_STATE_SUCCEEDED
        self.ended[uid] = sandbox
        self._send(SandboxesUpdate(False, [], [sandbox]))

    def lose(self, uid: str) -> None:
        """It is gone, and the pool knows nothing of its end."""
        del self.sandboxes[uid]
        self.tell_all()

    def tell_all(self) -> None:
        """A snapshot, as after a restart of the pool."""
        self._send(SandboxesUpdate(True, list(self.sandboxes.values())))

    def _send(self, update: SandboxesUpdate) -> None:
        for client in self._clients:
            client.updates.put_nowait(update)


class FakeClient:
    def __init__(self, pool: FakePool, up: Callable[[], None]) -> None:
        self._pool = pool
        self._up = up
        self.updates: asyncio.Queue[SandboxesUpdate] = asyncio.Queue()
        self.connected = False
        self.watch_states = {"cells": WatchState(), "sandboxes": WatchState()}

    async def cells(self) -> AsyncIterator[CellsUpdate]:
        while self._pool.away:
            await asyncio.sleep(0.01)
        self.connected = True
        yield CellsUpdate(True, list(self._pool.cells), [])
        self._up()
        await asyncio.Event().wait()

    async def sandboxes(self) -> AsyncIterator[SandboxesUpdate]:
        while self._pool.away:
            await asyncio.sleep(0.01)
        yield SandboxesUpdate(True, list(self._pool.sandboxes.values()))
        while True:
            yield await self.updates.get()

    def _check(self) -> None:
        if self._pool.away:
            raise PoolFailure(RETRYABLE, "the pool is away")

    async def create(
        self, spec: spec_pb2.SandboxSpec, owner: str
    ) -> tuple[status_pb2.Sandbox, bool]:
        self._check()
        pool = self._pool
        if pool.create_failures:
            raise pool.create_failures.pop(0)
        there = pool.sandboxes.get(spec.uid)
        if there is not None:
            return there, False
        pool.creates.append(spec.uid)
        sandbox = status_pb2.Sandbox(
            uid=spec.uid,
            namespace=spec.namespace,
            name=spec.name,
            cell=spec.cell,
            tenant=spec.tenant,
            owner=owner,
            state=status_pb2.SANDBOX_STATE_CREATING,
            observed_generation=spec.generation,
        )
        sandbox.created_at.GetCurrentTime()
        for container in spec.containers:
            status = sandbox.containers.add(name=container.name, image=container.image)
            status.state.waiting.reason = (
                "CreateContainerConfigError" if container.config_error else "ContainerCreating"
            )
            status.state.waiting.message = container.config_error
        pool.sandboxes[spec.uid] = sandbox
        pool.specs[spec.uid] = spec
        copy = status_pb2.Sandbox()
        copy.CopyFrom(sandbox)
        if any(container.config_error for container in spec.containers):
            # The stream may be faster than the answer.
            pool.tell(sandbox)
            await asyncio.sleep(0.02)
        elif pool.starts_by_itself:
            asyncio.get_running_loop().call_later(0.02, pool.start, spec.uid)
        return copy, True

    async def update(self, spec: spec_pb2.SandboxSpec) -> tuple[status_pb2.Sandbox, list[str]]:
        self._check()
        pool = self._pool
        if pool.update_failures:
            raise pool.update_failures.pop(0)
        pool.updates.append(spec)
        spec, kept = newer(pool.specs[spec.uid], spec)
        pool.specs[spec.uid] = spec
        pool.kept.update(kept)
        sandbox = pool.sandboxes[spec.uid]
        sandbox.observed_generation = spec.generation
        held = any(container.config_error for container in spec.containers)
        if pool.starts_by_itself and not held:
            pool.start(spec.uid)
        return sandbox, [*kept, *pool.also_kept]

    async def delete(self, uid: str, grace: float | None = None, reason: str = "") -> Deletion:
        self._check()
        pool = self._pool
        pool.deletes.append((uid, grace))
        sandbox = pool.sandboxes.get(uid)
        if sandbox is None:
            return Deletion(False, pool.ended.get(uid))
        if not sandbox.deleting:
            sandbox.deleting = True
            pool.tell(sandbox)
            if pool.ends_by_itself:
                asyncio.get_running_loop().call_later(0.02, pool.end, uid)
        return Deletion(True)

    async def close(self) -> None:
        self.connected = False
        if self in self._pool._clients:
            self._pool._clients.remove(self)
