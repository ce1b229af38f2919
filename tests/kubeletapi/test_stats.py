"""/stats/summary, the metrics and the other answers about a whole node, as readers parse them."""

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from tests.kubeletapi.conftest import Served
from vknode.kubeletapi import (
    ContainerUsage,
    NodeUsage,
    PodUsage,
    ProbeCount,
    RunningPod,
    Usage,
    VolumeUsage,
    probe_metrics,
    resource_metrics,
)
from vknode.kubeletapi.exposition import render
from vknode.kubeletapi.summary_json import summary
from vknode.kubeletapi.usage_history import SECOND, UsageHistory

START = 1_700_000_000 * SECOND
NOW = START + 20 * SECOND + 123_000_000
MIB = 1024 * 1024

WEB = PodUsage(
    "default",
    "web",
    "u-1",
    [
        ContainerUsage(
            "main",
            Usage(NOW, 2 * SECOND, 30 * MIB, 40 * MIB, 20 * MIB, 1000, 5, 3),
            started=START,
            memory_limit=64 * MIB,
            root_bytes=4096,
            log_bytes=100,
            root_inodes=7,
            log_inodes=2,
        ),
        ContainerUsage("proxy", Usage(NOW, SECOND, 10 * MIB), started=START + SECOND),
    ],
    started=START - SECOND,
    usage=Usage(NOW, 4 * SECOND, 45 * MIB, processes=4),
    received=123,
    sent=456,
    probes=[
        ProbeCount("main", "Readiness", 7, 2, 1, [6, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], 12.5),
        ProbeCount("main", "Liveness", 0, 3, 0, [0] * 12, 0.0),
    ],
    volumes=[
        VolumeUsage("data", NOW - 40 * SECOND, True, 8192, 3, 100 * MIB, 60 * MIB, 1000, 900),
        VolumeUsage("token", NOW, used=4096, inodes_used=5),
    ],
    files_bytes=512,
    files_inodes=1,
)
NODE = NodeUsage("node-1", NOW, [WEB], frozenset(["u-1"]), 1024 * MIB, 10 * MIB)
OTHER = NodeUsage("node-2", NOW, [PodUsage("default", "db", "u-2")], frozenset(["u-2"]))


def metrics(text: str) -> dict[str, list[Sample]]:
    found: dict[str, list[Sample]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample)
    return found


def only(samples: dict[str, list[Sample]], name: str) -> Sample:
    (sample,) = samples[name]
    return sample


async def get_json(served: Served, path: str, port: int, **query: str) -> Any:
    status, text = await served.get(path, port, **query)
    assert status == 200, text
    return json.loads(text)


@pytest.fixture
async def ports(served: Served) -> tuple[int, int]:
    served.nodes.names = ["node-1", "node-2"]
    served.nodes.usage = {"node-1": NODE, "node-2": OTHER}
    return await served.api.open_node("node-1"), await served.api.open_node("node-2")


