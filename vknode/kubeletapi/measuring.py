"""Asking pools how much is used, once for all who want to know at the same time.

Nothing is asked unless a request wants it. Requests that come while a question is on its way get
its answer; later ones get the last answer as long as it is `FRESH` (each measurement carries its
own time). A reader that has gone does not take the answer away from the others.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from vknode.kubeletapi.usage import NodeBackend
from vknode.kubeletapi.usage_history import Report, UsageHistory

# Seconds; well below every scrape interval in use.
FRESH = 1.0


@dataclass
class _Node:
    history: UsageHistory = field(default_factory=UsageHistory)
    asking: asyncio.Task[Report] | None = None
    report: Report | None = None
    until: float = 0.0


class Measuring:
    """All nodes' measurements."""

    def __init__(self, backend: NodeBackend, clock: Callable[[], float] = time.monotonic) -> None:
        self._backend = backend
        self._clock = clock
        self._nodes: dict[str, _Node] = {}

    async def report(self, name: str) -> Report:
        """Raises `BackendError`."""
        node = self._nodes.setdefault(name, _Node())
        if node.report is not None and self._clock() < node.until:
            return node.report
        if node.asking is None:
            node.asking = asyncio.create_task(self._ask(name, node), name=f"usage-{name}")
            # Nobody may be left to see how it ended.
            node.asking.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(node.asking)

    def forget(self, name: str) -> None:
        """The node has gone. Who asks about it just now still gets an answer."""
        self._nodes.pop(name, None)

    def close(self) -> None:
        """Nobody waits any more."""
        for node in self._nodes.values():
            if node.asking is not None:
                node.asking.cancel()
        self._nodes.clear()

    async def _ask(self, name: str, node: _Node) -> Report:
        try:
            node.report = node.history.take(await self._backend.measure(name))
            node.until = self._clock() + FRESH
            return node.report
        finally:
            node.asking = None
