"""GET /metrics: what dashboards and alerts for kubelets look for on every node.

The names are a kubelet's (pkg/kubelet/metrics/metrics.go). Most of its metrics tell of its own
work loops, cgroups and disks; a virtual node has none of these, and the agent's work is told once,
for all nodes, by the agent's own metrics. On the shared port each node has its own lines.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from aiohttp import web
from prometheus_client import PROCESS_COLLECTOR, Metric
from prometheus_client.core import GaugeMetricFamily

from vknode.kubeletapi.exposition import metrics_response
from vknode.kubeletapi.node_identity import node_of
from vknode.kubeletapi.usage import NodeBackend, RunningPod


class KubeletMetrics:
    """Counts of Pods and containers, from memory."""

    def __init__(self, backend: NodeBackend) -> None:
        self._backend = backend

    def add_routes(self, router: web.UrlDispatcher) -> None:
        router.add_get("/metrics", self._handle, allow_head=False)

    async def _handle(self, request: web.Request) -> web.Response:
        asked = node_of(request)
        backend = self._backend
        nodes = backend.nodes() if asked is None else [asked] if backend.has_node(asked) else []
        found = {name: (backend.desired_pods(name), backend.running_pods(name)) for name in nodes}
        return metrics_response((*families(found), *PROCESS_COLLECTOR.collect()))


def families(nodes: Mapping[str, tuple[int, Sequence[RunningPod]]]) -> Iterator[Metric]:
    """By node: how many Pods are bound to it, and those that its pool runs. One node has no label
    `node` but in `kubelet_node_name`, as on a kubelet."""
    many = len(nodes) > 1
    by_node = ("node",) if many else ()
    name = GaugeMetricFamily("kubelet_node_name", "The node; always 1", labels=("node",))
    desired = GaugeMetricFamily("kubelet_desired_pods", "Pods of the node", labels=by_node)
    running = GaugeMetricFamily("kubelet_running_pods", "Pods that the pool runs", labels=by_node)
    containers = GaugeMetricFamily(
        "kubelet_running_containers",
        "Containers that the pool has, by state",
        labels=(*by_node, "container_state"),
    )
    for node, (wanted, pods) in nodes.items():
        labels = (node,) if many else ()
        name.add_metric((node,), 1)
        desired.add_metric(labels, wanted)
        running.add_metric(labels, len(pods))
        for state, count in _states(pods):
            containers.add_metric((*labels, state), count)
    yield from (name, desired, running, containers)


def _states(pods: Iterable[RunningPod]) -> list[tuple[str, int]]:
    pods = list(pods)
    return [
        ("exited", sum(pod.exited for pod in pods)),
        ("running", sum(len(pod.images) for pod in pods)),
    ]