async def test_summary(served: Served, ports: tuple[int, int]) -> None:
    body = await get_json(served, "/stats/summary", ports[0])
    node = body["node"]
    assert node["nodeName"] == "node-1"
    assert node["cpu"] == {
        "time": "2023-11-14T22:13:40Z",
        "usageNanoCores": 4 * SECOND * SECOND // (NOW - START + SECOND),
        "usageCoreNanoSeconds": 4 * SECOND,
    }
    assert node["memory"]["workingSetBytes"] == 45 * MIB
    assert node["memory"]["availableBytes"] == (1024 - 45) * MIB
    assert node["fs"]["capacityBytes"] == 10 * MIB
    assert (node["fs"]["usedBytes"], node["fs"]["inodesUsed"]) == (12900, 13)
    assert node["fs"]["availableBytes"] == 10 * MIB - 12900
    assert (node["network"]["rxBytes"], node["network"]["txBytes"]) == (123, 456)
    (pod,) = body["pods"]
    assert pod["podRef"] == {"name": "web", "namespace": "default", "uid": "u-1"}
    assert pod["startTime"] == "2023-11-14T22:13:19Z"
    assert pod["cpu"]["usageCoreNanoSeconds"] == 4 * SECOND
    assert pod["memory"]["workingSetBytes"] == 45 * MIB
    assert "availableBytes" not in pod["memory"], "no limit of the Pod: one container has none"
    assert pod["network"]["interfaces"] == [{"name": "eth0", "rxBytes": 123, "txBytes": 456}]
    # Writable layers, logs, the hosts file and those volumes that are local.
    storage = pod["ephemeral-storage"]
    assert (storage["usedBytes"], storage["inodesUsed"]) == (4096 + 100 + 512 + 8192, 7 + 2 + 1 + 3)
    assert pod["volume"] == [
        {
            "time": "2023-11-14T22:13:00Z",
            "availableBytes": 60 * MIB,
            "capacityBytes": 100 * MIB,
            "usedBytes": 8192,
            "inodesFree": 900,
            "inodes": 1000,
            "inodesUsed": 3,
            "name": "data",
        },
        {"time": "2023-11-14T22:13:40Z", "usedBytes": 4096, "inodesUsed": 5, "name": "token"},
    ]
    assert pod["process_stats"] == {"process_count": 4}
    main, proxy = pod["containers"]
    assert (main["name"], main["startTime"]) == ("main", "2023-11-14T22:13:20Z")
    assert main["cpu"]["usageNanoCores"] == 2 * SECOND * SECOND // (NOW - START)
    assert main["memory"] == {
        "time": "2023-11-14T22:13:40Z",
        "availableBytes": 34 * MIB,
        "usageBytes": 40 * MIB,
        "workingSetBytes": 30 * MIB,
        "rssBytes": 20 * MIB,
        "pageFaults": 1000,
        "majorPageFaults": 5,
    }
    assert (main["rootfs"]["usedBytes"], main["logs"]["usedBytes"]) == (4096, 100)
    assert (main["rootfs"]["inodesUsed"], main["logs"]["inodesUsed"]) == (7, 2)
    assert "rootfs" not in proxy and "availableBytes" not in proxy["memory"]


async def test_summary_of_cpu_and_memory_alone(served: Served, ports: tuple[int, int]) -> None:
    body = await get_json(served, "/stats/summary", ports[0], only_cpu_and_memory="true")
    assert set(body["node"]) == {"nodeName", "startTime", "cpu", "memory"}
    (pod,) = body["pods"]
    assert set(pod) == {"podRef", "startTime", "containers", "cpu", "memory"}
    assert set(pod["containers"][0]) == {"name", "startTime", "cpu", "memory"}
    url = f"https://127.0.0.1:{ports[0]}/stats/summary"
    async with served.http.post(url, data={"only_cpu_and_memory": "true"}) as response:
        assert await response.json() == body, "a kubelet takes POST as well"


async def test_each_node_has_its_own_numbers(served: Served, ports: tuple[int, int]) -> None:
    body = await get_json(served, "/stats/summary", ports[1])
    assert body["node"]["nodeName"] == "node-2"
    assert body["pods"] == [], "a Pod of which nothing is known yet is left out"
    text = (await served.get("/metrics/resource", ports[1]))[1]
    assert "web" not in text
    # metrics-server would take a 0 for a failed measurement.
    assert 0 < only(metrics(text), "node_cpu_usage_seconds_total").value < 1e-6
    assert only(metrics(text), "node_memory_working_set_bytes").value == 1


