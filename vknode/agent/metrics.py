"""The agent's metrics and debugging pages, on their own plain HTTP listener.

`GET /metrics` (Prometheus text), `/debug/timings` (JSON, see `timing.py`), `/healthz`, `/readyz`.
What there is stands in `metric_families.py`. Numbers that something else counts anyway are read
when a scraper asks (`pull`), not copied before. A family whose source is not there (yet) is served
without values, so that its name and help are always seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import msgspec
import structlog
from aiohttp import web
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

import vknode
from vknode.agent import metric_families as families
from vknode.agent.authority import Wrong
from vknode.agent.metric_families import Family, Kind
from vknode.agent.sync_core import Action
from vknode.agent.timing import SPANS, StartTimings
from vknode.pool.errors import Kind as FailureKind

log = structlog.get_logger()

# By the values of the family's labels, in its order; of one label the value alone will do, and of
# none the number.
Values = float | Mapping[str, float] | Mapping[tuple[str, str], float]
Read = Callable[[], Values]


class MetricsError(Exception):
    """The listener cannot start; the text names the setting and the fix."""


class _Pulled(Collector):
    """Families whose values are read at the time of a scrape."""

    def __init__(self, pulled: Iterable[Family]) -> None:
        self.sources: dict[Family, list[Read]] = {family: [] for family in pulled}
        self._failed: set[str] = set()

    def describe(self) -> Iterable[Metric]:
        return [_empty(family) for family in self.sources]

    def collect(self) -> Iterator[Metric]:
        for family, sources in self.sources.items():
            metric = _empty(family)
            for read in sources:
                try:
                    values = read()
                    for labels, value in _pairs(values):
                        metric.add_metric(labels, value)
                except Exception:  # a defect with one family must not hide all the others
                    if family.name not in self._failed:
                        self._failed.add(family.name)
                        log.exception("metric_not_read", metric=family.name)
            yield metric


def _empty(family: Family) -> CounterMetricFamily | GaugeMetricFamily:
    make = CounterMetricFamily if family.kind is Kind.COUNTER else GaugeMetricFamily
    return make(family.name, family.help, labels=family.labels)


def _pairs(values: Values) -> Iterator[tuple[list[str], float]]:
    if not isinstance(values, Mapping):
        yield [], values
        return
    for key, value in values.items():
        yield ([key] if isinstance(key, str) else list(key)), value


class AgentMetrics:
    """All metrics of one agent, in a registry of its own (two agents in a test do not meet)."""

    def __init__(self) -> None:
        # When each series began is of no use here, and would double their number.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        self._pushed: set[Family] = set()
        self.start_seconds = self._histogram(families.POD_START)
        self.sync_seconds = self._histogram(families.POD_SYNC)
        self.status_patch_seconds = self._histogram(families.STATUS_PATCH)
        self.pool_errors = self._counter(families.POOL_ERRORS)
        self.missing_references = self._counter(families.MISSING_REFERENCES)
        self.orphans = self._counter(families.ORPHANS_DELETED)
        self._refused = self._counter(families.PODS_REFUSED)
        self.claims_refused = self._counter(families.POOL_CLAIMS_REFUSED)
        self.brake = self._gauge(families.BRAKED_SANDBOXES)
        self._pulled = _Pulled(one for one in families.ALL if one not in self._pushed)
        self.registry.register(self._pulled)
        self.timings = StartTimings(self._started)
        # A counter that begins to exist with its first occurrence hides that from `increase`.
        for part in SPANS:
            self.start_seconds.labels(part)
        for action in Action:
            if action is not Action.NOTHING:
                self.sync_seconds.labels(action.value)
        for reason in families.REFUSAL_REASONS:
            self._refused.labels(reason)
        self.pull(families.BUILD_INFO, lambda: {vknode.__version__: 1.0})

    def refused(self, reason: str) -> None:
        """A Pod was failed for this reason."""
        self._refused.labels(families.refusal_label(reason)).inc()

    def pool_error(self, pool: str, kind: FailureKind.ValueType) -> None:
        """A pool failed a call."""
        self.pool_errors.labels(pool, _failure_label(kind)).inc()

    def pool_known(self, pool: str) -> None:
        """There is such a pool: what counts for each begins with 0."""
        self.brake.labels(pool)
        for kind in FailureKind.values()[1:]:
            self.pool_errors.labels(pool, _failure_label(kind))
        for wrong in Wrong:
            self.claims_refused.labels(pool, wrong.value)

    def pull(self, family: Family, read: Read) -> None:
        """`read` is called at each scrape; of several for one family all values are served."""
        self._pulled.sources[family].append(read)

    def text(self) -> bytes:
        """What a scraper gets."""
        return generate_latest(self.registry)

    def value(self, family: Family, *labels: str) -> float | None:
        """As a scraper would see it now; None if there is no such series."""
        found = self.registry.get_sample_value(
            family.name, dict(zip(family.labels, labels, strict=True))
        )
        return None if found is None else float(found)

    def _started(self, phases: dict[str, int]) -> None:
        for part, (first, second) in SPANS.items():
            if first in phases and second in phases:
                seconds = max(0, phases[second] - phases[first]) / 1e9
                self.start_seconds.labels(part).observe(seconds)

    def _histogram(self, family: Family) -> Histogram:
        self._pushed.add(family)
        return Histogram(
            family.name,
            family.help,
            family.labels,
            buckets=family.buckets,
            registry=self.registry,
        )

    def _counter(self, family: Family) -> Counter:
        self._pushed.add(family)
        return Counter(family.name, family.help, family.labels, registry=self.registry)

    def _gauge(self, family: Family) -> Gauge:
        self._pushed.add(family)
        return Gauge(family.name, family.help, family.labels, registry=self.registry)


def _failure_label(kind: FailureKind.ValueType) -> str:
    return FailureKind.Name(kind).removeprefix("KIND_").lower()


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

    async def _get_metrics(self, request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        body = encode(self._metrics.registry)
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _get_timings(self, _request: web.Request) -> web.Response:
        body = msgspec.json.encode(self._metrics.timings.as_json())
        return web.Response(body=body, content_type="application/json")

    async def _get_healthz(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _get_readyz(self, _request: web.Request) -> web.Response:
        if self._ready():
            return web.Response(text="ok")
        return web.Response(status=503, text="not all nodes are registered yet")
