"""How probes have gone, as ListStats tells it."""

from __future__ import annotations

from collections.abc import Iterable

from vknode.pool.engine.machine import SandboxMachine
from vknode.pool.v1 import stats_pb2


def probe_counts(machines: Iterable[SandboxMachine], cell: str) -> list[stats_pb2.SandboxStats]:
    """Of sandboxes in this cell (empty: in any) that have not ended; those without answers are
    left out."""
    return [
        stats_pb2.SandboxStats(
            uid=machine.spec.uid,
            namespace=machine.spec.namespace,
            name=machine.spec.name,
            cell=machine.spec.cell,
            probes=probes,
        )
        for machine in machines
        if not machine.terminal
        and cell in ("", machine.spec.cell)
        and (probes := machine.probe_stats())
    ]
