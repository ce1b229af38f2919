"""The same simulated pool, shown in as many nodes as a test wants."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.fixtures import have, own_namespace, started
from tests.support.kube import is_ready
from tests.support.until import until
from tests.topology.scenarios import World
from vknode.devcluster.programs.catalog import CONTROL_PLANE

CORES, GIBIBYTES, PODS = 48, 96, 660
#: What can fail alone in the pool, however it is shown: three zones of two hosts.
FAILURE_DOMAINS = 6


@contextmanager
def sim_world(*, zones: int, cells_per_zone: int) -> Iterator[World]:
    """A cluster whose pool has the same total capacity whatever its shape."""
    have(CONTROL_PLANE)
    cells = zones * cells_per_zone
    capacity = f"cpu={CORES // cells},memory={GIBIBYTES // cells}Gi,pods={PODS // cells}"
    with (
        started(
            runtime="sim", zones=zones, cells_per_zone=cells_per_zone, cell_capacity=capacity
        ) as running,
        own_namespace(running.kube, "world") as kube,
    ):
        cluster, thread = running.cluster, running.thread
        lost = set(cluster.zones["az1"].cells)

        def ready() -> set[str]:
            return {n["metadata"]["name"] for n in kube.items("nodes") if is_ready(n)}

        def lose() -> None:
            thread.run(cluster.kill_pool("az1"))
            until(lambda: not ready() & lost, "the zone's nodes NotReady", timeout=90)

        def restore() -> None:
            thread.run(cluster.start_pool("az1"))
            until(lambda: ready() >= lost, "the zone's nodes Ready again", timeout=90)

        yield World(kube, FAILURE_DOMAINS, lose, restore)
