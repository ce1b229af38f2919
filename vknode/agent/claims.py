"""What a pool says that it may not say is refused here, and named: in the log, in a metric, in an
event at the Node (`authority.py` has the rule).

The log tells each claim once, the recorder of events joins what is the same; a pool that repeats
itself costs a counter. Nothing of the claim's content is kept or told.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

import structlog

from vknode.agent.authority import Wrong, judge, judge_answer
from vknode.agent.event_correlator import ObjectRef
from vknode.agent.events import WARNING, node_ref
from vknode.agent.metrics import AgentMetrics
from vknode.agent.pod_record import Placement, PodRecord
from vknode.pool.errors import RETRYABLE, PoolFailure
from vknode.pool.v1 import status_pb2

log = structlog.get_logger()

REASON = "PoolClaimRefused"
# Claims that are remembered as told; beyond that the oldest would be told again.
REMEMBERED = 4096


class Events(Protocol):
    def event(self, ref: ObjectRef, node: str, type: str, reason: str, message: str) -> None: ...


class Claims:
    """Of all pools of an agent."""

    def __init__(
        self,
        events: Events | None,
        metrics: AgentMetrics,
        place: Callable[[str], Placement | None],
    ) -> None:
        """`place` tells what is behind a Node's name."""
        self._events = events
        self._metrics = metrics
        self._place = place
        # Whether there is no event to come any more.
        self._told: OrderedDict[tuple[str, Wrong, str], bool] = OrderedDict()

    def believes(self, pool: str, sandbox: status_pb2.Sandbox, record: PodRecord) -> bool:
        """Whether the pool may report this of the Pod's sandbox."""
        wrong = judge(pool, sandbox.cell, record.given)
        if wrong is not None:
            self.sandbox(pool, wrong, record, f"reports it in cell {sandbox.cell}")
        return wrong is None

    def answered(
        self, record: PodRecord, sandbox: status_pb2.Sandbox, call: str
    ) -> PoolFailure | None:
        """None where an answer of the Pod's pool is about its sandbox; else how the call failed."""
        pool = record.link.name
        wrong = judge_answer(record.uid, sandbox.uid, pool, sandbox.cell, record.given)
        if wrong is None:
            return None
        what = f"answers {call} with sandbox {sandbox.uid} in cell {sandbox.cell}"
        self.sandbox(pool, wrong, record, what)
        return PoolFailure(RETRYABLE, f"pool {pool} answered for another sandbox or cell")

    def sandbox(self, pool: str, wrong: Wrong, record: PodRecord, what: str) -> None:
        """Names a pool that speaks of a Pod's sandbox and may not; `what` it does."""
        message = (
            f"sandbox {record.uid} was given to pool {record.link.name}, cell {record.cell}; "
            f"pool {pool} {what}: not believed"
        )
        self.refuse(pool, wrong, record.uid, message, record.node)

    def foreign_cell(self, pool: str, sandbox: status_pb2.Sandbox) -> None:
        """A sandbox that would be ours, in a cell that the pool does not have (any more). Nothing
        comes of it: no Node stands for that cell."""
        message = f"pool {pool} reports a sandbox in cell {sandbox.cell}, which it does not have"
        self.refuse(pool, Wrong.FOREIGN_CELL, sandbox.uid, message)

    def refuse(self, pool: str, wrong: Wrong, about: str, message: str, node: str = "") -> None:
        """`about` is a UID or a cell, `node` the name of the Node that it concerns, if any."""
        self._metrics.claims_refused.labels(pool, wrong.value).inc()
        key = (pool, wrong, about)
        told = self._told.pop(key, None)
        if told is None:
            log.error(
                "pool_claim_refused", pool=pool, why=wrong.value, about=about, problem=message
            )
        # At a start the Node may not be there yet: then a later claim has the event.
        place = self._place(node) if node and not told else None
        self._told[key] = bool(told) or not node or place is not None
        if len(self._told) > REMEMBERED:
            self._told.popitem(last=False)
        if place is not None and self._events is not None:
            ref = node_ref(place.node, place.node_uid)
            self._events.event(ref, place.node, WARNING, REASON, message)
