"""GET /metrics/probes: how the probes of one node's Pods have gone.

As pkg/kubelet/prober/prober_manager.go in Kubernetes 1.37 counts: `prober_probe_total` by result,
and `prober_probe_duration_seconds` of all answers but failures. The pool asks the probes, so it is
the pool that has the numbers; they begin anew with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate

from aiohttp import web
from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

from vknode.kubeletapi.backend import BackendError
from vknode.kubeletapi.exposition import metrics_response
from vknode.kubeletapi.measuring import Measuring
from vknode.kubeletapi.one_node import OneNode
from vknode.kubeletapi.responses import plain_error
from vknode.kubeletapi.usage import PROBE_BOUNDS, PodUsage

_BOUNDS = (*(str(bound) for bound in PROBE_BOUNDS), "+Inf")


class ProbeMetrics:
    """Counters of probes, from the pool."""

    def __init__(self, measuring: Measuring, one_node: OneNode) -> None:
        self._measuring = measuring
        self._one_node = one_node

    def add_routes(self, router: web.UrlDispatcher) -> None:
        router.add_get("/metrics/probes", self._handle, allow_head=False)

    async def _handle(self, request: web.Request) -> web.Response:
        node = self._one_node.of(request)
        if isinstance(node, web.Response):
            return node
        try:
            report = await self._measuring.report(node)
        except BackendError as error:
            # Counters that are missing are no zeros: the reader keeps what it has.
            return plain_error(500, f"Internal Error: failed to list pod stats: {error}")
        return metrics_response(families(report.usage.pods))


def families(pods: Iterable[PodUsage]) -> Iterator[Metric]:
    results = CounterMetricFamily(
        "prober_probe",
        "Answers of a startup, readiness or liveness probe, by result",
        labels=("probe_type", "result", "container", "pod", "namespace", "pod_uid"),
    )
    durations = HistogramMetricFamily(
        "prober_probe_duration_seconds",
        "How long a probe took that did not fail",
        labels=("probe_type", "container", "pod", "namespace"),
    )
    for pod in pods:
        for probe in pod.probes:
            for result, count in (
                ("successful", probe.successful),
                ("failed", probe.failed),
                ("unknown", probe.unknown),
            ):
                if count:
                    results.add_metric(
                        (probe.type, result, probe.container, pod.name, pod.namespace, pod.uid),
                        count,
                    )
            if sum(probe.buckets):
                durations.add_metric(
                    (probe.type, probe.container, pod.name, pod.namespace),
                    list(zip(_BOUNDS, accumulate(probe.buckets), strict=True)),
                    probe.seconds,
                )
    yield from (results, durations)
