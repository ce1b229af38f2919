"""What a scraper gets: every metric that is promised, by its documented name, and few series."""

from __future__ import annotations

import re
from pathlib import Path

from aiohttp import ClientSession
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families

from tests.monitoring.documents import PAGE, with_table
from tests.monitoring.scene import CELLS, DAY, POOLS, Scene, write_certificate
from vknode.agent import metric_families as families
from vknode.agent.certificate_expiry import CertificateExpiry
from vknode.agent.metric_families import ALL, Kind, refusal_label
from vknode.agent.metrics import AgentMetrics, MetricsServer
from vknode.agent.node_counts import READINESS


def test_the_docs_have_the_table_of_the_code() -> None:
    page = PAGE.read_text()
    assert page == with_table(page), "run `python -m tests.monitoring`"


def test_names_follow_prometheus_conventions() -> None:
    names = [one.name for one in ALL]
    assert len(set(names)) == len(names) > 40
    for one in ALL:
        assert re.fullmatch(r"vknode_[a-z_]+", one.name)
        assert one.help.endswith((".", "?")), one.name
        assert one.name.endswith("_total") == (one.kind is Kind.COUNTER), one.name
        if one.kind is Kind.HISTOGRAM:
            assert one.name.endswith("_seconds")
            assert list(one.buckets) == sorted(one.buckets)
        for label in one.labels:
            assert re.fullmatch(r"[a-z]+", label)


async def test_an_agent_serves_all_of_them_and_no_others(scene: Scene) -> None:
    scene.refresher.watches.watch_stats.last_heard = 0.0
    served = {}
    for metric in text_string_to_metric_families(scene.text()):
        name = metric.name + ("_total" if metric.type == "counter" else "")
        if name.startswith("vknode_"):
            served[name] = metric
    assert set(served) == {one.name for one in ALL}
    for one in ALL:
        metric = served[one.name]
        assert (metric.type, metric.documentation) == (one.kind.value, one.help)
        # Counts of what has not happened yet with a label of its own have no series.
        assert metric.samples, one.name
        for sample in metric.samples:
            assert set(sample.labels) - {"le"} == set(one.labels), sample


async def test_the_processs_own_are_there_too(scene: Scene) -> None:
    text = scene.text()
    for name in ("process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"):
        assert re.search(rf"^{name} ", text, re.MULTILINE), name
    assert "python_info{" in text and "python_gc_collections_total{" in text


async def test_nodes_are_counted_by_pool_and_why_they_are_not_ready(scene: Scene) -> None:
    scene.node("az1", "a", "False", "PoolUnreachable")
    scene.node("az1", "b", "False", "DiskBroken")  # worded by the pool
    scene.node("az2", "a", "Unknown", "NodeStatusUnknown")
    found = {
        (pool, why): scene.metrics.value(families.NODES, pool, why)
        for pool in POOLS
        for why in READINESS
    }
    assert {key: count for key, count in found.items() if count} == {
        ("az1", "pool_unreachable"): 1,
        ("az1", "cell_unhealthy"): 1,
        ("az2", "unknown"): 1,
        ("az2", "ready"): 1,
    }
    assert len(found) == len(POOLS) * len(READINESS) and None not in found.values()
    assert len(CELLS) * len(POOLS) == sum(count or 0 for count in found.values())


@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyz./-0123456789", min_size=1))
def test_names_of_extended_resources_make_no_series(resource: str) -> None:
    known = families.REFUSAL_REASONS | {"OutOfExtendedResources", "Other"}
    assert refusal_label(f"OutOf{resource}") in known
    assert refusal_label(resource) in known


async def test_users_and_pools_cannot_add_series(scene: Scene) -> None:
    def series() -> int:
        return sum(len(one.samples) for one in text_string_to_metric_families(scene.text()))

    scene.metrics.refused("OutOfexample.com/first")
    before = series()
    for number in range(500):
        scene.metrics.refused(f"OutOfexample.com/gpu-{number}")
        scene.metrics.refused(f"Reason{number}")
        scene.node("az1", "a", "False", f"Reason{number}")
    assert series() <= before + 1
    assert scene.metrics.value(families.PODS_REFUSED, "OutOfExtendedResources") == 501
    assert scene.metrics.value(families.PODS_REFUSED, "Other") == 500


async def test_a_source_that_fails_hides_nothing_else(scene: Scene) -> None:
    def broken() -> float:
        raise RuntimeError("a defect")

    scene.metrics.pull(families.LEASES, broken)
    assert scene.metrics.value(families.READY) == 1
    assert scene.metrics.value(families.LEASES) == len(POOLS) * len(CELLS)


def test_a_certificate_that_was_renewed_is_seen_and_one_that_is_gone_alarms(
    tmp_path: Path,
) -> None:
    file = tmp_path / "serving.pem"
    expiry = CertificateExpiry()
    expiry.add("kubelet_serving", "", file)
    assert expiry.read() == {("kubelet_serving", ""): 0}
    write_certificate(file, 10 * DAY, 20 * DAY)  # a chain is as good as its weakest part
    assert expiry.read() == {("kubelet_serving", ""): 10 * DAY}
    write_certificate(file, 30 * DAY)
    assert expiry.read() == {("kubelet_serving", ""): 30 * DAY}
    file.write_text("half a fi")
    assert expiry.read() == {("kubelet_serving", ""): 0}


def test_of_several_cas_one_that_has_expired_is_no_alarm_while_others_serve(
    tmp_path: Path,
) -> None:
    now = 0.0
    file = tmp_path / "ca.pem"
    expiry = CertificateExpiry(clock=lambda: now)
    expiry.add("pool_ca", "az1", file, bundle=True)
    write_certificate(file, 10 * DAY, 20 * DAY)
    assert expiry.read() == {("pool_ca", "az1"): 10 * DAY}
    now = 11 * DAY
    assert expiry.read() == {("pool_ca", "az1"): 20 * DAY}
    now = 21 * DAY
    assert expiry.read() == {("pool_ca", "az1"): 20 * DAY}


async def test_scrapers_of_both_formats_are_served() -> None:
    metrics = AgentMetrics()
    metrics.refused("PoolRefused")
    server = MetricsServer(metrics, lambda: True)
    host, port = await server.start("127.0.0.1:0")
    try:
        async with ClientSession() as session:
            url = f"http://{host}:{port}/metrics"
            for kind, parse in (
                ("text/plain", text_string_to_metric_families),
                ("application/openmetrics-text", openmetrics_families),
            ):
                async with session.get(url, headers={"Accept": kind}) as answer:
                    assert answer.status == 200 and answer.content_type == kind
                    (refused,) = (
                        one
                        for one in parse(await answer.text())
                        if one.name == "vknode_pods_refused"
                    )
                counts = {sample.labels["reason"]: sample.value for sample in refused.samples}
                assert counts["PoolRefused"] == 1 and counts["SandboxLost"] == 0
    finally:
        await server.stop()
