"""One connection to one pool, and the view of it that everything else shares.

Theory of operation. A `Link` owns the pool's client and its two watches. The cells go to the
node side (`pool_link.PoolLink` is what it asks for), the sandboxes to the Pod side
(`SandboxHandler`). The view outlives a lost connection: it stays what the pool said last, and
the next snapshot, or the changes replayed, brings it up to date. `view_current` turns True with
the first whole snapshot: from then on a sandbox that is not in the view does not exist in the
pool, unless this process creates it.

Callbacks are synchronous and come in the pool's order; what they cost, the pool's stream waits
for, so nothing is queued here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Protocol

import structlog

from vknode.pool.client import CellsUpdate, Deletion, SandboxesUpdate, WatchState
from vknode.pool.v1 import cell_pb2, spec_pb2, status_pb2

log = structlog.get_logger()


class Calls(Protocol):
    """The part of `PoolClient` that a link uses."""

    @property
    def connected(self) -> bool: ...

    @property
    def watch_states(self) -> Mapping[str, WatchState]: ...

    def cells(self) -> AsyncIterator[CellsUpdate]: ...

    def sandboxes(self) -> AsyncIterator[SandboxesUpdate]: ...

    async def create(
        self, spec: spec_pb2.SandboxSpec, owner: str
    ) -> tuple[status_pb2.Sandbox, bool]: ...

    async def update(self, spec: spec_pb2.SandboxSpec) -> tuple[status_pb2.Sandbox, list[str]]: ...

    async def delete(self, uid: str, grace: float | None = None, reason: str = "") -> Deletion: ...

    async def close(self) -> None: ...


class SandboxHandler(Protocol):
    """Who is told of sandboxes. Synchronous; an exception ends the agent."""

    def sandbox_changed(self, link: Link, sandbox: status_pb2.Sandbox) -> bool:
        """New, changed, or named by a snapshot. False: it is not the pool's to say, and the view
        stays as it was."""

    def sandbox_gone(self, link: Link, uid: str, last: status_pb2.Sandbox | None) -> None:
        """Ended and removed. `last` is the last thing the pool knew of it; None when only a
        snapshot no longer names it."""

    def sandbox_event(self, link: Link, event: status_pb2.SandboxEvent) -> None: ...

    def snapshot_taken(self, link: Link) -> None:
        """After all calls that a whole snapshot led to."""


class Link:
    """Make it with the client's factory, so that the client's callbacks end here."""

    def __init__(
        self,
        name: str,
        make_client: Callable[[Callable[[], None], Callable[[str], None]], Calls],
        *,
        most_cells: int | None = None,
    ) -> None:
        """`make_client(on_connected, on_disconnected)`; its exceptions pass through. `most_cells`
        are kept in memory: those that a pool announces beyond are left out of its list, until it
        sends the list anew."""
        self.name = name
        self._most_cells = most_cells
        self._left_out = False
        self.cells: Mapping[str, cell_pb2.Cell] = {}
        self.sandboxes: dict[str, status_pb2.Sandbox] = {}
        self.view_current = False
        self.problem = "not connected yet"
        self._cells_known = False
        self._handler: SandboxHandler | None = None
        self._listeners: list[Callable[[], None]] = []
        self.client = make_client(self._connected, self._disconnected)

    @property
    def reachable(self) -> bool:
        return self._cells_known and self.client.connected

    def on_cells_changed(self, callback: Callable[[], None]) -> None:
        self._listeners.append(callback)

    def serve(self, handler: SandboxHandler) -> None:
        """Who is told of sandboxes; before `run`."""
        self._handler = handler

    async def run(self) -> None:
        """Watches until cancelled (or the client is closed)."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_cells(), name=f"cells-{self.name}")
            group.create_task(self._watch_sandboxes(), name=f"sandboxes-{self.name}")

    async def close(self) -> None:
        await self.client.close()

    def adopt(self, sandbox: status_pb2.Sandbox) -> status_pb2.Sandbox:
        """Takes the answer to CreateSandbox into the view; returns what is newest (the stream
        may have been faster)."""
        return self.sandboxes.setdefault(sandbox.uid, sandbox)

    # -- inside ----------------------------------------------------------------------------

    async def _watch_cells(self) -> None:
        async for update in self.client.cells():
            cells = {} if update.snapshot else dict(self.cells)
            removed = set(update.removed)
            for name in removed:
                cells.pop(name, None)
            more = [cell for cell in update.cells if cell.name not in removed]
            self.cells = self._kept(cells, more, update.snapshot)
            self._cells_known = True
            if self.client.connected:
                self.problem = ""
            self._notify()

    def _kept(
        self, cells: dict[str, cell_pb2.Cell], more: Iterable[cell_pb2.Cell], anew: bool
    ) -> dict[str, cell_pb2.Cell]:
        left_out = 0
        for cell in more:
            if self._most_cells is None or cell.name in cells or len(cells) < self._most_cells:
                cells[cell.name] = cell
            else:
                left_out += 1
        if left_out and not self._left_out:
            log.error("pool_cells_left_out", pool=self.name, kept=len(cells), left_out=left_out)
        self._left_out = bool(left_out) or (self._left_out and not anew)
        return cells

    async def _watch_sandboxes(self) -> None:
        handler = self._handler
        if handler is None:
            raise RuntimeError(f"link {self.name}: run without a handler")
        async for update in self.client.sandboxes():
            before = set(self.sandboxes) if update.snapshot else None
            for sandbox in update.sandboxes:
                there = self.sandboxes.get(sandbox.uid)
                self.sandboxes[sandbox.uid] = sandbox
                if handler.sandbox_changed(self, sandbox):
                    continue
                if there is None:
                    del self.sandboxes[sandbox.uid]
                else:
                    self.sandboxes[sandbox.uid] = there
            for sandbox in update.gone:
                self.sandboxes.pop(sandbox.uid, None)
                handler.sandbox_gone(self, sandbox.uid, sandbox)
            for event in update.events:
                handler.sandbox_event(self, event)
            if before is not None:
                for uid in before.difference(sandbox.uid for sandbox in update.sandboxes):
                    if self.sandboxes.pop(uid, None) is not None:
                        handler.sandbox_gone(self, uid, None)
                self.view_current = True
                handler.snapshot_taken(self)

    def _connected(self) -> None:
        self.problem = ""
        self._notify()

    def _disconnected(self, reason: str) -> None:
        self.problem = reason
        self._notify()

    def _notify(self) -> None:
        for listener in self._listeners:
            listener()
