"""Nodes whose usage a test decides."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vknode.kubeletapi import BackendError, NodeUsage, RunningPod


@dataclass
class LocalNodes:
    names: list[str] = field(default_factory=lambda: ["node-1"])
    usage: dict[str, NodeUsage] = field(default_factory=dict)
    running: dict[str, list[RunningPod]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    error: str = ""
    # Answers wait for it.
    go: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.go.set()

    def nodes(self) -> Sequence[str]:
        return self.names

    def has_node(self, node: str) -> bool:
        return node in self.names

    async def measure(self, node: str) -> NodeUsage:
        self.asked.append(node)
        await self.go.wait()
        if self.error:
            raise BackendError(self.error)
        return self.usage[node]

    def desired_pods(self, node: str) -> int:
        return len(self.running.get(node, ())) + 1

    def running_pods(self, node: str) -> Sequence[RunningPod]:
        return self.running.get(node, [])

    def kubelet_configuration(self, node: str) -> Mapping[str, Any]:
        return {"kind": "KubeletConfiguration", "maxPods": 110}
