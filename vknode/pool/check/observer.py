"""Follows a pool's watch and lets checks wait for states, without polling."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from vknode.pool.client import PoolClient
from vknode.pool.v1 import status_pb2


class Observer:
    """`latest` is every sandbox there is, `gone` the last word on those that ended."""

    def __init__(self, client: PoolClient) -> None:
        self._client = client
        self._changed = asyncio.Condition()
        self.latest: dict[str, status_pb2.Sandbox] = {}
        self.gone: dict[str, status_pb2.Sandbox] = {}
        self.gone_count: dict[str, int] = {}
        self.events: list[status_pb2.SandboxEvent] = []
        self.states: dict[str, list[status_pb2.SandboxState.ValueType]] = {}
        self.epoch = ""
        self.revision = 0
        self.faults: list[str] = []

    async def run(self) -> None:
        """Until cancelled."""
        async for update in self._client.sandboxes():
            async with self._changed:
                if update.snapshot:
                    self.latest.clear()
                elif update.epoch == self.epoch and update.revision < self.revision:
                    self.faults.append(f"revision fell from {self.revision} to {update.revision}")
                self.epoch, self.revision = update.epoch, update.revision
                for sandbox in update.sandboxes:
                    self.latest[sandbox.uid] = sandbox
                    seen = self.states.setdefault(sandbox.uid, [])
                    if seen and sandbox.state < seen[-1]:
                        self.faults.append(
                            f"{sandbox.uid} went from state {seen[-1]} back to {sandbox.state}"
                        )
                    seen.append(sandbox.state)
                for sandbox in update.gone:
                    self.latest.pop(sandbox.uid, None)
                    self.gone[sandbox.uid] = sandbox
                    self.gone_count[sandbox.uid] = self.gone_count.get(sandbox.uid, 0) + 1
                self.events.extend(update.events)
                self._changed.notify_all()

    async def wait(
        self, uid: str, condition: Callable[[status_pb2.Sandbox], object], timeout: float
    ) -> status_pb2.Sandbox:
        """Raises TimeoutError."""

        def fits() -> bool:
            sandbox = self.latest.get(uid)
            return sandbox is not None and bool(condition(sandbox))

        async with asyncio.timeout(timeout), self._changed:
            await self._changed.wait_for(fits)
            return self.latest[uid]

    async def wait_gone(self, uid: str, timeout: float) -> status_pb2.Sandbox:
        """Raises TimeoutError."""
        async with asyncio.timeout(timeout), self._changed:
            await self._changed.wait_for(lambda: uid in self.gone)
            return self.gone[uid]

    async def wait_event(self, uid: str, reason: str, timeout: float) -> status_pb2.SandboxEvent:
        """Raises TimeoutError."""

        def found() -> status_pb2.SandboxEvent | None:
            for event in self.events:
                if (event.uid, event.reason) == (uid, reason):
                    return event
            return None

        async with asyncio.timeout(timeout), self._changed:
            await self._changed.wait_for(lambda: found() is not None)
            event = found()
            assert event is not None
            return event
