"""GET /metrics/resource: what metrics-server asks every node for, about every 15 s.

Names, labels, types and timestamps as of pkg/kubelet/metrics/collectors/resource_metrics.go in
Kubernetes 1.37. A pool that does not answer is no failed request but `resource_scrape_error 1`
and nothing else. Its old name `scrape_error` is hidden in 1.37. Swap is left out: pools do not
tell it.

An idle node uses nothing, which no machine ever does: metrics-server takes a 0 for a failed
measurement and shows `<unknown>`. So a node tells at least one byte and one nanosecond.
"""

from __future__ import annotations

from collections.abc import Iterator

import structlog
from aiohttp import web
from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from vknode.kubeletapi.backend import BackendError
from vknode.kubeletapi.exposition import metrics_response
from vknode.kubeletapi.measuring import Measuring
from vknode.kubeletapi.one_node import OneNode
from vknode.kubeletapi.summary_json import memory_of, node_working_set
from vknode.kubeletapi.usage_history import SECOND, Report

_log = structlog.get_logger()
_LEAST = 1
_CONTAINER = ("container", "pod", "namespace")
_POD = ("pod", "namespace")


class ResourceMetrics:
    """CPU and memory of one node's Pods."""

    def __init__(self, measuring: Measuring, one_node: OneNode) -> None:
        self._measuring = measuring
        self._one_node = one_node

    def add_routes(self, router: web.UrlDispatcher) -> None:
        router.add_get("/metrics/resource", self._handle, allow_head=False)

    async def _handle(self, request: web.Request) -> web.Response:
        node = self._one_node.of(request)
        if isinstance(node, web.Response):
            return node
        try:
            report = await self._measuring.report(node)
        except BackendError as error:
            _log.warning("usage_not_known", node=node, reason=str(error))
            report = None
        return metrics_response(families(report))


def families(report: Report | None) -> Iterator[Metric]:
    """None: the pool could not be asked."""
    if report is not None:
        yield from _node(report)
        yield from _containers(report)
        yield from _pods(report)
    yield GaugeMetricFamily(
        "resource_scrape_error",
        "1 where the pool could not be asked, else 0",
        value=float(report is None),
    )


def _seconds(nanoseconds: int) -> float:
    return nanoseconds / SECOND


def _node(report: Report) -> Iterator[Metric]:
    at = _seconds(report.node.at)
    cpu = CounterMetricFamily("node_cpu_usage_seconds", "CPU time of the node's Pods")
    cpu.add_metric((), _seconds(max(_LEAST, report.node.total)), timestamp=at)
    yield cpu
    memory = GaugeMetricFamily("node_memory_working_set_bytes", "Working set of the node's Pods")
    memory.add_metric((), max(_LEAST, node_working_set(report.usage)), timestamp=at)
    yield memory


def _containers(report: Report) -> Iterator[Metric]:
    cpu = CounterMetricFamily(
        "container_cpu_usage_seconds", "CPU time of the container", labels=_CONTAINER
    )
    memory = GaugeMetricFamily(
        "container_memory_working_set_bytes", "Working set of the container", labels=_CONTAINER
    )
    # A kubelet gives this one no timestamp.
    start = GaugeMetricFamily(
        "container_start_time_seconds", "Start of the container, Unix time", labels=_CONTAINER
    )
    for pod in report.usage.pods:
        for one in pod.containers:
            labels = (one.name, pod.name, pod.namespace)
            used, at = report.containers[pod.uid, one.name], _seconds(one.usage.at)
            cpu.add_metric(labels, _seconds(used.total), timestamp=at)
            memory.add_metric(labels, one.usage.working_set, timestamp=at)
            if one.started is not None:
                start.add_metric(labels, _seconds(one.started))
    yield from (start, cpu, memory)


def _pods(report: Report) -> Iterator[Metric]:
    cpu = CounterMetricFamily("pod_cpu_usage_seconds", "CPU time of the Pod", labels=_POD)
    memory = GaugeMetricFamily(
        "pod_memory_working_set_bytes", "Working set of the Pod", labels=_POD
    )
    for pod in report.usage.pods:
        labels = (pod.name, pod.namespace)
        used = report.pods.get(pod.uid)
        if used is not None:
            cpu.add_metric(labels, _seconds(used.total), timestamp=_seconds(used.at))
        if (found := memory_of(pod)) is not None:
            memory.add_metric(labels, found.working_set, timestamp=_seconds(found.at))
    yield from (cpu, memory)
