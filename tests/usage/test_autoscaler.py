"""A HorizontalPodAutoscaler scales by the CPU that sandboxes really use: up, and down again."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.kube import Kube, deployment
from tests.support.until import until
from tests.usage.burners import BURN_ON_DEMAND, cpu

pytestmark = [pytest.mark.cluster, pytest.mark.containerd]

MOST = 3


@pytest.mark.timeout(400)
def test_a_deployment_follows_its_load_up_and_down(kube: Kube) -> None:
    load: dict[str, Any] = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "load"}}
    kube.apply(load | {"data": {"on": "yes"}})
    kube.apply(
        deployment(
            "worker",
            1,
            BURN_ON_DEMAND,
            container={
                # A burner uses twice what it asked for: at 50 % four would be wanted.
                "resources": cpu(200, request=100),
                "volumeMounts": [{"name": "load", "mountPath": "/load"}],
            },
            volumes=[{"name": "load", "configMap": {"name": "load"}}],
        ),
        autoscaler("worker", most=MOST, percent=50),
    )
    kube.ready_pods("app=worker", 1)

    kube.ready_pods("app=worker", MOST, timeout=120)
    reasons = {condition["type"]: condition for condition in scaler(kube)["conditions"]}
    assert reasons["ScalingActive"]["reason"] == "ValidMetricFound"
    (metric,) = scaler(kube)["currentMetrics"]
    assert metric["resource"]["current"]["averageUtilization"] > 100

    kube.apply(load | {"data": {}})
    kube.ready_pods("app=worker", 1, timeout=150)
    (metric,) = scaler(kube)["currentMetrics"]
    assert metric["resource"]["current"]["averageUtilization"] < 50
    until(lambda: scaler(kube)["currentReplicas"] == 1, "one replica", timeout=30)


def scaler(kube: Kube) -> dict[str, Any]:
    status: dict[str, Any] = kube.json("get", "hpa", "worker")["status"]
    return status


def autoscaler(name: str, *, most: int, percent: int) -> dict[str, Any]:
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": name},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
            "minReplicas": 1,
            "maxReplicas": most,
            "metrics": [
                {
                    "type": "Resource",
                    "resource": {
                        "name": "cpu",
                        "target": {"type": "Utilization", "averageUtilization": percent},
                    },
                }
            ],
            # By default it looks back five minutes before it scales down.
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}},
        },
    }
