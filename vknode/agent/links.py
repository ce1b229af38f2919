"""One connection to one pool, and the view of it that everything else shares.

Theory of operation. A `Link` owns the pool's client and its two watches. The cells go to the
node side (`pool_link.PoolLink` is what it asks for), the sandboxes to the Pod side
(`SandboxHandler`). The view outlives a lost connection: it stays what the pool said last, and
the next snapshot, or the changes replayed, brings it up to date. `view_current` turns True with
the first whole snapshot: from then on a sandbox that is not in the view does not exist in the
pool, unless this process creates it.

Of cells without a Node only so many are kept (`cell_view`). Which cells have one is known once
the agent's Nodes are listed. A list of cells that is too long, and came earlier, is kept whole
until then, and the stream waits: one message is bounded, the stream is not.

Callbacks are synchronous and come in the pool's order; what they cost, the pool's stream waits
for, so nothing is queued here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from collections.abc import Set as AbstractSet
from typing import Protocol

from vknode.agent.cell_view import CellView
from vknode.pool.client import CellsUpdate, Deletion, SandboxesUpdate, WatchState
from vknode.pool.v1 import cell_pb2, spec_pb2, status_pb2


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
        most_without_node: int | None = None,
    ) -> None:
        """`make_client(on_connected, on_disconnected)`; its exceptions pass through.
        `most_without_node`: how many cells are kept in memory beside those that have Nodes;
        None: all. With it somebody must call `keep_cells_of_nodes`."""
        self.name = name
        self.cells: Mapping[str, cell_pb2.Cell] = {}
        self._view = CellView(most_without_node)
        self._with_node: Callable[[], AbstractSet[str]] = frozenset
        self._nodes_known = asyncio.Event()
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

    @property
    def cells_left_out(self) -> int:
        return self._view.left_out

    def may_have(self, cell: str) -> bool:
        return self._view.may_have(cell)

    def keep_cells_of_nodes(self, cells: Callable[[], AbstractSet[str]]) -> None:
        self._with_node = cells
        self._nodes_known.set()

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
            self._view.take(update)
            if self._view.excess and not self._nodes_known.is_set():
                self._cells_taken()
                await self._nodes_known.wait()
            if self._view.excess:
                self._view.trim(self._with_node())
            self._cells_taken()

    def _cells_taken(self) -> None:
        self.cells = self._view.cells
        self._cells_known = True
        if self.client.connected:
            self.problem = ""
        self._notify()

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
