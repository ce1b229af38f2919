"""What is told of a simulated sandbox: its state for an inventory, and what it uses."""

from __future__ import annotations

import hashlib
import math
import time

from vknode.pool.runtimes.facts import ObservedContainer, ObservedSandbox, ObservedState
from vknode.pool.runtimes.sim.model import SimSandbox
from vknode.pool.v1 import stats_pb2


def observed(sandbox: SimSandbox) -> ObservedSandbox:
    """As `Runtime.inventory` tells it."""
    return ObservedSandbox(
        uid=sandbox.spec.uid,
        id=sandbox.id,
        attempt=sandbox.attempt,
        ready=sandbox.ready,
        ips=sandbox.ips,
        created_at=sandbox.created_at,
        containers=tuple(
            ObservedContainer(
                ref=container.ref,
                state=ObservedState.EXITED if container.exit else ObservedState.RUNNING,
                image=container.image,
                started_at=container.started_at,
                exit=container.exit,
            )
            for container in sandbox.containers
        ),
    )


def usage(sandbox: SimSandbox) -> stats_pb2.SandboxStats:
    """Plausible figures: steady, and different for each container."""
    now = time.time_ns()
    stats = stats_pb2.SandboxStats(
        uid=sandbox.spec.uid,
        namespace=sandbox.spec.namespace,
        name=sandbox.spec.name,
        cell=sandbox.spec.cell,
    )
    total_cpu = total_memory = 0
    for container in sandbox.containers:
        if container.exit is not None:
            continue
        # Steady and different for each container: 1 to 33 thousandths of a core,
        # 4 to 36 MiB.
        draw = hashlib.blake2b(container.ref.id.encode(), digest_size=2).digest()
        share, megabytes = 0.001 + draw[0] / 8000, 4 + draw[1] // 8
        elapsed = now - container.started_at
        entry = stats.containers.add(name=container.ref.name)
        entry.started_at.FromNanoseconds(container.started_at)
        entry.usage.at.FromNanoseconds(now)
        entry.usage.cpu_nanoseconds = math.floor(elapsed * share)
        entry.usage.memory_working_set_bytes = megabytes << 20
        entry.usage.memory_usage_bytes = (megabytes + 2) << 20
        entry.usage.memory_rss_bytes = (megabytes - 1) << 20
        entry.usage.processes = 1
        entry.root_filesystem_bytes = 4096
        total_cpu += entry.usage.cpu_nanoseconds
        total_memory += entry.usage.memory_working_set_bytes
    stats.usage.at.FromNanoseconds(now)
    stats.usage.cpu_nanoseconds = total_cpu
    stats.usage.memory_working_set_bytes = total_memory
    return stats
