"""Containers that use a known share of a processor, or none."""

from __future__ import annotations

from typing import Any

# A limit makes it the same on every machine, and leaves it to others.
BURN = ["sh", "-c", "while :; do :; done"]
#: Burns while the ConfigMap `load`, mounted at /load, has the key `on`.
BURN_ON_DEMAND = [
    "sh",
    "-c",
    "while :; do if [ -e /load/on ]; then i=0; while [ $i -lt 2000 ]; do i=$((i+1)); done; "
    "else sleep 0.5; fi; done",
]


def cpu(milli: int, request: int | None = None) -> dict[str, Any]:
    """`resources` of a container with this limit, in thousandths of a processor."""
    return {
        "requests": {"cpu": f"{request or milli}m", "memory": "16Mi"},
        "limits": {"cpu": f"{milli}m", "memory": "64Mi"},
    }
