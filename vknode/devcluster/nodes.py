"""Waits for Nodes through a watch, as any other client of the API server would."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import aiohttp


def is_ready(node: dict[str, Any]) -> bool:
    """Whether a Node's Ready condition is True."""
    conditions = node.get("status", {}).get("conditions", [])
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


async def wait_for_nodes(
    session: aiohttp.ClientSession,
    url: str,
    done: Callable[[dict[str, bool]], bool],
    *,
    timeout: float,
) -> dict[str, bool]:
    """Watch Nodes until `done` says so of {name: ready}; returns that.

    Raises TimeoutError with what was seen last."""
    seen: dict[str, bool] = {}
    # No resourceVersion: the watch begins with every Node that exists, as ADDED.
    watch = f"{url}/api/v1/nodes?watch=true&timeoutSeconds={int(timeout) + 1}"
    unbounded = aiohttp.ClientTimeout(total=timeout)
    try:
        if done(seen):
            return seen
        async with session.get(watch, timeout=unbounded) as answer:
            answer.raise_for_status()
            rest = b""
            async for chunk in answer.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in filter(None, lines):
                    event = json.loads(line)
                    node = event["object"]
                    name = node["metadata"].get("name", "")
                    if event["type"] == "DELETED":
                        seen.pop(name, None)
                    elif node["kind"] == "Node":
                        seen[name] = is_ready(node)
                    if done(seen):
                        return seen
    except TimeoutError:
        pass
    shown = ", ".join(f"{name} {'Ready' if ok else 'NotReady'}" for name, ok in seen.items())
    raise TimeoutError(f"after {timeout:.0f} s the nodes are: {shown or 'none'}")
