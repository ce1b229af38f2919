"""What a developer reads with kubectl about Pods on virtual nodes."""

from __future__ import annotations

import subprocess
import time

import pytest

from tests.support.kube import Kube, simple_pod
from tests.support.until import until

pytestmark = [pytest.mark.cluster, pytest.mark.containerd]


def columns(table: str) -> list[dict[str, str]]:
    """Rows of a kubectl table by column name; columns start where the header says."""
    head, *rows = table.rstrip("\n").split("\n")
    names = head.split()
    starts = []
    at = 0
    for name in names:
        at = head.index(name, at)
        starts.append(at)
    ends = [*starts[1:], None]
    return [
        {n: row[s:e].strip() for n, s, e in zip(names, starts, ends, strict=True)} for row in rows
    ]


def test_table_of_pods(kube: Kube) -> None:
    kube.apply(simple_pod("reader"))
    kube.wait_phase("reader", "Running")
    (row,) = columns(kube.out("get", "pods", "reader"))
    assert row["READY"] == "1/1"
    assert row["STATUS"] == "Running"
    assert row["RESTARTS"] == "0"


def test_wide_table_has_ip_and_node(kube: Kube) -> None:
    kube.apply(simple_pod("reader"))
    pod = kube.wait_phase("reader", "Running")
    line = kube.out("get", "pods", "reader", "-o", "wide").splitlines()[1]
    assert pod["status"]["podIP"] in line.split()
    assert pod["spec"]["nodeName"] in line.split()


def test_table_of_nodes_shows_every_cell(kube: Kube) -> None:
    rows = columns(kube.out("get", "nodes", "-L", "topology.kubernetes.io/zone"))
    assert sorted(r["NAME"] for r in rows) == [
        f"az{zone}-{cell}" for zone in (1, 2, 3) for cell in "ab"
    ]
    assert {r["STATUS"] for r in rows} == {"Ready"}
    assert all(r["ZONE"] == r["NAME"].rsplit("-", 1)[0] for r in rows)
    wide = kube.out("get", "nodes", "-o", "wide")
    assert "containerd://" in wide


def test_describe_node_tells_capacity_and_pods(kube: Kube) -> None:
    kube.apply(simple_pod("reader"))
    node = kube.wait_phase("reader", "Running")["spec"]["nodeName"]
    text = kube.out("describe", "node", node)
    for expected in (
        "topology.kubernetes.io/zone=",
        "type=virtual-kubelet",
        "KubeletReady",
        "Allocatable:",
        "HolderIdentity:  " + node,
        "reader",
    ):
        assert expected in text


def test_watch_prints_every_step(kube: Kube) -> None:
    kube.apply(simple_pod("there", schedulingGates=[{"name": "example.com/never"}]))
    with kube.popen(
        "get", "pods", "-w", "--no-headers", stdout=subprocess.PIPE, bufsize=0
    ) as watch:
        try:
            assert watch.stdout is not None
            assert watch.stdout.readline().startswith(b"there ")  # from here on it watches
            kube.apply(simple_pod("watched"))
            kube.wait_phase("watched", "Running")
            kube.out("delete", "pod", "watched", "--wait=true")
            seen: list[str] = []
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and "Terminating" not in seen:
                fields = watch.stdout.readline().decode().split()
                if fields and fields[0] == "watched":
                    seen.append(fields[2])
        finally:
            watch.terminate()
    assert "Pending" in seen or "ContainerCreating" in seen
    assert seen.index("Running") < seen.index("Terminating")


def test_yaml_has_the_whole_status(kube: Kube) -> None:
    kube.apply(simple_pod("reader"))
    status = kube.wait_phase("reader", "Running")["status"]
    assert status["qosClass"] == "BestEffort"
    assert status["startTime"]
    assert status["podIPs"] == [{"ip": status["podIP"]}]
    assert status["hostIPs"] == [{"ip": status["hostIP"]}]
    assert {c["type"]: c["status"] for c in status["conditions"]} == {
        "PodScheduled": "True",
        "PodReadyToStartContainers": "True",
        "Initialized": "True",
        "ContainersReady": "True",
        "Ready": "True",
    }
    assert all(c["observedGeneration"] == 1 for c in status["conditions"])
    assert status["observedGeneration"] == 1
    (container,) = status["containerStatuses"]
    assert container["containerID"].startswith("containerd://")
    assert "sha256:" in container["imageID"]
    assert container["started"] is True
    assert container["ready"] is True
    assert container["state"]["running"]["startedAt"]


def test_describe_pod_shows_the_events_of_a_start(kube: Kube) -> None:
    kube.apply(simple_pod("reader"))
    kube.wait_phase("reader", "Running")

    def told() -> bool:
        text = kube.out("describe", "pod", "reader")
        return all(word in text for word in ("Scheduled", "Pulled", "Created", "Started"))

    until(told, "events of the start", show=lambda: kube.describe("reader"))
    reasons = kube.out("events", "--for", "pod/reader")
    assert "Started" in reasons


def test_wait_for_conditions_and_deletion(kube: Kube) -> None:
    kube.apply(simple_pod("waited"))
    assert "condition met" in kube.out(
        "wait", "--for=condition=Ready", "pod/waited", "--timeout=60s"
    )
    kube.out("delete", "pod", "waited", "--wait=false")
    kube.out("wait", "--for=delete", "pod/waited", "--timeout=60s")
    assert kube.get("pod", "waited") is None
