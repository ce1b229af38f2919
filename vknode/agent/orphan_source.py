"""What the orphan collector asks of the agent: who is suspect, and is it true?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Protocol

from vknode.agent.event_correlator import ObjectRef
from vknode.agent.events import WARNING, node_ref
from vknode.agent.links import Link
from vknode.agent.metrics import AgentMetrics
from vknode.agent.orphans import Brake, Suspect
from vknode.agent.pod_record import Placement, PodRecord
from vknode.agent.pod_store import PodStore
from vknode.agent.sync import PodSync
from vknode.kube.errors import ApiError
from vknode.kube.models import decode_partial


class GetPod(Protocol):
    """The part of `KubeClient` that is used here."""

    async def get(
        self,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        impersonate: str | None = None,
        timeout: float = 30.0,
        retry: bool = True,
    ) -> bytes: ...


class Events(Protocol):
    def event(self, ref: ObjectRef, node: str, type: str, reason: str, message: str) -> None: ...


class AgentOrphans:
    """The `OrphanSource` of one agent. `placements` gives all registered nodes of ours."""

    def __init__(
        self,
        *,
        client: GetPod,
        store: PodStore,
        records: Mapping[str, PodRecord],
        links: Iterable[Link],
        placements: Callable[[], Iterable[Placement]],
        sync: PodSync,
        events: Events,
        metrics: AgentMetrics,
        owner: str,
    ) -> None:
        self._client = client
        self._store = store
        self._records = records
        self._links = {link.name: link for link in links}
        self._placements = placements
        self._sync = sync
        self._events = events
        self._metrics = metrics
        self._owner = owner

    def suspects(self) -> Collection[Suspect]:
        if not self._sync.store_synced:
            return ()
        nodes = {(p.link.name, p.facts.cell): p.node for p in self._placements()}
        found = []
        for link in self._links.values():
            if not link.view_current:
                continue
            for uid, sandbox in link.sandboxes.items():
                if sandbox.owner != self._owner or sandbox.deleting or uid in self._store:
                    continue
                record = self._records.get(uid)
                if record is not None and record.api_gone:
                    continue  # its end is certain and under way
                node = nodes.get((link.name, sandbox.cell))
                if node is not None:
                    found.append(Suspect(uid, sandbox.namespace, sandbox.name, link.name, node))
        return found

    def totals(self) -> Mapping[str, int]:
        return {
            name: Counter(s.owner for s in link.sandboxes.values())[self._owner]
            for name, link in self._links.items()
        }

    async def confirm(self, suspect: Suspect) -> bool:
        path = f"/api/v1/namespaces/{suspect.namespace}/pods/{suspect.name}"
        try:
            body = await self._client.get(path, timeout=10.0)
        except ApiError as error:
            if error.is_not_found:
                return True
            raise
        return decode_partial(body).metadata.uid != suspect.uid

    def collect(self, suspect: Suspect) -> None:
        self._sync.collect(suspect.uid, suspect.node, self._links[suspect.pool])

    def brake(self, brakes: list[Brake]) -> None:
        held = {brake.pool: brake for brake in brakes}
        for pool in self._links:
            self._metrics.brake.labels(pool).set(held[pool].count if pool in held else 0)
        for place in self._placements():
            brake = held.get(place.link.name)
            if brake is None:
                continue
            self._events.event(
                node_ref(place.node, place.node_uid),
                place.node,
                WARNING,
                "SandboxDeletionBraked",
                f"{brake.count} of {brake.total} sandboxes of pool {brake.pool} have no Pod, at "
                f"most {brake.allowed} may be deleted at once; none is. If the Pods are really "
                "gone, raise deletion.brakeShare in the agent's configuration and restart it",
            )