async def test_resource_metrics(served: Served, ports: tuple[int, int]) -> None:
    url = f"https://127.0.0.1:{ports[0]}/metrics/resource"
    async with served.http.get(url) as response:
        assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        text = await response.text()
    found = metrics(text)
    assert set(found) == {
        "node_cpu_usage_seconds_total",
        "node_memory_working_set_bytes",
        "container_cpu_usage_seconds_total",
        "container_memory_working_set_bytes",
        "container_start_time_seconds",
        "pod_cpu_usage_seconds_total",
        "pod_memory_working_set_bytes",
        "resource_scrape_error",
    }
    assert "# TYPE node_cpu_usage_seconds_total counter" in text
    assert "# TYPE container_start_time_seconds gauge" in text
    cpu = only(found, "node_cpu_usage_seconds_total")
    assert (cpu.value, cpu.labels) == (4.0, {})
    assert cpu.timestamp == pytest.approx(NOW / SECOND, abs=0.002)
    main = found["container_cpu_usage_seconds_total"][0]
    assert main.labels == {"container": "main", "pod": "web", "namespace": "default"}
    assert main.value == 2.0
    assert main.timestamp == pytest.approx(NOW / SECOND, abs=0.002)
    start = found["container_start_time_seconds"][0]
    assert (start.value, start.timestamp) == (START / SECOND, None)
    assert only(found, "pod_memory_working_set_bytes").labels == {
        "pod": "web",
        "namespace": "default",
    }
    assert only(found, "resource_scrape_error").value == 0


async def test_a_pool_that_does_not_answer(served: Served, ports: tuple[int, int]) -> None:
    served.nodes.error = "pool az1: not reachable"
    status, text = await served.get("/metrics/resource", ports[0])
    found = metrics(text)
    assert (status, set(found)) == (200, {"resource_scrape_error"})
    assert only(found, "resource_scrape_error").value == 1
    for path in ("/stats/summary", "/metrics/probes"):
        assert await served.get(path, ports[0]) == (
            500,
            "Internal Error: failed to list pod stats: pool az1: not reachable",
        )
    served.nodes.error = ""
    assert (await served.get("/stats/summary", ports[0]))[0] == 200, "a failure is not remembered"


async def test_probe_metrics(served: Served, ports: tuple[int, int]) -> None:
    found = metrics((await served.get("/metrics/probes", ports[0]))[1])
    results = {
        (sample.labels["probe_type"], sample.labels["result"]): sample.value
        for sample in found["prober_probe_total"]
    }
    assert results == {
        ("Readiness", "successful"): 7,
        ("Readiness", "failed"): 2,
        ("Readiness", "unknown"): 1,
        ("Liveness", "failed"): 3,
    }
    assert (
        found["prober_probe_total"][0].labels.items()
        >= {
            "container": "main",
            "pod": "web",
            "namespace": "default",
            "pod_uid": "u-1",
        }.items()
    )
    buckets = {
        sample.labels["le"]: sample.value
        for sample in found["prober_probe_duration_seconds_bucket"]
    }
    assert (buckets["0.005"], buckets["0.01"], buckets["10.0"], buckets["+Inf"]) == (6, 7, 7, 8)
    assert only(found, "prober_probe_duration_seconds_count").value == 8
    assert only(found, "prober_probe_duration_seconds_sum").value == 12.5
    assert not metrics((await served.get("/metrics/probes", ports[1]))[1])


async def test_kubelets_own_metrics(served: Served, ports: tuple[int, int]) -> None:
    served.nodes.running = {
        "node-1": [RunningPod("default", "web", "u-1", {"main": "busybox"}, exited=1)]
    }
    found = metrics((await served.get("/metrics", ports[0]))[1])
    assert only(found, "kubelet_node_name").labels == {"node": "node-1"}
    assert only(found, "kubelet_running_pods").value == 1
    assert only(found, "kubelet_desired_pods").value == 2
    assert {s.labels["container_state"]: s.value for s in found["kubelet_running_containers"]} == {
        "running": 1,
        "exited": 1,
    }
    assert only(found, "process_start_time_seconds").value > 1_700_000_000
    together = metrics((await served.get("/metrics"))[1])
    assert {s.labels["node"]: s.value for s in together["kubelet_running_pods"]} == {
        "node-1": 1,
        "node-2": 0,
    }


