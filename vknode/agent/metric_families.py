"""Every metric of the agent: its name, kind, labels and what it tells. Pure.

The one place where they are named: `metrics.py` serves them, docs/monitoring.md has them as a
table, and the alert rules and the dashboard in manifests/monitoring/ are held to them by tests.

Labels only take values from small sets: pools, endpoints, methods, codes, reasons of ours. Never
the name or UID of a Pod, of a sandbox, or what a user or a pool may write freely.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

# Seconds. A start takes about 0.2 s with an image that is there, and minutes with a large one.
_START_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300)
_REQUEST_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15)


class Kind(enum.Enum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True)
class Family:
    """`name` as Prometheus sees it, a counter's with `_total`. `buckets` in seconds."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


def _counter(name: str, help: str, *labels: str) -> Family:
    return Family(name, Kind.COUNTER, help, labels)


def _gauge(name: str, help: str, *labels: str) -> Family:
    return Family(name, Kind.GAUGE, help, labels)


def _seconds(name: str, help: str, buckets: tuple[float, ...], *labels: str) -> Family:
    return Family(name, Kind.HISTOGRAM, help, labels, buckets)


# -- the agent itself ----------------------------------------------------------------------

BUILD_INFO = _gauge("vknode_build_info", "Always 1; the label is the agent's version.", "version")
READY = _gauge(
    "vknode_agent_ready",
    "1 once all pools have answered or were given up, all Nodes are registered and all Pods "
    "have been seen.",
)

# -- Pods ----------------------------------------------------------------------------------

POD_START = _seconds(
    "vknode_pod_start_duration_seconds",
    "Parts of the starts of Pods, by phase: ask (seen to asked of the pool), accept (answered), "
    "images, sandbox, containers (in the pool), report (to the PATCH), write (the PATCH), total "
    "(seen to Running written).",
    _START_BUCKETS,
    "phase",
)
POD_SYNC = _seconds(
    "vknode_pod_sync_duration_seconds",
    "Steps for Pods (create, update, delete, finish, lost, release) and how long each took, "
    "waiting for the pool and the API server included.",
    _REQUEST_BUCKETS,
    "action",
)
POD_QUEUE = _gauge("vknode_pod_queue_length", "Pods that wait for a step or are in one.", "pool")
PODS_WATCHED = _gauge("vknode_watched_pods", "Pods of the whole cluster in the agent's memory.")
PODS_ASSIGNED = _gauge("vknode_assigned_pods", "Pods of this agent's Nodes.")
PODS_REFUSED = _counter(
    "vknode_pods_refused_total",
    "Pods that the agent failed, by the reason in their status. Extended resources are "
    "OutOfExtendedResources, reasons without a name of their own are Other, as on a kubelet.",
    "reason",
)
SANDBOXES = _gauge("vknode_sandboxes", "Sandboxes in the view of each pool, also others'.", "pool")
MISSING_REFERENCES = _counter(
    "vknode_missing_references_total",
    "Syncs that met a missing ConfigMap, Secret or other thing that a Pod names.",
)
REFERENCES = _gauge(
    "vknode_references",
    "What running Pods use, by how changes are noticed: watched, polled (about every minute, for "
    "want of watches), unwatched (looked up after a crash), tokens (renewed before they expire).",
    "how",
)
ORPHANS_DELETED = _counter(
    "vknode_orphaned_sandboxes_deleted_total", "Sandboxes without a Pod that were deleted."
)
BRAKED_SANDBOXES = _gauge(
    "vknode_deletion_brake_sandboxes",
    "Sandboxes without a Pod that the deletion brake holds back; more than 0 wants a person.",
    "pool",
)

# -- statuses ------------------------------------------------------------------------------

STATUS_PATCHES = _counter(
    "vknode_status_patches_total",
    "PATCH requests for statuses of Pods, by result: written, retried (will be tried again), "
    "dropped (the Pod is gone or another one, or the API server finds fault with it), failed "
    "(a defect of the agent).",
    "result",
)
STATUS_PATCH = _seconds(
    "vknode_status_patch_duration_seconds",
    "How long the API server took to answer a PATCH of a Pod's status, with any result.",
    _REQUEST_BUCKETS,
)
STATUS_QUEUE = _gauge("vknode_status_queue_length", "Pods whose status is to be written.")

# -- the API server ------------------------------------------------------------------------

API_REQUESTS = _counter(
    "vknode_api_requests_total", "Requests to the API server; a retry counts again.", "method"
)
API_ERRORS = _counter(
    "vknode_api_request_errors_total",
    "Requests to the API server that failed, by HTTP status; 0: no answer.",
    "code",
)
WATCH_EVENTS = _counter("vknode_watch_events_total", "Events of watches.", "watch")
WATCH_RESTARTS = _counter(
    "vknode_watch_restarts_total",
    "Watches that broke and were begun again; not those that ended by their own timeout.",
    "watch",
)
WATCH_RELISTS = _counter(
    "vknode_watch_relists_total",
    "Times that a watch could not go on from where it was and all was read anew.",
    "watch",
)
WATCH_UNDECODABLE = _counter(
    "vknode_watch_undecodable_objects_total", "Objects that could not be read.", "watch"
)
WATCH_SILENCE = _gauge(
    "vknode_watch_silence_seconds",
    "Time since something came from the watch, bookmarks included (one a minute or so).",
    "watch",
)

# -- pools ---------------------------------------------------------------------------------

