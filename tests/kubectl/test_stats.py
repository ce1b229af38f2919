"""What operators and collectors read of each node through the API server, from real containers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from tests.support.fixtures import Running
from tests.support.kube import Kube, Object, simple_pod
from tests.support.until import until

pytestmark = [pytest.mark.cluster, pytest.mark.containerd]

MIB = 1024 * 1024
A, B = "az1-a", "az2-b"
BUSY = ("sh", "-c", "while :; do :; done")


def on(node: str, name: str, *command: str, **options: Any) -> Object:
    selector = {"kubernetes.io/hostname": node}
    return simple_pod(name, command or ("sleep", "3600"), nodeSelector=selector, **options)


def asked(kube: Kube, node: str, path: str) -> str:
    return kube.out("get", "--raw", f"/api/v1/nodes/{node}/proxy/{path}")


def summary(kube: Kube, node: str, query: str = "") -> Any:
    return json.loads(asked(kube, node, "stats/summary" + query))


def pods_of(kube: Kube, found: Any) -> dict[str, Any]:
    """A summary's Pods of this test, by name."""
    return {
        pod["podRef"]["name"]: pod
        for pod in found["pods"]
        if pod["podRef"]["namespace"] == kube.namespace
    }


def samples(text: str, name: str) -> list[Sample]:
    return [
        sample
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    ]


def ports(kube: Kube) -> dict[str, int]:
    return {
        node["metadata"]["name"]: node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"]
        for node in kube.items("nodes")
    }


def measured(kube: Kube, node: str, name: str) -> Any:
    """The Pod's entry once its memory is known (a fresh container's may take a moment)."""

    def look() -> Any:
        pod = pods_of(kube, summary(kube, node)).get(name)
        if pod is None or not pod["containers"]:
            return None
        return pod if pod["containers"][0]["memory"].get("workingSetBytes") else None

    return until(look, f"usage of {name}")


def test_each_node_shows_its_own_pods_only(kube: Kube) -> None:
    kube.apply(on(A, "first"), on(B, "second"))
    uids = {
        name: kube.wait_phase(name, "Running")["metadata"]["uid"] for name in ("first", "second")
    }
    for node, name in ((A, "first"), (B, "second")):
        pod = measured(kube, node, name)
        assert pod["podRef"]["uid"] == uids[name]
        found = summary(kube, node)
        assert found["node"]["nodeName"] == node
        assert set(pods_of(kube, found)) == {name}
        told = samples(asked(kube, node, "metrics/resource"), "pod_memory_working_set_bytes")
        ours = [one for one in told if one.labels["namespace"] == kube.namespace]
        assert [one.labels["pod"] for one in ours] == [name]
        assert samples(asked(kube, node, "metrics/resource"), "resource_scrape_error")[0].value == 0
        listed = json.loads(asked(kube, node, "pods"))["items"]
        assert {pod["spec"]["nodeName"] for pod in listed} == {node}
        running = json.loads(asked(kube, node, "runningpods/"))["items"]
        assert uids[name] in {pod["metadata"]["uid"] for pod in running}
        assert not (set(uids.values()) - {uids[name]}) & {p["metadata"]["uid"] for p in running}
    numbers = ports(kube)
    assert len(set(numbers.values())) == len(numbers) == 6, "one port a node"


def test_a_busy_pod_is_seen_to_be_busy(kube: Kube) -> None:
    limits = {"resources": {"limits": {"cpu": "200m", "memory": "64Mi"}}}
    kube.apply(on(A, "busy", *BUSY, container=limits), on(A, "idle", container=limits))
    kube.wait_phase("busy", "Running")
    kube.wait_phase("idle", "Running")

    def cores(name: str) -> int:
        return int(measured(kube, A, name)["containers"][0]["cpu"].get("usageNanoCores", 0))

    until(lambda: cores("busy") > 50_000_000, "a twentieth of a core at least", timeout=120)
    # A start is work too, and at first it is all that is known.
    until(lambda: cores("idle") < 20_000_000, "little of the idle one")
    before, node = measured(kube, A, "busy"), summary(kube, A)["node"]

    def rises(of: Callable[[], Any], counted: Any) -> bool:
        return bool(of()["cpu"]["usageCoreNanoSeconds"] > counted["cpu"]["usageCoreNanoSeconds"])

    until(lambda: rises(lambda: measured(kube, A, "busy"), before), "the Pod's counter rises")
    until(lambda: rises(lambda: summary(kube, A)["node"], node), "and its node's")
    (container,) = measured(kube, A, "busy")["containers"]
    memory = container["memory"]
    assert memory["availableBytes"] + memory["workingSetBytes"] == 64 * MIB
    assert container["startTime"] >= before["startTime"]
    assert measured(kube, A, "busy")["memory"]["workingSetBytes"] >= memory["workingSetBytes"] / 2


