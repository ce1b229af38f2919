"""How many Nodes are ready, why others are not, and what was done. Pure; for metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vknode.agent.node_objects import REASON_CELL_GONE, REASON_POOL_UNREACHABLE, ObservedNode
from vknode.agent.node_plan import PlannedNode

_NOT_READY = {REASON_POOL_UNREACHABLE: "pool_unreachable", REASON_CELL_GONE: "cell_gone"}
READINESS = ("ready", *_NOT_READY.values(), "cell_unhealthy", "unknown", "unregistered")


@dataclass
class NodeStats:
    """Counters since start; `refused` and `braked` are what is so now."""

    created: int = 0
    recreated: int = 0
    status_patches: int = 0
    metadata_patches: int = 0
    deleted: int = 0
    failures: int = 0
    refused: int = 0
    braked: int = 0


def readiness(observed: ObservedNode | None) -> str:
    """One of `READINESS`, of a Node as the API server has it (None: it has none)."""
    if observed is None:
        return "unregistered"
    ready = observed.condition("Ready")
    if ready is None or ready.status not in ("True", "False"):
        return "unknown"  # the node lifecycle controller has missed its Lease
    if ready.status == "True":
        return "ready"
    # Why a cell is sick is worded by its pool.
    return _NOT_READY.get(ready.reason, "cell_unhealthy")


def by_readiness(
    pools: Iterable[str],
    planned: Iterable[PlannedNode],
    observed: Mapping[str, ObservedNode],
) -> dict[tuple[str, str], float]:
    """Numbers by (pool, readiness), with every pair of these pools."""
    counts = {(pool, one): 0.0 for pool in pools for one in READINESS}
    for node in planned:
        key = (node.id.pool, readiness(observed.get(node.name)))
        counts[key] = counts.get(key, 0.0) + 1
    return counts
