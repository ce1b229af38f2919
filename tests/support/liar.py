"""A simulated pool that also says what it may not say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

from vknode.pool.endpoint import parse_endpoint
from vknode.pool.host import Host
from vknode.pool.process import PoolSettings, make_host
from vknode.pool.server import PoolServer
from vknode.pool.service import PoolHost
from vknode.pool.v1 import cell_pb2, pool_pb2, spec_pb2, status_pb2


class LyingHost:
    """A pool's host with lies between its words. Everything else is the host's own."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._streams: set[asyncio.Queue[pool_pb2.WatchSandboxesResponse]] = set()
        self._cell_streams: set[asyncio.Queue[cell_pb2.WatchCellsResponse]] = set()
        # UIDs of the specs that it was sent.
        self.given: list[str] = []
        # Announced beside its own cells, from the first word on.
        self.stolen: list[cell_pb2.Cell] = []
        # What its answers to CreateSandbox name in place of the cell that was asked for.
        self.answers_cell = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._host, name)

    # -- lies ------------------------------------------------------------------------------

    def report(self, *sandboxes: status_pb2.Sandbox, **more: Any) -> None:
        for stream in self._streams:
            stream.put_nowait(pool_pb2.WatchSandboxesResponse(sandboxes=sandboxes, **more))

    def steal(self, cell: cell_pb2.Cell) -> None:
        self.stolen.append(cell)
        for stream in self._cell_streams:
            stream.put_nowait(cell_pb2.WatchCellsResponse(cells=[cell]))

    # -- the host --------------------------------------------------------------------------

    async def create(
        self, spec: spec_pb2.SandboxSpec, owner: str
    ) -> tuple[status_pb2.Sandbox, bool]:
        self.given.append(spec.uid)
        sandbox, created = await self._host.create(spec, owner)
        if not self.answers_cell:
            return sandbox, created
        lie = status_pb2.Sandbox()
        lie.CopyFrom(sandbox)
        lie.cell = self.answers_cell
        return lie, created

    async def watch(
        self, epoch: str, revision: int
    ) -> AsyncIterator[pool_pb2.WatchSandboxesResponse]:
        queue: asyncio.Queue[pool_pb2.WatchSandboxesResponse] = asyncio.Queue()
        truth = asyncio.create_task(_pump(self._host.watch(epoch, revision), queue))
        self._streams.add(queue)
        try:
            while True:
                response = await queue.get()
                if response.epoch:
                    epoch, revision = response.epoch, response.revision
                response.epoch, response.revision = epoch, revision
                if self.answers_cell:
                    for sandbox in response.sandboxes:
                        sandbox.cell = self.answers_cell
                yield response
        finally:
            self._streams.discard(queue)
            truth.cancel()

    async def watch_cells(self) -> AsyncIterator[cell_pb2.WatchCellsResponse]:
        queue: asyncio.Queue[cell_pb2.WatchCellsResponse] = asyncio.Queue()
        truth = asyncio.create_task(_pump(self._host.watch_cells(), queue))
        self._cell_streams.add(queue)
        try:
            while True:
                response = await queue.get()
                if response.snapshot:
                    response.cells.extend(self.stolen)
                yield response
        finally:
            self._cell_streams.discard(queue)
            truth.cancel()


async def _pump(source: AsyncIterator[Any], queue: asyncio.Queue[Any]) -> None:
    async for response in source:
        copy = type(response)()
        copy.CopyFrom(response)
        queue.put_nowait(copy)


@asynccontextmanager
async def serving(zone: str, folder: Path) -> AsyncIterator[LyingHost]:
    """A pool of one cell, ZONE-a, on the socket FOLDER/ZONE.sock. It is honest until told."""
    endpoint = parse_endpoint(f"unix:{folder / zone}.sock")
    host = make_host(
        PoolSettings(
            runtime="sim",
            zone=zone,
            region="here",
            cells=1,
            capacity={"cpu": "8", "memory": "16Gi", "pods": "110"},
            endpoint=endpoint,
            state_dir=folder / zone,
        )
    )
    (folder / zone).mkdir(exist_ok=True)
    liar = LyingHost(host)
    server = PoolServer(cast("PoolHost", liar), endpoint)
    await host.start()
    await server.start()
    try:
        yield liar
    finally:
        await server.stop(0)
        await host.close()