def test_a_nodes_cpu_does_not_fall_when_a_pod_goes(kube: Kube) -> None:
    def counter() -> float:
        text = asked(kube, A, "metrics/resource")
        return samples(text, "node_cpu_usage_seconds_total")[0].value

    kube.apply(on(A, "worker", *BUSY))
    kube.wait_phase("worker", "Running")
    start = counter()
    until(lambda: counter() > start + 0.2, "some work seen", timeout=120)
    before = counter()
    kube.out("delete", "pod", "worker", "--now")
    kube.gone("pod", "worker")
    assert counter() >= before


def test_cpu_and_memory_alone(kube: Kube) -> None:
    kube.apply(on(A, "web"))
    kube.wait_phase("web", "Running")
    measured(kube, A, "web")
    pod = pods_of(kube, summary(kube, A, "?only_cpu_and_memory=true"))["web"]
    assert set(pod) == {"podRef", "startTime", "containers", "cpu", "memory"}


def test_logs_and_files_are_counted(kube: Kube) -> None:
    script = "yes | head -c 300000; head -c 2000000 /dev/zero >/tmp/file; sleep 3600"
    kube.apply(on(A, "writer", "sh", "-c", script))
    kube.wait_phase("writer", "Running")

    def full() -> bool:
        (container,) = measured(kube, A, "writer")["containers"]
        logs, files = (int(container[key]["usedBytes"]) for key in ("logs", "rootfs"))
        return logs > 300_000 and files > 1_900_000

    until(full, "what it has written", timeout=60)
    storage = measured(kube, A, "writer")["ephemeral-storage"]
    assert storage["usedBytes"] > 2_200_000


def test_probes_are_counted(kube: Kube) -> None:
    probes = {
        # On a busy machine none may fail for its time.
        "readinessProbe": {
            "exec": {"command": ["true"]},
            "periodSeconds": 1,
            "timeoutSeconds": 30,
        },
        "livenessProbe": {
            "exec": {"command": ["false"]},
            "periodSeconds": 1,
            "timeoutSeconds": 30,
            "failureThreshold": 1000,
        },
    }
    kube.apply(on(A, "probed", container=probes))
    uid = kube.wait_phase("probed", "Running")["metadata"]["uid"]

    def counts() -> dict[tuple[str, str], float]:
        told = samples(asked(kube, A, "metrics/probes"), "prober_probe_total")
        return {
            (one.labels["probe_type"], one.labels["result"]): one.value
            for one in told
            if one.labels["pod_uid"] == uid and one.labels["container"] == "main"
        }

    until(
        lambda: (
            counts().get(("Readiness", "successful"), 0) >= 2
            and counts().get(("Liveness", "failed"), 0) >= 2
        ),
        "two answers of each",
        show=counts,
    )
    assert set(counts()) == {("Readiness", "successful"), ("Liveness", "failed")}
    text = asked(kube, A, "metrics/probes")
    seconds = samples(text, "prober_probe_duration_seconds_sum")
    assert {one.labels["probe_type"] for one in seconds if one.labels["pod"] == "probed"} == {
        "Readiness"
    }


def test_configuration_health_and_what_is_off(kube: Kube) -> None:
    config = json.loads(asked(kube, A, "configz"))["kubeletconfig"]
    assert (config["kind"], config["enableSystemLogHandler"]) == ("KubeletConfiguration", False)
    assert config["maxPods"] > 0
    assert asked(kube, A, "healthz") == "ok"
    (name,) = samples(asked(kube, B, "metrics"), "kubelet_node_name")
    assert name.labels == {"node": B}
    for path in ("logs/", "run/default/web/main", "debug/pprof/"):
        done = kube.run("get", "--raw", f"/api/v1/nodes/{A}/proxy/{path}", check=False)
        assert done.returncode != 0
        assert "disabled" in done.stderr or "MethodNotAllowed" in done.stderr


def test_ports_and_counters_after_a_new_agent(cri: Running, kube: Kube) -> None:
    kube.apply(on(A, "steady"))
    kube.wait_phase("steady", "Running")
    measured(kube, A, "steady")
    before = ports(kube)
    cri.thread.run(cri.cluster.kill_agent())
    cri.thread.run(cri.cluster.start_agent())
    assert ports(kube) == before
    until(
        lambda: all(asked_quietly(kube, node) for node in before),
        "every node answers on its old port",
    )
    assert ports(kube) == before
    # A node answers before it has heard of all its Pods again, as a kubelet does.
    until(lambda: set(pods_of(kube, summary(kube, A))) == {"steady"}, "its Pod is there")
    until(lambda: kube.run("logs", "steady", check=False).returncode == 0, "its log, too")
    assert kube.out("logs", "steady") == ""


def asked_quietly(kube: Kube, node: str) -> bool:
    """Whether the node answers, and as itself."""
    done = kube.run("get", "--raw", f"/api/v1/nodes/{node}/proxy/stats/summary", check=False)
    return done.returncode == 0 and json.loads(done.stdout)["node"]["nodeName"] == node
