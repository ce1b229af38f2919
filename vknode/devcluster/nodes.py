"""Waits for Nodes through a watch, as any other client of the API server would."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import aiohttp

#: Set on every new Node, and taken away by the node lifecycle controller a moment after
#: the Ready condition turned True; until then the scheduler passes the node by.
UNREADY_TAINTS = frozenset({"node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"})


def is_ready(node: dict[str, Any]) -> bool:
    """Whether a Node's Ready condition is True and the scheduler may use it for that."""
    conditions = node.get("status", {}).get("conditions", [])
    taints = node.get("spec", {}).get("taints", [])
    return any(
        one["type"] == "Ready" and one["status"] == "True" for one in conditions
    ) and not any(one["key"] in UNREADY_TAINTS for one in taints)


async def wait_for_nodes(
    session: aiohttp.ClientSession,
    url: str,
    done: Callable[[dict[str, bool]], bool],
    *,
    timeout: float,
) -> dict[str, bool]:
    """Watch Nodes until `done` says so of {name: ready}; returns that. A KeyError from
    `done` is a node that has not been seen yet: not done.

    Raises TimeoutError with what was seen last."""
    seen: dict[str, bool] = {}
    # No resourceVersion: the watch begins with every Node that exists, as ADDED.
    watch = f"{url}/api/v1/nodes?watch=true&timeoutSeconds={int(timeout) + 1}"
    unbounded = aiohttp.ClientTimeout(total=timeout)

    def satisfied() -> bool:
        try:
            return done(seen)
        except KeyError:
            return False

    try:
        if satisfied():
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
                    if satisfied():
                        return seen
    except TimeoutError:
        pass
    shown = ", ".join(f"{name} {'Ready' if ok else 'NotReady'}" for name, ok in seen.items())
    raise TimeoutError(f"after {timeout:.0f} s the nodes are: {shown or 'none'}")