async def test_the_shared_port_gives_no_nodes_usage(served: Served, ports: tuple[int, int]) -> None:
    for path in ("/stats/summary", "/metrics/resource", "/metrics/probes", "/configz"):
        status, text = await served.get(path)
        assert status == 404
        assert "this port serves 2 nodes; ask a node's own" in text
    served.nodes.names = ["node-1"]
    assert (await served.get("/stats/summary"))[0] == 200, "there is only one it can mean"
    assert (await served.get("/stats/summary", ports[1])) == (404, "the node of this port has gone")


async def test_many_at_once_ask_the_pool_once(served: Served, ports: tuple[int, int]) -> None:
    served.nodes.go.clear()
    paths = ("/stats/summary", "/metrics/resource", "/metrics/probes") * 5
    asking = [asyncio.create_task(served.get(path, ports[0])) for path in paths]
    leaving = asyncio.create_task(served.get("/stats/summary", ports[0]))
    running = served.api.counts.running
    async with asyncio.timeout(60):
        # An answer is good for a second, however long it takes the last of them to come.
        while not served.nodes.asked or running["stats"] + running["metrics"] < len(paths) + 1:
            await asyncio.sleep(0)
    for _ in range(20):  # and until each of them waits for the pool
        await asyncio.sleep(0)
    leaving.cancel()
    served.nodes.go.set()
    assert {status for status, _ in await asyncio.gather(*asking)} == {200}
    assert served.nodes.asked == ["node-1"]
    await served.api.close_node("node-1")


async def test_configz(served: Served, ports: tuple[int, int]) -> None:
    body = await get_json(served, "/configz", ports[0])
    assert body == {"kubeletconfig": {"kind": "KubeletConfiguration", "maxPods": 110}}


async def test_running_pods(served: Served, ports: tuple[int, int]) -> None:
    served.nodes.running = {
        "node-1": [RunningPod("default", "web", "u-1", {"main": "busybox"})],
        "node-2": [RunningPod("default", "db", "u-2", {})],
    }
    body = await get_json(served, "/runningpods/", ports[0])
    assert (body["kind"], body["apiVersion"]) == ("PodList", "v1")
    (item,) = body["items"]
    assert item["metadata"] == {"name": "web", "namespace": "default", "uid": "u-1"}
    (container,) = item["spec"]["containers"]
    assert (container["name"], container["image"]) == ("main", "busybox")
    assert len((await get_json(served, "/runningpods/", 0))["items"]) == 2


@pytest.mark.parametrize(
    ("method", "path", "text"),
    [
        ("GET", "/logs/", "logs endpoint is disabled.\n"),
        ("GET", "/logs/syslog", "logs endpoint is disabled.\n"),
        ("POST", "/run/default/web/main?cmd=id", "Debug endpoints are disabled.\n"),
        ("GET", "/run/default/web/main?cmd=id", "Debug endpoints are disabled.\n"),
        ("POST", "/run/default/web/u-1/main?cmd=id", "Debug endpoints are disabled.\n"),
        ("GET", "/debug/pprof/heap", "profiling endpoint is disabled.\n"),
        ("PUT", "/debug/flags/v", "flags endpoint is disabled.\n"),
    ],
)
async def test_what_is_switched_off(served: Served, method: str, path: str, text: str) -> None:
    served.backend.add("web")
    async with served.http.request(method, served.url + path) as response:
        assert (response.status, await response.text()) == (405, text)
    assert not served.backend.sessions, "nothing was run"


async def test_health(served: Served) -> None:
    for path in ("/healthz", "/healthz/ping", "/healthz/syncloop", "/healthz/log"):
        assert await served.get(path) == (200, "ok")
    status, text = await served.get("/healthz", verbose="")
    assert (status, text.splitlines()[-1]) == (200, "healthz check passed")
    assert (await served.get("/healthz/other"))[0] == 404


