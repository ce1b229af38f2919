"""The whole agent, wired: connection, nodes, pools, Pods. Starts everything and ends it.

    Pod watch ──> PodSync ──> pools (Link)        nodes: NodeController, LeaseKeeper
                    │  ^──────── sandboxes ──────────┘ cells
                    └──> StatusWriter ──> API server; EventRecorder beside it

Order of the start: the first request tells who the cluster is and whether we may talk to it at
all; then the watches of our Nodes and of Services (a Pod's environment shows them); then Pods,
pools and workers. `agent_ready` is logged when every pool has answered or been given up, its
Nodes are registered and all Pods have been seen.

Order of the end: watches and workers stop, statuses that are known leave within `FLUSH_SECONDS`,
events after them; sandboxes, Nodes and Leases stay as they are.

The owner of our sandboxes is `NAME.UID`: the agent's configured name and the UID of the namespace
kube-system, which identifies a cluster for ever. Two agents of one cluster, and agents of two
clusters that share a pool, never take each other's sandboxes for orphans; an agent that is
installed again finds its own.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from typing import Any

import structlog

from vknode.agent.admitter import Admitter
from vknode.agent.claims import Claims
from vknode.agent.config import AgentConfig, PoolConfig
from vknode.agent.events import EventRecorder
from vknode.agent.leases import LeaseKeeper
from vknode.agent.links import Link
from vknode.agent.losses import Losses
from vknode.agent.metric_families import READY
from vknode.agent.metric_sources import publish, publish_certificates
from vknode.agent.metrics import AgentMetrics, MetricsServer
from vknode.agent.node_objects import NodeSettings, allocatable
from vknode.agent.node_ports import NodePorts
from vknode.agent.nodes import NodeController
from vknode.agent.orphan_source import AgentOrphans
from vknode.agent.orphans import OrphanCollector, OrphanRule
from vknode.agent.pod_certificates import PodCertificates
from vknode.agent.pod_record import Placement, PodRecord
from vknode.agent.pod_report import PodReport
from vknode.agent.pod_steps import PodSteps
from vknode.agent.pod_store import PodObject, PodStore, decode_pod
from vknode.agent.privileges import Privileges
from vknode.agent.references import References
from vknode.agent.refresh import Refresher
from vknode.agent.service_store import ServiceStore, decode_service
from vknode.agent.serving_certificate import ServingPair
from vknode.agent.serving_requests import ServingRequests
from vknode.agent.spec_builder import SpecBuilder
from vknode.agent.status_writer import StatusWriter
from vknode.agent.sync import PodSync
from vknode.agent.trust_bundles import TrustBundles
from vknode.kube.client import KubeClient
from vknode.kube.connection import Connection, connect
from vknode.kube.errors import ApiError, Unreachable
from vknode.kube.gcpause import freeze_survivors
from vknode.kube.models import decode_partial
from vknode.kube.reflector import Reflector, ReflectorOptions
from vknode.pool.client import PoolClient
from vknode.pool.endpoint import TlsFiles
from vknode.translate.facts import NodeFacts

log = structlog.get_logger()

START_PATIENCE = 15.0
FLUSH_SECONDS = 3.0
EVENT_SECONDS = 1.0
# Cells of a pool without a Node that are remembered beside pools[].maxCells: they wait for a
# Node's end, or are refused.
WAITING_CELLS = 1000


def make_link(pool: PoolConfig) -> Link:
    """Raises EndpointError for an unusable TLS file."""
    tls = None
    if pool.tls is not None:
        tls = TlsFiles(
            cert=pool.tls.cert, key=pool.tls.key, ca=pool.tls.ca, server_name=pool.tls.server_name
        )
    return Link(
        pool.name,
        lambda up, down: PoolClient(
            pool.name, pool.endpoint, tls, on_connected=up, on_disconnected=down
        ),
        # A pool must not fill the agent's memory.
        most_without_node=pool.max_cells + WAITING_CELLS,
    )


class Agent:
    """One agent. `open`, then `run`, then `close`; `store`, `records` and `links` are what the
    kubelet API reads; `refresher` is there while it runs."""

    def __init__(
        self,
        config: AgentConfig,
        *,
        reflector: ReflectorOptions | None = None,
        link: Callable[[PoolConfig], Link] = make_link,
    ) -> None:
        self.config = config
        self.store = PodStore()
        self.records: dict[str, PodRecord] = {}
        self.metrics = AgentMetrics()
        self.ready = False
        self.links: list[Link] = []
        self.metrics_address = ""
        self._reflector_options = reflector
        self._make_link = link
        self._connection: Connection | None = None
        self._placements: dict[str, tuple[object, str, Placement]] = {}
        self._use_certificate: Callable[[ServingPair], None] | None = None
        self._nodes: NodeController
        self.refresher: Refresher
        self.metrics.pull(READY, lambda: float(self.ready))
        publish_certificates(self.metrics, config)

    # -- open and close --------------------------------------------------------------------

    async def open(self) -> None:
        """Connects. Raises ConnectionConfigError, EndpointError, Unauthorized, Forbidden,
        Unreachable (the API server, after `START_PATIENCE` seconds), MetricsError."""
        self.links = [self._make_link(pool) for pool in self.config.pools]
        self._connection = await connect(self.config.kubeconfig)
        self._client = KubeClient(self._connection, user_agent="vknode-agent")
        self.owner = f"{self.config.name}.{await self._cluster_uid()}"
        self._server = MetricsServer(self.metrics, lambda: self.ready)
        if self.config.metrics_listen:
            host, port = await self._server.start(self.config.metrics_listen)
            self.metrics_address = (
                f"http://[{host}]:{port}" if ":" in host else (f"http://{host}:{port}")
            )

    async def close(self) -> None:
        for link in self.links:
            await link.close()
        if hasattr(self, "_server"):
            await self._server.stop()
        if self._connection is not None:
            await self._connection.close()

    async def _cluster_uid(self) -> str:
        ends = time.monotonic() + START_PATIENCE
        while True:
            try:
                body = await self._client.get("/api/v1/namespaces/kube-system", timeout=10.0)
                return decode_partial(body).metadata.uid
            except (Unreachable, ApiError) as error:
                if isinstance(error, ApiError) and not error.is_transient:
                    raise
                if time.monotonic() >= ends:
                    raise
                log.warning("api_server_not_reached", error=str(error))
                await asyncio.sleep(1.0)

    def ask_for_certificate(self, use: Callable[[ServingPair], None]) -> None:
        """Before `run`: `use` takes the kubelet API's certificates that the cluster issues."""
        self._use_certificate = use

    @property
    def client(self) -> KubeClient:
        """Requests to the API server; there from `open` on."""
        return self._client

    # -- running ---------------------------------------------------------------------------

    async def run(
        self, kubelet_port: int | None, stop: asyncio.Event, ports: NodePorts | None = None
    ) -> None:
        """Runs until `stop` is set, then ends in order. `kubelet_port` is the one really bound
        for all nodes, `ports` gives each its own.

        Raises what ends an agent: Unauthorized, Forbidden at the start, and defects."""
        client, config = self._client, self.config
        events = EventRecorder(client)
        claims = Claims(events, self.metrics, self.place)
        leases = LeaseKeeper(client, duration=config.lease.duration, renew=config.lease.renew)
        self._nodes = nodes = NodeController(
            client,
            config,
            self.links,
            leases,
            settings=NodeSettings.from_config(config, kubelet_port),
            ports=ports,
            events=events,
            claims=claims,
            reflector_options=self._reflector_options,
        )
        services = ServiceStore()
        service_watch = self._reflector("/api/v1/services", decode_service, services)
        report = PodReport(self.store, self.records, self.place, self.metrics.timings)
        writer = StatusWriter(client, report, took=self.metrics.status_patch_seconds.observe)
        report.on_repeat(writer.mark)
        trust = TrustBundles(client, self._reflector_options)
        certificates = PodCertificates(client, self._node_uid, self._reflector_options)
        references = References(
            client,
            services.for_namespace,
            trust=trust.resolve,
            certificates=certificates.resolve,
        )
        self.refresher = refresher = Refresher(
            client,
            references,
            self._living,
            limit=config.max_reference_watches,
            trust=trust,
            certificates=certificates,
            options=self._reflector_options,
        )
        admitter = Admitter(client, self.store, self.records, nodes.observed)
        steps = PodSteps(
            client=client,
            store=self.store,
            place=self.place,
            builder=SpecBuilder(references, Privileges(config.privileges)),
            admitter=admitter,
            refresher=refresher,
            writer=writer,
            events=events,
            metrics=self.metrics,
            owner=self.owner,
            claims=claims,
        )
        orphan_rule = OrphanRule(config.deletion.brake_share, config.deletion.brake_minimum)
        sync = PodSync(
            store=self.store,
            records=self.records,
            links=self.links,
            place=self.place,
            steps=steps,
            admitter=admitter,
            refresher=refresher,
            writer=writer,
            metrics=self.metrics,
            owner=self.owner,
            losses=Losses(orphan_rule.allowed),
            claims=claims,
        )
        orphans = OrphanCollector(
            orphan_rule,
            AgentOrphans(
                client=client,
                store=self.store,
                records=self.records,
                links=self.links,
                placements=self._all_places,
                sync=sync,
                events=events,
                metrics=self.metrics,
                owner=self.owner,
            ),
        )
        sync.on_suspicion(orphans.look_soon)
        refresher.on_stale(sync.refresh)
        certificates.on_warning(steps.warn)
        # All bound Pods of the cluster, also for an agent of few nodes: its nodes come and go with
        # the pools' cells, and a watch by spec.nodeName would be one a node, begun anew each time.
        pod_watch = self._reflector(
            "/api/v1/pods", decode_pod, sync, field_selector="spec.nodeName!="
        )
        nodes.on_node_changed(sync.node_changed)
        asking: list[Coroutine[Any, Any, Any]] = []
        if self._use_certificate is not None:
            serving = ServingRequests(
                client,
                lambda: [name for name in nodes.node_names if nodes.identity(name) is not None],
                config.kubelet.address,
                self._use_certificate,
                folder=config.kubelet.cert_directory,
                options=self._reflector_options,
            )
            nodes.on_node_changed(serving.node_changed)
            asking.append(serving.run())
        for link in self.links:
            link.serve(sync)
            link.on_cells_changed(partial(sync.cells_changed, link))
        publish(
            self.metrics,
            client=client,
            store=self.store,
            records=self.records,
            links=self.links,
            nodes=nodes,
            leases=leases,
            sync=sync,
            refresher=refresher,
            writer=writer,
            events=events,
            watches={"pods": pod_watch.stats, "services": service_watch.stats},
        )

        async def pods() -> None:
            # Containers see the Services of their start: without the list they would see none.
            await service_watch.wait_synced()
            await pod_watch.run()

        async def announce() -> None:
            await nodes.wait_registered()
            await pod_watch.wait_synced()
            self.ready = True
            # What the start left behind lives as long as the agent: no later collection walks it.
            gc.collect()
            freeze_survivors()
            log.info(
                "agent_ready",
                nodes=len(nodes.node_names),
                pods=len(self.store),
                owner=self.owner,
                kubelet_port=kubelet_port,
                metrics=self.metrics_address,
            )

        late = asyncio.create_task(events.run(), name="events")
        try:
            await _run_all(
                stop,
                [
                    nodes.run(),
                    leases.run(),
                    service_watch.run(),
                    pods(),
                    sync.run(),
                    refresher.run(),
                    orphans.run(),
                    *asking,
                    *(link.run() for link in self.links),
                ],
                announce(),
                late,
            )
        finally:
            self.ready = False
            unwritten = await writer.flush(FLUSH_SECONDS)
            await writer.close()
            await events.drain(EVENT_SECONDS)
            late.cancel()
            await asyncio.gather(late, return_exceptions=True)
            log.info("agent_stopped", unwritten_statuses=unwritten)

    def _reflector(
        self,
        path: str,
        decode: Callable[..., Any],
        handler: Any,
        field_selector: str = "",
    ) -> Reflector[Any]:
        return Reflector(
            self._client,
            path,
            decode,
            handler,
            field_selector=field_selector,
            options=self._reflector_options,
        )

    # -- nodes to pools --------------------------------------------------------------------

    def place(self, node: str) -> Placement | None:
        """What is behind a node's name; None unless it is registered and ours, and before
        `run`."""
        if not hasattr(self, "_nodes"):
            return None
        identity = self._nodes.identity(node)
        if identity is None:
            return None
        link = next((link for link in self.links if link.name == identity.pool), None)
        if link is None:
            return None
        cell = link.cells.get(identity.cell)
        known = self._placements.get(node)
        if known is not None and known[0] is cell and known[1] == identity.uid:
            return known[2]
        facts = NodeFacts(
            cell=identity.cell,
            host_ips=(self.config.kubelet.address,),
            tenant=self.config.tenant,
            cluster_domain=self.config.kubelet.cluster_domain,
            cluster_dns=self.config.kubelet.cluster_dns,
            allocatable=({} if cell is None else allocatable(cell, self.config.extended_resources)),
            extended_resources=self.config.extended_resources,
            host_dns=cell.info.host_dns if cell and cell.info.HasField("host_dns") else None,
        )
        place = Placement(node, identity.uid, link, facts)
        self._placements[node] = (cell, identity.uid, place)
        return place

    @property
    def registered_nodes(self) -> list[str]:
        """By name; none before `run`."""
        nodes: NodeController | None = getattr(self, "_nodes", None)
        if nodes is None:
            return []
        return sorted(name for name in nodes.node_names if nodes.identity(name) is not None)

    def _all_places(self) -> Iterator[Placement]:
        for name in self._nodes.node_names:
            if (place := self.place(name)) is not None:
                yield place

    def _node_uid(self, node: str) -> str | None:
        identity = self._nodes.identity(node)
        return None if identity is None else identity.uid

    def _living(self) -> Iterator[PodObject]:
        """The Pods of our nodes that have not ended."""
        for uid in self.records:
            pod = self.store.get(uid)
            if pod is not None and not (pod.deleting or pod.terminal):
                yield pod


async def _run_all(
    stop: asyncio.Event,
    loops: list[Coroutine[Any, Any, Any]],
    once: Coroutine[Any, Any, None],
    watched: asyncio.Task[Any],
) -> None:
    """Runs the loops until `stop` is set; the first failure of any ends all and is raised."""
    tasks = [asyncio.create_task(loop) for loop in loops]
    first = asyncio.create_task(once)
    stopping = asyncio.create_task(stop.wait())
    everything: set[asyncio.Task[Any]] = {*tasks, first, stopping}
    waiting = {*everything, watched}
    try:
        while True:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            if stopping in done:
                return
            if done - {first}:
                raise RuntimeError("a loop of the agent ended by itself")
    finally:
        for task in everything:
            task.cancel()
        results = await asyncio.gather(*everything, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                log.debug("ended_with", error=str(result))