POOL_STATE = _gauge(
    "vknode_pool_state",
    "1 for the state that the pool is in: starting, reachable, suspect (a stream is broken, its "
    "Nodes are not yet NotReady), unreachable (they are).",
    "pool",
    "state",
)
POOL_STREAM_UP = _gauge(
    "vknode_pool_stream_up",
    "1 while the stream from the pool is open and has delivered.",
    "pool",
    "stream",
)
POOL_STREAM_RESTARTS = _counter(
    "vknode_pool_stream_restarts_total",
    "Times that the stream broke, or could not be opened, and was tried again.",
    "pool",
    "stream",
)
POOL_ERRORS = _counter(
    "vknode_pool_call_errors_total", "Calls for Pods that a pool failed.", "pool", "kind"
)

POOL_CLAIMS_REFUSED = _counter(
    "vknode_pool_claims_refused_total",
    "What pools said of sandboxes and cells that are not theirs: other_pool, other_cell, "
    "other_sandbox, foreign_cell. Not believed.",
    "pool",
    "why",
)

# -- Nodes and Leases ----------------------------------------------------------------------

NODES = _gauge(
    "vknode_nodes",
    "Nodes of this agent as the API server has them: ready, pool_unreachable, cell_gone, "
    "cell_unhealthy, unknown (the control plane missed their Lease), unregistered.",
    "pool",
    "readiness",
)
NODES_REFUSED = _gauge(
    "vknode_refused_nodes", "Cells that are not shown since a Node of their name is another's."
)
NODE_PATCHES = _counter(
    "vknode_node_patches_total", "PATCH requests for Nodes: status or metadata.", "part"
)
NODE_SYNC_FAILURES = _counter(
    "vknode_node_sync_failures_total", "Attempts to put a Node right that failed; repeated."
)
NODES_CREATED = _counter("vknode_nodes_created_total", "Nodes that were registered.")
NODES_DELETED = _counter("vknode_nodes_deleted_total", "Nodes deleted after their cells.")
BRAKED_NODES = _gauge(
    "vknode_deletion_brake_nodes",
    "Nodes without a cell that the deletion brake holds back; more than 0 wants a person.",
    "pool",
)
CELLS_BEYOND = _gauge(
    "vknode_cells_beyond_limit",
    "Cells that pools announce beyond pools[].maxCells; they are no Nodes. Beyond maxCells + 1000 "
    "without a Node, as of the pool's last list.",
    "pool",
)
LEASES = _gauge("vknode_leases", "Leases that the agent keeps.")
LEASE_RENEWALS = _counter("vknode_lease_renewals_total", "Leases created or renewed.")
LEASE_FAILURES = _counter("vknode_lease_failures_total", "Renewals that failed; repeated.")
LEASE_CONFLICTS = _counter(
    "vknode_lease_conflicts_total",
    "Renewals that found another writer: does a second agent run with these Nodes?",
)
LEASE_AGE = _gauge(
    "vknode_lease_oldest_renewal_age_seconds",
    "Time since the Lease that waits longest was renewed.",
)
LEASE_DURATION = _gauge(
    "vknode_lease_duration_seconds", "The configured life of a Lease: a Node is lost after it."
)

# -- the rest ------------------------------------------------------------------------------

EVENTS_WRITTEN = _counter(
    "vknode_events_written_total", "Kubernetes Events: create, or patch (a raised count).", "verb"
)
EVENTS_DROPPED = _counter(
    "vknode_events_dropped_total",
    "Occurrences left out: rate_limited (of one object), queue_full, failed (the API server did "
    "not take it).",
    "cause",
)
CERTIFICATE_EXPIRY = _gauge(
    "vknode_certificate_expiry_timestamp_seconds",
    "When the certificate in the file expires, of several the next; seconds since the epoch, 0 "
    "if the file cannot be read. kubelet_serving, kubelet_client_ca; of pools pool_client and "
    "pool_ca.",
    "certificate",
    "pool",
)
KUBELET_REQUESTS = _counter(
    "vknode_kubelet_api_requests_total",
    "Requests that the kubelet API has served to the end, by the first part of their path and "
    "HTTP status; 499: the client left first, as one that follows a log does.",
    "endpoint",
    "code",
)
KUBELET_STREAMS = _gauge(
    "vknode_kubelet_api_streams",
    "Requests that the kubelet API serves now: logs, exec, attach, port-forward.",
    "endpoint",
)

ALL: tuple[Family, ...] = tuple(one for one in globals().values() if isinstance(one, Family))

# Reasons that a refused Pod may have, all that the agent and a kubelet's admission know.
REFUSAL_REASONS = frozenset(
    (
        "AppArmor",
        "NodeAffinity",
        "NodePorts",
        "NodeShutdown",
        "OutOfCapacity",
        "OutOfcpu",
        "OutOfephemeral-storage",
        "OutOfmemory",
        "OutOfpods",
        "PodOSNotSupported",
        "PodOSSelectorNodeLabelDoesNotMatch",
        "PoolRefused",
        "SandboxLost",
        "SupplementalGroupsPolicyNotSupported",
        "SysctlForbidden",
        "TaintToleration",
        "UnsupportedField",
    )
)


def refusal_label(reason: str) -> str:
    """The label for a reason: a name of an extended resource comes from users."""
    if reason in REFUSAL_REASONS:
        return reason
    return "OutOfExtendedResources" if reason.startswith("OutOf") else "Other"


def as_table(families: tuple[Family, ...] = ALL) -> str:
    """The table of docs/monitoring.md."""
    rows = ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    rows += [
        f"| `{one.name}` | {one.kind.value} "
        f"| {', '.join(f'`{label}`' for label in one.labels)} | {one.help} |"
        for one in families
    ]
    return "\n".join(rows) + "\n"
