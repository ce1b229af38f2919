"""The agent's metrics and debugging pages, on their own plain HTTP listener.

`GET /metrics` (Prometheus text), `/debug/timings` (JSON, see `timing.py`), `/healthz`. Numbers
that something else counts anyway are read when a scraper asks (`Gauges`), not copied before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import msgspec
from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from vknode.agent.timing import SPANS, StartTimings

_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120)


class MetricsError(Exception):
    """The listener cannot start; the text names the setting and the fix."""


class _Pulled(Collector):
    """Values read at the time of a scrape: name -> (help, kind, function)."""

    def __init__(self) -> None:
        self.sources: dict[str, tuple[str, type[Metric], Callable[[], Mapping[str, float]]]] = {}

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        for name, (text, kind, read) in self.sources.items():
            family: CounterMetricFamily | GaugeMetricFamily
            if kind is CounterMetricFamily:
                family = CounterMetricFamily(name, text, labels=["what"])
            else:
                family = GaugeMetricFamily(name, text, labels=["what"])
            for label, value in read().items():
                family.add_metric([label], value)
            yield family


class AgentMetrics:
    """All metrics of one agent, in a registry of its own (two agents in a test do not meet)."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._pulled = _Pulled()
        self.registry.register(self._pulled)
        self.start_seconds = Histogram(
            "vknode_pod_start_seconds",
            "Time of a part of a Pod's start (see vknode/agent/timing.py)",
            ["part"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.syncs = Counter(
            "vknode_pod_syncs", "Steps carried out for Pods", ["action"], registry=self.registry
        )
        self.refused = Counter(
            "vknode_pods_refused", "Pods failed by the agent", ["reason"], registry=self.registry
        )
        self.pool_errors = Counter(
            "vknode_pool_errors", "Failed calls to pools", ["pool", "kind"], registry=self.registry
        )
        self.missing_references = Counter(
            "vknode_missing_references",
            "Syncs put off because something that the Pod names is missing",
            registry=self.registry,
        )
        self.brake = Gauge(
            "vknode_deletion_brake",
            "Orphaned sandboxes that the brake holds back",
            ["pool"],
            registry=self.registry,
        )
        self.orphans = Counter(
            "vknode_orphans_collected", "Orphaned sandboxes deleted", registry=self.registry
        )
        self.timings = StartTimings(self._started)

    def _started(self, phases: dict[str, int]) -> None:
        for part, (first, second) in SPANS.items():
            if first in phases and second in phases:
                seconds = max(0, phases[second] - phases[first]) / 1e9
                self.start_seconds.labels(part).observe(seconds)

    def pull_gauge(self, name: str, text: str, read: Callable[[], Mapping[str, float]]) -> None:
        """A gauge with the label `what`, read at each scrape."""
        self._pulled.sources[name] = (text, GaugeMetricFamily, read)

    def pull_counter(self, name: str, text: str, read: Callable[[], Mapping[str, float]]) -> None:
        self._pulled.sources[name] = (text, CounterMetricFamily, read)


class MetricsServer:
    """Serves between `start` and `stop`."""

    def __init__(self, metrics: AgentMetrics, ready: Callable[[], bool]) -> None:
        self._metrics = metrics
        self._ready = ready
        app = web.Application()
        app.router.add_get("/metrics", self._get_metrics)
        app.router.add_get("/debug/timings", self._get_timings)
        app.router.add_get("/healthz", self._get_healthz)
        app.router.add_get("/readyz", self._get_readyz)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)

    async def start(self, listen: str) -> tuple[str, int]:
        """`listen` is HOST:PORT; returns the address. Raises `MetricsError`."""
        host, _, port = listen.rpartition(":")
        host = host.strip("[]")
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, int(port))
        try:
            await site.start()
        except OSError as error:
            await self._runner.cleanup()
            raise MetricsError(
                f"metrics.listen: cannot listen on {listen}: {error.strerror or error}; "
                "choose a free port, 0 for any, or an empty text for none"
            ) from None
        address = self._runner.addresses[0]
        return address[0], address[1]

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _get_metrics(self, _request: web.Request) -> web.Response:
        body = generate_latest(self._metrics.registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _get_timings(self, _request: web.Request) -> web.Response:
        body = msgspec.json.encode(self._metrics.timings.as_json())
        return web.Response(body=body, content_type="application/json")

    async def _get_healthz(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _get_readyz(self, _request: web.Request) -> web.Response:
        if self._ready():
            return web.Response(text="ok")
        return web.Response(status=503, text="not all nodes are registered yet")
