"""Admits Pods to nodes before anything is asked of a pool, as a kubelet does.

Theory of operation. Each Pod without a sandbox is looked at once, in the order of their turns and
without a wait in between, so that two Pods never take the same last place. Who is admitted counts
from then on until it has ended (`NodeLoads`). Where only the node's labels are against a Pod the
Node is read again first: its watch may lag behind that of Pods.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

import structlog

from vknode.agent.admission import Rejection
from vknode.agent.node_loads import NodeLoads
from vknode.agent.node_objects import ObservedNode, decode_node, strict_groups
from vknode.agent.pod_record import ENDED, Placement, PodRecord
from vknode.agent.pod_store import PodObject, PodStore
from vknode.kube.client import KubeClient
from vknode.translate.admission import Load, Refused, admit, load_of
from vknode.translate.nodeaffinity import NodeView
from vknode.translate.resources import allocated_pod

log = structlog.get_logger()

REQUEST_TIMEOUT = 10.0


class Admitter:
    """For one agent; `observed` gives our Nodes as the API server has them."""

    def __init__(
        self,
        client: KubeClient,
        store: PodStore,
        records: Mapping[str, PodRecord],
        observed: Callable[[str], ObservedNode | None],
    ) -> None:
        self._client = client
        self._store = store
        self._records = records
        self._observed = observed
        self._loads = NodeLoads()

    async def admit(
        self, record: PodRecord, pod: dict[str, Any], place: Placement
    ) -> Rejection | None:
        """None: the node takes it, and it counts. Raises `KubeError` where the API server cannot
        be asked for the Node."""
        if record.admitted:
            return None
        refused = self._try(record, pod, place, self._observed(place.node))
        if refused is not None and refused.by_labels:
            raw = await self._client.get(
                f"/api/v1/nodes/{quote(place.node)}", timeout=REQUEST_TIMEOUT
            )
            refused = self._try(record, pod, place, decode_node(raw))
        return None if refused is None else Rejection(refused.reason, refused.message)

    def _try(
        self, record: PodRecord, pod: dict[str, Any], place: Placement, node: ObservedNode | None
    ) -> Refused | None:
        if not self._loads.is_begun(place.node):
            self._loads.begin(place.node, self._there(place.node))
        load = load_of(pod)
        cell = place.link.cells.get(place.facts.cell)
        view = NodeView(
            place.node,
            {} if node is None else node.metadata.labels or {},
            () if node is None else node.spec.taints or (),
            place.facts.allocatable,
            None if cell is None else strict_groups(cell),
        )
        refused = admit(pod, load, self._loads.used(place.node), view)
        if refused is None:
            record.admitted = True
            self._loads.set(place.node, record.uid, load)
        return refused

    def taken(self, record: PodRecord, pod: PodObject) -> None:
        """The Pod is (still) there, with what is set aside for it now. Of one that ended while
        somebody waited for an answer nothing is noted."""
        record.admitted = True
        if not self._loads.is_begun(record.node) or self._records.get(record.uid) is not record:
            return
        if occupies(record, self._store.get(record.uid)):
            self._loads.set(record.node, record.uid, self._load(record, pod))

    def left(self, record: PodRecord) -> None:
        """It has ended, or will never be there."""
        self._loads.drop(record.node, record.uid)

    def _there(self, node: str) -> Iterator[tuple[str, Load]]:
        for pod in self._store.on_node(node):
            record = self._records.get(pod.uid)
            if record is not None and occupies(record, pod):
                yield pod.uid, self._load(record, pod)

    def _load(self, record: PodRecord, pod: PodObject) -> Load:
        return load_of(allocated_pod(pod.decode(), record.sandbox))


def occupies(record: PodRecord, pod: PodObject | None) -> bool:
    """Whether a Pod counts against its node: it was admitted and has not ended. As on a kubelet
    an object that is gone counts no more, whatever still runs of it."""
    if pod is None or pod.terminal or record.memory.given_up or record.memory.gone:
        return False
    if record.sandbox is None:
        return record.admitted or pod.started
    return record.sandbox.state not in ENDED
