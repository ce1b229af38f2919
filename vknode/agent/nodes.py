"""Registers one Node per cell and keeps it true. The loops; what shall be is `node_plan`'s.

Theory of operation. Everything is level-triggered. A pool's link says "look again"; the pool loop
takes its cells into the plan and marks the Nodes concerned. A watch on our own Nodes (label
vknode.dev/managed-by) shows what the API server has. Workers take marked Nodes and make the
requests that lead from one to the other, most often none:

=================  =======================================================================
the API server     request
=================  =======================================================================
has no Node        POST, with status (also when somebody deleted it)
has somebody       none: refused, said clearly, looked at again every minute
else's Node
differs            PATCH of metadata or of status, whichever differs
is right           none; every 5 minutes (with jitter) a PATCH as heartbeat, as a kubelet does
has one too many   DELETE with its UID, once the cell has been gone long enough
=================  =======================================================================

So a Ready that the node lifecycle controller set to Unknown while the agent was away is put right
as soon as the watch shows it. Leases follow the Nodes (`leases.py` says why they are renewed even
for an unreachable pool). When the agent ends it leaves its Nodes as they are: a restart must not
disturb anybody.

Each Node has a port of its own at the kubelet API (`node_ports.py`), opened before the Node is
registered and closed when it is gone. A Node found at the start keeps the port that its status
names. Without a free one the Node has the port that all share, with an event that says why, and
another try every minute.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import NoReturn
from urllib.parse import quote

import structlog

from vknode.agent import names
from vknode.agent.cell_refusals import CellRefusals
from vknode.agent.claims import Claims
from vknode.agent.config import AgentConfig
from vknode.agent.events import NORMAL, WARNING, EventRecorder, node_ref
from vknode.agent.health import PoolHealth, PoolState
from vknode.agent.leases import LeaseKeeper
from vknode.agent.node_counts import NodeStats, by_readiness
from vknode.agent.node_objects import (
    REASON_CELL_GONE,
    REASON_POOL_UNREACHABLE,
    DesiredNode,
    NodeSettings,
    ObservedNode,
    Readiness,
    cell_readiness,
    create_body,
    decode_node,
    desired_node,
    is_newer,
    is_ours,
    metadata_patch,
    refused_labels,
    status_patch,
)
from vknode.agent.node_plan import (
    NodeIdentity,
    NodePlan,
    PlannedNode,
    deletion_braked,
    name_taken,
)
from vknode.agent.node_ports import NodePortError, NodePorts
from vknode.agent.pool_link import PoolLink
from vknode.agent.wheel import WorkQueue
from vknode.kube.backoff import Backoff
from vknode.kube.client import MERGE_PATCH, KubeClient
from vknode.kube.errors import ApiError, KubeError
from vknode.kube.models import ObjectKey
from vknode.kube.reflector import Reflector, ReflectorOptions, ReflectorStats

log = structlog.get_logger()

COLLECTION = "/api/v1/nodes"
WORKERS = 8
REFRESH_SECONDS = 300.0
REFUSED_AGAIN_SECONDS = 60.0
BRAKED_AGAIN_SECONDS = 60.0
PORT_AGAIN_SECONDS = 60.0


class NodeController:
    """Run `run` in a task, and the LeaseKeeper's and EventRecorder's beside it."""

    def __init__(
        self,
        client: KubeClient,
        config: AgentConfig,
        links: Sequence[PoolLink],
        leases: LeaseKeeper,
        *,
        settings: NodeSettings | None = None,
        ports: NodePorts | None = None,
        events: EventRecorder | None = None,
        claims: Claims | None = None,
        reflector_options: ReflectorOptions | None = None,
    ) -> None:
        self.stats = NodeStats()
        # Node name -> why it was refused; for status pages and tests.
        self.refused: dict[str, str] = {}
        self._client = client
        self._config = config
        self._links = {link.name: link for link in links}
        self._leases = leases
        self._settings = settings or NodeSettings.from_config(config)
        self._ports = ports
        # Each Node's own port at the kubelet API; None: no free one was found.
        self._own_port: dict[str, int | None] = {}
        self._port_told: set[str] = set()
        self._events = events
        self._loop = asyncio.get_running_loop()
        now = self._loop.time()
        self._plan = NodePlan(
            config.node_name_template,
            gone_after=config.cell_gone_after,
            deletion=config.deletion,
            pools={pool.name: pool.cells for pool in config.pools},
            most={pool.name: pool.max_cells for pool in config.pools},
        )
        self._health = {
            name: PoolHealth(config.pool_unreachable_after, now) for name in self._links
        }
        # What a Ready=False says of the pool; fixed per outage, or each retry would be a PATCH.
        self._outage: dict[str, Readiness] = {}
        self._observed: dict[str, ObservedNode] = {}
        self._backoffs: dict[str, Backoff] = {}
        # loop.time() of the next heartbeat PATCH
        self._refresh_at: dict[str, float] = {}
        self._refusals = CellRefusals(self._links, claims)
        self._listeners: list[Callable[[str], None]] = []
        self._queue: WorkQueue[str] = WorkQueue()
        self._look = asyncio.Event()
        self._dirty_pools: set[str] = set(self._links)
        self._registered = asyncio.Event()
        self._reflector: Reflector[ObservedNode] = Reflector(
            client,
            COLLECTION,
            decode_node,
            self,
            label_selector=f"{names.LABEL_MANAGED_BY}={config.name}",
            options=reflector_options,
        )
        for link in links:
            link.on_cells_changed(partial(self._link_changed, link.name))

    # -- what others ask -------------------------------------------------------------------

    def identity(self, node: str) -> NodeIdentity | None:
        """Who the Node is; None while it is not registered (or not ours)."""
        planned, observed = self._plan.nodes.get(node), self._observed.get(node)
        if planned is None or observed is None:
            return None
        return NodeIdentity(node, observed.metadata.uid, planned.id.pool, planned.id.cell)

    def observed(self, node: str) -> ObservedNode | None:
        """Our Node as the API server has it."""
        return self._observed.get(node)

    @property
    def node_names(self) -> frozenset[str]:
        """All Nodes that are or shall be registered."""
        return frozenset(self._plan.nodes)

    @property
    def pool_states(self) -> Mapping[str, PoolState]:
        return {name: health.state for name, health in self._health.items()}

    @property
    def watch_stats(self) -> ReflectorStats:
        return self._reflector.stats

    def readiness(self) -> dict[tuple[str, str], float]:
        """How many Nodes there are by pool and `node_counts.READINESS`."""
        return by_readiness(self._links, self._plan.nodes.values(), self._observed)

    def braked(self) -> dict[str, float]:
        """How many Nodes the deletion brake holds back, by pool."""
        return self._plan.braked(self._links, self._loop.time())

    def cells_beyond(self) -> dict[str, float]:
        """How many cells are announced beyond `pools[].maxCells`, by pool. Those that the link
        does not remember are counted by the pool's last list."""
        return {pool: float(count) for pool, count in self._refusals.beyond.items()}

    def on_node_changed(self, callback: Callable[[str], None]) -> None:
        """Calls back with a Node's name when it is registered, changed or gone."""
        self._listeners.append(callback)

    async def wait_registered(self) -> None:
        """Returns once every pool has answered or been given up, and its Nodes are registered."""
        await self._registered.wait()

    # -- running ---------------------------------------------------------------------------

    async def run(self) -> NoReturn:
        """Ends only by cancellation or an error that a person must see.

        Raises `Forbidden` or `Unauthorized` when the first list is refused.
        """
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._reflector.run(), name="node-watch")
                # Adoption comes before registering, or a restart would look like new Nodes.
                await self._reflector.wait_synced()
                for pool, link in self._links.items():
                    link.keep_cells_of_nodes(partial(self._plan.cells_with_nodes, pool))
                group.create_task(self._pool_loop(), name="node-pools")
                for number in range(WORKERS):
                    group.create_task(self._work(), name=f"node-worker-{number}")
        except BaseExceptionGroup as group_error:
            # One cause is an answer, a group of one is a puzzle.
            if len(group_error.exceptions) == 1:
                raise group_error.exceptions[0] from None
            raise
        finally:
            self._queue.close()
        raise AssertionError("node loops never end")

    def _link_changed(self, pool: str) -> None:
        self._dirty_pools.add(pool)
        self._look.set()

    async def _pool_loop(self) -> NoReturn:
        while True:
            self._look.clear()
            now = self._loop.time()
            dirty, self._dirty_pools = self._dirty_pools, set()
            for pool, link in self._links.items():
                health = self._health[pool]
                changed = health.observe(link.reachable, now)
                if changed:
                    self._pool_changed(pool, link, health)
                if link.reachable and (changed or pool in dirty):
                    self._take_cells(pool, link, now)
            self._check_registered()
            deadlines = [
                d for health in self._health.values() if (d := health.deadline) is not None
            ]
            timeout = max(0.0, min(deadlines) - now) if deadlines else None
            try:
                async with asyncio.timeout(timeout):
                    await self._look.wait()
            except TimeoutError:
                pass  # a deadline: the next round notices

    def _pool_changed(self, pool: str, link: PoolLink, health: PoolHealth) -> None:
        if health.state is PoolState.UNREACHABLE:
            seconds = self._config.pool_unreachable_after
            problem = f": {link.problem}" if link.problem else ""
            message = f"pool {pool} has not answered for {seconds:g} s{problem}"
            self._outage[pool] = Readiness(False, REASON_POOL_UNREACHABLE, message)
            log.error("pool_unreachable", pool=pool, problem=link.problem, after=seconds)
        elif health.state is PoolState.SUSPECT:
            log.warning("pool_suspect", pool=pool, problem=link.problem)
        else:
            self._outage.pop(pool, None)
            log.info("pool_reachable", pool=pool, cells=len(link.cells))
        for node in self._plan.of_pool(pool):
            self._queue.add(node.name)

    def _take_cells(self, pool: str, link: PoolLink, now: float) -> None:
        changes = self._plan.update(pool, link.cells, now, link.may_have)
        for conflict in changes.conflicts:
            # One pool's mistake (or lie) must not take the agent from all the others, also at a
            # start: who came first keeps the name.
            self._refusals.refuse(pool, conflict.claimant.cell, str(conflict))
            self._refusals.claim(pool, conflict.claimant.cell, str(conflict), conflict.node)
        for cell in changes.foreign:
            self._refusals.claim(
                pool, cell, f"pool {pool} announces cell {cell} and may not have it"
            )
        for cell, problem in changes.refused:
            self._refusals.refuse(pool, cell, problem)
        self._refusals.tell_beyond(pool, changes.beyond, link.cells_left_out)
        refused = {c for c, _ in changes.refused} | {c.claimant.cell for c in changes.conflicts}
        self._refusals.keep(pool, refused)
        for name in changes.nodes:
            node = self._plan.nodes[name]
            if node.cell is not None and (left_out := refused_labels(node.cell)):
                log.warning("cell_labels_left_out", pool=pool, cell=node.id.cell, keys=left_out)
            if node.gone_since is not None:
                log.warning("cell_gone", pool=pool, cell=node.id.cell, node=name)
            self._queue.add(name)

    def _check_registered(self) -> None:
        if self._registered.is_set():
            return
        if any(health.state is PoolState.STARTING for health in self._health.values()):
            return
        waiting = [
            node.name
            for node in self._plan.nodes.values()
            if node.live and node.name not in self._observed and node.name not in self.refused
        ]
        if not waiting:
            self._registered.set()

    # -- what the watch tells --------------------------------------------------------------

    def upsert(self, obj: ObservedNode) -> None:
        name = obj.metadata.name
        if not self._is_newer(obj):
            return
        self._observed[name] = obj
        if name not in self._plan.nodes:
            if obj.pool not in self._links:
                log.warning(
                    "node_of_unknown_pool",
                    node=name,
                    pool=obj.pool,
                    hint="configure the pool again, or kubectl delete node",
                )
                return
            self._plan.adopt(obj)
            if self._ports is not None and (port := obj.kubelet_port) is not None:
                self._ports.claim(name, port)
            log.info("node_adopted", node=name, pool=obj.pool, cell=obj.cell)
            self._dirty_pools.add(obj.pool)  # its pool may have announced long ago
            self._look.set()
            self._notify(name)
        self._queue.add(name)

    def deleted(self, key: ObjectKey, last: ObservedNode | None) -> None:
        observed = self._observed.get(key.name)
        if observed is None or observed.metadata.uid != key.uid:
            return
        del self._observed[key.name]
        self._notify(key.name)
        if key.name in self._plan.nodes:
            self._queue.add(key.name)

    def synced(self) -> None:
        self._look.set()

    def _is_newer(self, obj: ObservedNode) -> bool:
        """Answers to our own requests may be ahead of the watch."""
        return is_newer(obj, self._observed.get(obj.metadata.name))

    def _notify(self, name: str) -> None:
        for listener in self._listeners:
            listener(name)

    # -- one Node --------------------------------------------------------------------------

    async def _work(self) -> NoReturn:
        while True:
            name = await self._queue.get()
            try:
                await self._sync_guarded(name)
            finally:
                self._queue.done(name)

    async def _sync_guarded(self, name: str) -> None:
        try:
            await self._sync(name)
        except KubeError as error:
            self.stats.failures += 1
            backoff = self._backoffs.setdefault(name, Backoff(base=0.5, maximum=30.0))
            at_least = error.retry_after if isinstance(error, ApiError) else None
            delay = backoff.next(at_least)
            log.warning("node_sync_failed", node=name, error=str(error), retry_in=round(delay, 2))
            self._queue.add_after(name, delay)
        else:
            self._backoffs.pop(name, None)
        self._check_registered()

    async def _sync(self, name: str) -> None:
        node = self._plan.nodes.get(name)
        if node is None:
            return
        observed = self._observed.get(name)
        if await self._remove_if_due(node, observed):
            return
        await self._open_port(node, observed)
        desired = self._desired(node)
        if observed is None:
            # A cell that is gone or unknown is no reason to bring a Node into being.
            if desired is not None and desired.status is not None and node.gone_since is None:
                await self._register(node, desired)
            else:
                self._leases.remove(name)
            return
        self._leases.add(name, observed.metadata.uid)
        if desired is not None:
            await self._correct(desired, observed)

    def _desired(self, node: PlannedNode) -> DesiredNode | None:
        """None: the pool may yet answer, leave everything as it is."""
        pool = node.id.pool
        state = self._health[pool].state
        if state is PoolState.UNREACHABLE:
            readiness = self._outage[pool]
        elif node.gone_since is not None:
            readiness = Readiness(
                False, REASON_CELL_GONE, f"pool {pool} no longer has the cell {node.id.cell}"
            )
        elif node.cell is None:
            return None
        else:
            readiness = cell_readiness(node.cell)
        if node.cell is None:
            return DesiredNode(node.name, pool, readiness)
        port = self._own_port.get(node.name)
        return desired_node(node.name, pool, node.cell, self._settings, readiness, port)

    async def _open_port(self, node: PlannedNode, observed: ObservedNode | None) -> None:
        name = node.name
        # A cell that is only remembered, and has no Node, gets none.
        if self._ports is None or (observed is None and not node.live):
            return
        try:
            self._own_port[name] = await self._ports.open(name)
        except NodePortError as error:
            self._queue.add_after(name, PORT_AGAIN_SECONDS)
            if self._own_port.get(name, 0) is not None:
                log.error("node_port_missing", node=name, problem=str(error))
            self._own_port[name] = None
            if observed is not None and name not in self._port_told:
                self._port_told.add(name)
                self._event(name, observed.metadata.uid, WARNING, "NodePortMissing", str(error))
        else:
            self._port_told.discard(name)

    async def _close_port(self, name: str) -> None:
        self._own_port.pop(name, None)
        self._port_told.discard(name)
        if self._ports is not None:
            await self._ports.close(name)

    async def _register(self, node: PlannedNode, desired: DesiredNode) -> None:
        name = node.name
        try:
            body = await self._client.create(COLLECTION, create_body(desired, datetime.now(UTC)))
        except ApiError as error:
            if not error.is_already_exists:
                raise
            body = await self._client.get(_path(name))
            there = decode_node(body)
            if not is_ours(there, desired, self._config.name):
                self._refuse_node(name, there)
                await self._close_port(name)
                return
        else:
            recreated = name in self._refresh_at
            self.stats.created += 1
            self.stats.recreated += recreated
            log.info(
                "node_recreated" if recreated else "node_registered",
                node=name,
                pool=node.id.pool,
                cell=node.id.cell,
            )
        if self.refused.pop(name, None) is not None:
            self.stats.refused = len(self.refused)
        observed = decode_node(body)
        if self._is_newer(observed):
            self._observed[name] = observed
        self._schedule_refresh(name, changed=True)
        self._leases.add(name, observed.metadata.uid)
        self._notify(name)
        # A Node that was there already may differ; a new one is right and this finds nothing.
        self._queue.add(name)

    def _refuse_node(self, name: str, there: ObservedNode) -> None:
        problem = name_taken(name, there.managed_by)
        if name not in self.refused:
            log.error("node_refused", node=name, problem=problem)
            self._event(name, there.metadata.uid, WARNING, "NodeNameTaken", problem)
        self.refused[name] = problem
        self.stats.refused = len(self.refused)
        self._queue.add_after(name, REFUSED_AGAIN_SECONDS)

    async def _correct(self, desired: DesiredNode, observed: ObservedNode) -> None:
        name = desired.name
        changes = metadata_patch(desired, observed)
        if changes is not None:
            self.stats.metadata_patches += 1
            observed = await self._patched(
                name, self._client.patch(_path(name), changes, content_type=MERGE_PATCH)
            )
        refresh = self._loop.time() >= self._refresh_at.get(name, 0.0)
        changes = status_patch(desired, observed, datetime.now(UTC), refresh=refresh)
        if changes is not None:
            before = observed.condition("Ready")
            self.stats.status_patches += 1
            observed = await self._patched(name, self._client.patch_status(_path(name), changes))
            changed = before is None or (before.status == "True") != desired.readiness.ready
            self._schedule_refresh(name, changed=changed or name not in self._refresh_at)
            if changed:
                self._ready_changed(desired, observed)
            self._notify(name)
        else:
            self._queue.add_after(name, self._refresh_at[name] - self._loop.time())

    async def _patched(self, name: str, request: Awaitable[bytes]) -> ObservedNode:
        """The Node as the answer to a PATCH shows it."""
        try:
            answer = decode_node(await request)
        except ApiError as error:
            if error.is_not_found or error.is_conflict:
                # Deleted, or deleted and made anew: what we know of it is void. The watch will
                # say so too, but a missed heartbeat need not wait for it.
                self._observed.pop(name, None)
            raise
        if self._is_newer(answer):
            self._observed[name] = answer
        return answer

    def _ready_changed(self, desired: DesiredNode, observed: ObservedNode) -> None:
        readiness = desired.readiness
        log.info(
            "node_ready" if readiness.ready else "node_not_ready",
            node=desired.name,
            pool=desired.pool,
            reason=readiness.reason,
        )
        reason = "NodeReady" if readiness.ready else "NodeNotReady"
        self._event(
            desired.name,
            observed.metadata.uid,
            NORMAL,
            reason,
            f"Node {desired.name} status is now: {reason}",
        )

    def _schedule_refresh(self, name: str, *, changed: bool) -> None:
        """Every 5 minutes; after a change anew at random, as kubelet's calculateDelay spreads."""
        spread = 0.5 + random.random() if changed else 1.0
        delay = REFRESH_SECONDS * spread
        self._refresh_at[name] = self._loop.time() + delay
        self._queue.add_after(name, delay)

    # -- a Node whose cell is gone ---------------------------------------------------------

    async def _remove_if_due(self, node: PlannedNode, observed: ObservedNode | None) -> bool:
        """Whether nothing else is to be done for this Node now."""
        now = self._loop.time()
        due_in = self._plan.removal_due_in(node, now)
        pool = node.id.pool
        if due_in is None or self._health[pool].state is not PoolState.REACHABLE:
            return False
        if due_in > 0:
            self._queue.add_after(node.name, due_in)
            return False
        if observed is not None:
            if brake := self._plan.brake(pool, now):
                self._brake(node, observed, *brake)
                return False
            try:
                await self._client.delete(_path(node.name), uid=observed.metadata.uid)
            except ApiError as error:
                if not error.is_not_found:
                    raise
            self.stats.deleted += 1
            log.info("node_deleted", node=node.name, pool=pool, cell=node.id.cell)
        # It may have been announced again while the request was on its way.
        if node.gone_since is None:
            self._queue.add(node.name)
            return True
        self._leases.remove(node.name)
        self._plan.forget(node.name)
        # Another pool may have announced its cell long ago: now it may have it.
        self._dirty_pools.update(self._links)
        self._look.set()
        self._refresh_at.pop(node.name, None)
        await self._close_port(node.name)
        self._notify(node.name)
        return True

    def _brake(self, node: PlannedNode, observed: ObservedNode, doomed: int, allowed: int) -> None:
        self.stats.braked += 1
        problem = deletion_braked(node.id.pool, doomed, allowed)
        log.error("node_deletion_braked", node=node.name, problem=problem)
        self._event(node.name, observed.metadata.uid, WARNING, "NodeDeletionBraked", problem)
        self._queue.add_after(node.name, BRAKED_AGAIN_SECONDS)

    def _event(self, name: str, uid: str, type: str, reason: str, message: str) -> None:
        if self._events is not None:
            self._events.event(node_ref(name, uid), name, type, reason, message)


def _path(name: str) -> str:
    return f"{COLLECTION}/{quote(name)}"
