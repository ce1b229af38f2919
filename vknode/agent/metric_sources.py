"""Joins the metrics that something else counts anyway to where they are counted."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from vknode.agent import metric_families as families
from vknode.agent.certificate_expiry import CertificateExpiry
from vknode.agent.config import AgentConfig
from vknode.agent.events import EventRecorder
from vknode.agent.health import PoolState
from vknode.agent.leases import LeaseKeeper
from vknode.agent.links import Link
from vknode.agent.metrics import AgentMetrics
from vknode.agent.nodes import NodeController
from vknode.agent.pod_record import PodRecord
from vknode.agent.pod_store import PodStore
from vknode.agent.refresh import Refresher
from vknode.agent.status_writer import StatusWriter
from vknode.agent.sync import PodSync
from vknode.kube.client import KubeClient
from vknode.kube.reflector import ReflectorStats


def publish(
    metrics: AgentMetrics,
    *,
    client: KubeClient,
    store: PodStore,
    records: Mapping[str, PodRecord],
    links: Sequence[Link],
    nodes: NodeController,
    leases: LeaseKeeper,
    sync: PodSync,
    refresher: Refresher,
    writer: StatusWriter,
    events: EventRecorder,
    watches: Mapping[str, ReflectorStats],
) -> None:
    """`watches` are those that are not the nodes' or the refresher's own."""
    _pods(metrics, store, records, links, sync, refresher)
    _statuses(metrics, writer)
    _pools(metrics, links, nodes)
    _nodes(metrics, nodes)
    _leases(metrics, leases)
    _events(metrics, events)
    metrics.pull(families.API_REQUESTS, lambda: dict(client.stats.requests))
    metrics.pull(
        families.API_ERRORS,
        lambda: {str(status): count for status, count in client.stats.errors.items()},
    )
    _watches(metrics, {**watches, "nodes": nodes.watch_stats, **refresher.watch_stats})


def publish_certificates(metrics: AgentMetrics, config: AgentConfig) -> None:
    """When the certificates of the configuration's files expire."""
    expiry = CertificateExpiry()
    kubelet = config.kubelet
    if kubelet.serving_cert is not None:
        expiry.add("kubelet_serving", "", kubelet.serving_cert)
    if kubelet.client_ca is not None:
        expiry.add("kubelet_client_ca", "", kubelet.client_ca, bundle=True)
    for pool in config.pools:
        if pool.tls is not None:
            expiry.add("pool_client", pool.name, pool.tls.cert)
            expiry.add("pool_ca", pool.name, pool.tls.ca, bundle=True)
    metrics.pull(families.CERTIFICATE_EXPIRY, expiry.read)


def _pods(
    metrics: AgentMetrics,
    store: PodStore,
    records: Mapping[str, PodRecord],
    links: Sequence[Link],
    sync: PodSync,
    refresher: Refresher,
) -> None:
    metrics.pull(families.POD_QUEUE, sync.depths)
    metrics.pull(families.PODS_WATCHED, lambda: float(len(store)))
    metrics.pull(families.PODS_ASSIGNED, lambda: float(len(records)))
    metrics.pull(families.REFERENCES, lambda: refresher.counts)
    metrics.pull(
        families.SANDBOXES, lambda: {link.name: float(len(link.sandboxes)) for link in links}
    )


def _statuses(metrics: AgentMetrics, writer: StatusWriter) -> None:
    metrics.pull(families.STATUS_QUEUE, lambda: float(writer.depth))
    metrics.pull(
        families.STATUS_PATCHES,
        lambda: {
            "written": float(writer.written),
            "retried": float(writer.retries),
            "dropped": float(writer.drops),
            "failed": float(writer.failures),
        },
    )


def _pools(metrics: AgentMetrics, links: Sequence[Link], nodes: NodeController) -> None:
    for link in links:
        metrics.pool_known(link.name)
    metrics.pull(
        families.POOL_STATE,
        lambda: {
            (pool, state.value): float(state is now)
            for pool, now in nodes.pool_states.items()
            for state in PoolState
        },
    )
    metrics.pull(
        families.POOL_STREAM_UP,
        lambda: {
            (link.name, stream): float(state.up)
            for link in links
            for stream, state in link.client.watch_states.items()
        },
    )
    metrics.pull(
        families.POOL_STREAM_RESTARTS,
        lambda: {
            (link.name, stream): float(state.breaks)
            for link in links
            for stream, state in link.client.watch_states.items()
        },
    )


def _nodes(metrics: AgentMetrics, nodes: NodeController) -> None:
    stats = nodes.stats
    metrics.pull(families.NODES, nodes.readiness)
    metrics.pull(families.BRAKED_NODES, nodes.braked)
    metrics.pull(families.CELLS_BEYOND, nodes.cells_beyond)
    metrics.pull(families.NODES_REFUSED, lambda: float(stats.refused))
    metrics.pull(
        families.NODE_PATCHES,
        lambda: {"status": float(stats.status_patches), "metadata": float(stats.metadata_patches)},
    )
    metrics.pull(families.NODE_SYNC_FAILURES, lambda: float(stats.failures))
    metrics.pull(families.NODES_CREATED, lambda: float(stats.created))
    metrics.pull(families.NODES_DELETED, lambda: float(stats.deleted))


def _leases(metrics: AgentMetrics, leases: LeaseKeeper) -> None:
    stats = leases.stats
    metrics.pull(families.LEASES, lambda: float(len(leases)))
    metrics.pull(families.LEASE_RENEWALS, lambda: float(stats.creates + stats.renewals))
    metrics.pull(families.LEASE_FAILURES, lambda: float(stats.failures))
    metrics.pull(families.LEASE_CONFLICTS, lambda: float(stats.conflicts))
    metrics.pull(families.LEASE_AGE, leases.oldest_renewal_age)
    metrics.pull(families.LEASE_DURATION, lambda: float(leases.duration))


def _events(metrics: AgentMetrics, events: EventRecorder) -> None:
    stats = events.stats
    metrics.pull(
        families.EVENTS_WRITTEN,
        lambda: {"create": float(stats.created), "patch": float(stats.patched)},
    )
    metrics.pull(
        families.EVENTS_DROPPED,
        lambda: {
            "rate_limited": float(events.dropped - stats.dropped_full),
            "queue_full": float(stats.dropped_full),
            "failed": float(stats.failed),
        },
    )


def _watches(metrics: AgentMetrics, watches: Mapping[str, ReflectorStats]) -> None:
    for family, field in (
        (families.WATCH_EVENTS, "events"),
        (families.WATCH_RESTARTS, "restarts"),
        (families.WATCH_RELISTS, "relists"),
        (families.WATCH_UNDECODABLE, "undecodable"),
    ):
        metrics.pull(
            family,
            lambda field=field: {  # type: ignore[misc]  # a default is what binds the loop's value
                watch: float(getattr(stats, field)) for watch, stats in watches.items()
            },
        )

    metrics.pull(
        families.WATCH_SILENCE,
        lambda: {
            watch: time.monotonic() - stats.last_heard
            for watch, stats in watches.items()
            if stats.last_heard  # only reflectors note it, from their first list on
        },
    )