SIZES = st.none() | st.integers(0, 2**63)
USAGES = st.builds(
    Usage,
    at=st.integers(START, START + 3600 * SECOND),
    cpu=st.integers(0, 2**62),
    working_set=st.integers(0, 2**62),
    memory=SIZES,
    rss=SIZES,
    page_faults=SIZES,
    major_page_faults=SIZES,
    processes=SIZES,
)
NAMES = st.text('abc-"\\\n', min_size=1, max_size=6)
CONTAINERS = st.builds(
    ContainerUsage,
    name=NAMES,
    usage=USAGES,
    started=st.none() | st.integers(START, START + SECOND),
    memory_limit=SIZES,
    root_bytes=SIZES,
    log_bytes=SIZES,
    root_inodes=SIZES,
    log_inodes=SIZES,
)
VOLUMES = st.builds(
    VolumeUsage,
    name=NAMES,
    at=st.integers(START, START + 3600 * SECOND),
    local=st.booleans(),
    used=SIZES,
    inodes_used=SIZES,
    capacity=SIZES,
    available=SIZES,
    inodes=SIZES,
    inodes_free=SIZES,
)
PROBES = st.builds(
    ProbeCount,
    container=NAMES,
    type=st.sampled_from(["Startup", "Readiness", "Liveness"]),
    successful=st.integers(0, 2**40),
    failed=st.integers(0, 2**40),
    unknown=st.integers(0, 2**40),
    buckets=st.lists(st.integers(0, 2**40), min_size=12, max_size=12),
    seconds=st.floats(0, 1e9),
)
PODS = st.builds(
    PodUsage,
    namespace=NAMES,
    name=NAMES,
    uid=NAMES,
    containers=st.lists(CONTAINERS, max_size=3, unique_by=lambda one: one.name),
    started=st.none() | st.integers(START, START + SECOND),
    usage=st.none() | USAGES,
    memory_limit=SIZES,
    received=SIZES,
    sent=SIZES,
    probes=st.lists(PROBES, max_size=2),
    volumes=st.lists(VOLUMES, max_size=2),
    files_bytes=SIZES,
    files_inodes=SIZES,
)
ROUNDS = st.lists(
    st.builds(
        NodeUsage,
        node=NAMES,
        at=st.integers(START, START + 3600 * SECOND),
        pods=st.lists(PODS, max_size=3, unique_by=lambda pod: pod.uid),
        living=st.frozensets(NAMES, max_size=3),
        memory_capacity=SIZES,
        storage_capacity=SIZES,
    ),
    min_size=1,
    max_size=4,
)


def check_unsigned(value: Any) -> None:
    """Go's types have no negative number anywhere, and no null."""
    if isinstance(value, dict):
        for item in value.values():
            check_unsigned(item)
    elif isinstance(value, list):
        for item in value:
            check_unsigned(item)
    else:
        assert isinstance(value, str) or (isinstance(value, int) and value >= 0)


@settings(deadline=None, max_examples=60)
@given(ROUNDS)
def test_every_measurement_can_be_read(rounds: list[NodeUsage]) -> None:
    history = UsageHistory()
    for usage in rounds:
        report = history.take(usage)
        for only_cpu_and_memory in (False, True):
            body = json.loads(json.dumps(summary(report, only_cpu_and_memory=only_cpu_and_memory)))
            check_unsigned(body)
            assert [pod["podRef"]["uid"] for pod in body["pods"]] == [
                pod.uid for pod in usage.pods if pod.containers or pod.usage
            ]
        found = metrics(render(resource_metrics.families(report)).decode())
        told = [
            (sample.labels["namespace"], sample.labels["pod"], sample.labels["container"])
            for sample in found.get("container_memory_working_set_bytes", [])
        ]
        assert told == [(p.namespace, p.name, c.name) for p in usage.pods for c in p.containers]
        probed = metrics(render(probe_metrics.families(usage.pods)).decode())
        assert sum(sample.value for sample in probed.get("prober_probe_total", [])) == sum(
            probe.successful + probe.failed + probe.unknown
            for pod in usage.pods
            for probe in pod.probes
        )
