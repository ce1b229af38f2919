"""Waiting for the machine between measurements.

The kernel takes down network namespaces and control groups seconds after the sandboxes
they belonged to are gone. What is measured next must not pay for what was before it.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

IDLE_SHARE = 0.85
AT_MOST = 20.0  # seconds


async def quiet() -> None:
    """Return once the processors were nearly idle for a second, or after 20 s."""
    loop = asyncio.get_running_loop()
    ends = loop.time() + AT_MOST
    while loop.time() < ends:
        before = _ticks()
        await asyncio.sleep(1.0)
        idle, whole = (b - a for a, b in zip(before, _ticks(), strict=True))
        if idle > IDLE_SHARE * whole:
            return


def _ticks() -> tuple[int, int]:
    """Idle and all clock ticks of all processors since boot, from /proc/stat."""
    fields = [int(f) for f in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return fields[3] + fields[4], sum(fields)
