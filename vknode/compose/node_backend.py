"""What the kubelet API asks about a node as a whole, from the agent's memory and its pool."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from vknode.agent.config import AgentConfig
from vknode.agent.pod_record import ENDED, Placement, PodRecord
from vknode.agent.pod_store import PodStore
from vknode.compose.kubelet_config import kubelet_configuration
from vknode.compose.node_usage import OurPod, pods_usage, whole_number
from vknode.kubeletapi import BackendError, NodeUsage, RunningPod
from vknode.pool.errors import PoolFailure
from vknode.pool.v1 import stats_pb2, status_pb2


class Nodes(Protocol):
    """The part of `Agent` that knows them."""

    def place(self, node: str) -> Placement | None: ...

    @property
    def registered_nodes(self) -> Sequence[str]: ...


class Statistics(Protocol):
    """The part of `PoolClient` that measures."""

    async def stats(
        self, uids: list[str] | None = None, cell: str = ""
    ) -> list[stats_pb2.SandboxStats]: ...


class AgentNodes:
    """The kubelet API's `NodeBackend`. `pools` gives the client of a pool by its name."""

    def __init__(
        self,
        config: AgentConfig,
        nodes: Nodes,
        store: PodStore,
        records: Mapping[str, PodRecord],
        pools: Mapping[str, Statistics],
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._config = config
        self._nodes = nodes
        self._store = store
        self._records = records
        self._pools = pools
        self._clock = clock

    def nodes(self) -> Sequence[str]:
        return self._nodes.registered_nodes

    def has_node(self, node: str) -> bool:
        return self._nodes.place(node) is not None

    async def measure(self, node: str) -> NodeUsage:
        place = self._place(node)
        cell = place.facts.cell
        try:
            entries = await self._pools[place.link.name].stats(cell=cell)
        except PoolFailure as failure:
            raise BackendError(f"pool {place.link.name}: {failure.message}") from failure
        announced = place.link.cells.get(cell)
        capacity = announced.capacity if announced is not None else {}
        now = self._clock()
        return NodeUsage(
            node=node,
            at=now,
            pods=pods_usage(entries, lambda uid: self._pod(uid, place), now),
            living=frozenset(pod.uid for pod in self._store.on_node(node)),
            memory_capacity=whole_number(capacity, "memory"),
            storage_capacity=whole_number(capacity, "ephemeral-storage"),
        )

    def _pod(self, uid: str, place: Placement) -> OurPod | None:
        pod, record = self._store.get(uid), self._records.get(uid)
        if pod is None or record is None:
            return None
        if pod.node != place.node or record.link is not place.link:
            return None
        return OurPod(pod.namespace, pod.name, pod.decode(), record.sandbox)

    def desired_pods(self, node: str) -> int:
        return len(self._store.on_node(node))

    def running_pods(self, node: str) -> Sequence[RunningPod]:
        found = []
        for pod in self._store.on_node(node):
            record = self._records.get(pod.uid)
            sandbox = record.sandbox if record is not None else None
            if sandbox is not None and sandbox.network_ready and sandbox.state not in ENDED:
                found.append(_running(pod.namespace, pod.name, sandbox))
        return sorted(found, key=lambda pod: (pod.namespace, pod.name))

    def kubelet_configuration(self, node: str) -> Mapping[str, Any]:
        place = self._place(node)
        cell = place.link.cells.get(place.facts.cell)
        return kubelet_configuration(self._config, cell.capacity if cell is not None else {})

    def _place(self, node: str) -> Placement:
        place = self._nodes.place(node)
        if place is None:
            raise BackendError(f"node {node} is not registered")
        return place


def _running(namespace: str, name: str, sandbox: status_pb2.Sandbox) -> RunningPod:
    statuses = (*sandbox.init_containers, *sandbox.containers, *sandbox.ephemeral_containers)
    states = {one.name: one.state.WhichOneof("state") for one in statuses}
    return RunningPod(
        namespace,
        name,
        sandbox.uid,
        images={one.name: one.image for one in statuses if states[one.name] == "running"},
        exited=sum(state == "terminated" for state in states.values()),
    )
