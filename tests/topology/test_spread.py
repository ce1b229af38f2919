"""Scheduling features that need several nodes really have several nodes."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.support.kube import Kube, deployment
from tests.support.until import until

pytestmark = [pytest.mark.cluster, pytest.mark.containerd]


def test_hostname_anti_affinity_is_kept_strictly(kube: Kube) -> None:
    rule = {
        "labelSelector": {"matchLabels": {"app": "apart"}},
        "topologyKey": "kubernetes.io/hostname",
    }
    kube.apply(
        deployment(
            "apart",
            7,
            affinity={
                "podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [rule]}
            },
        )
    )
    until(
        lambda: (
            Counter(p["status"].get("phase") for p in kube.items("pods", "app=apart"))
            == {"Running": 6, "Pending": 1}
        ),
        "six run, the seventh finds no host",
        timeout=90,
        show=lambda: kube.out("get", "pods", "-o", "wide"),
    )
    running = [p for p in kube.items("pods", "app=apart") if p["status"]["phase"] == "Running"]
    assert len({p["spec"]["nodeName"] for p in running}) == 6


def test_node_selector_by_zone(kube: Kube) -> None:
    kube.apply(deployment("local", 3, nodeSelector={"topology.kubernetes.io/zone": "az2"}))
    pods = kube.ready_pods("app=local", 3)
    assert {p["spec"]["nodeName"] for p in pods} <= {"az2-a", "az2-b"}


def test_drain_respects_a_disruption_budget(kube: Kube) -> None:
    kube.apply(
        deployment("guarded", 3, nodeSelector={"topology.kubernetes.io/zone": "az3"}),
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": {"name": "guarded"},
            "spec": {"minAvailable": 2, "selector": {"matchLabels": {"app": "guarded"}}},
        },
    )
    kube.ready_pods("app=guarded", 3)
    try:
        # Never fewer than two ready, watched from outside while the node empties.
        kube.out("cordon", "az3-a")
        assert "SchedulingDisabled" in kube.out("get", "node", "az3-a")
        drain = kube.popen("drain", "az3-a", "--pod-selector=app=guarded", "--timeout=180s")
        lowest = 3
        while drain.poll() is None:
            ready = sum(
                1
                for p in kube.items("pods", "app=guarded")
                if "deletionTimestamp" not in p["metadata"]
                and any(
                    c["type"] == "Ready" and c["status"] == "True"
                    for c in p["status"].get("conditions", ())
                )
            )
            lowest = min(lowest, ready)
        assert drain.returncode == 0
        pods = kube.ready_pods("app=guarded", 3)
        assert {p["spec"]["nodeName"] for p in pods} == {"az3-b"}
        assert lowest >= 2
    finally:
        kube.out("uncordon", "az3-a")
        kube.out("uncordon", "az3-b")


def test_drain_that_the_budget_forbids_fails(kube: Kube) -> None:
    kube.apply(
        deployment("stuck", 2, nodeSelector={"kubernetes.io/hostname": "az3-a"}),
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": {"name": "stuck"},
            "spec": {"maxUnavailable": 0, "selector": {"matchLabels": {"app": "stuck"}}},
        },
    )
    before = {p["metadata"]["uid"] for p in kube.ready_pods("app=stuck", 2)}
    try:
        done = kube.run("drain", "az3-a", "--pod-selector=app=stuck", "--timeout=20s", check=False)
        assert done.returncode != 0
        assert "Cannot evict pod as it would violate the pod's disruption budget" in (
            done.stderr + done.stdout
        )
        assert {p["metadata"]["uid"] for p in kube.ready_pods("app=stuck", 2)} == before
    finally:
        kube.out("uncordon", "az3-a")
