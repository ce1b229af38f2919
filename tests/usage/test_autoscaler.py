"""A HorizontalPodAutoscaler scales by the CPU that sandboxes really use: up, and down again."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.kube import Kube, deployment
from tests.support.until import until
from tests.usage.burners import BURN_ON_DEMAND, cpu

pytestmark = [pytest.mark.cluster, pytest.mark.containerd]

MOST = 3


@pytest.mark.timeout(800)
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

    kube.ready_pods("app=worker", MOST, timeout=240)
    # Each look of the autoscaler's is another moment's, the new Pods' first ones among them.
    until(
        lambda: reason(kube) == "ValidMetricFound" and utilization(kube) > 100,
        "they are seen to work as hard as they may",
        timeout=120,
        show=lambda: scaler(kube),
    )

    kube.apply(load | {"data": {}})
    kube.ready_pods("app=worker", 1, timeout=240)
    until(
        lambda: 0 <= utilization(kube) < 50 and scaler(kube)["currentReplicas"] == 1,
        "one replica, which has little to do",
        timeout=120,
        show=lambda: scaler(kube),
    )


def reason(kube: Kube) -> str:
    """Why the autoscaler scales, or does not."""
    found = {condition["type"]: condition for condition in scaler(kube).get("conditions", ())}
    return str(found.get("ScalingActive", {}).get("reason", ""))


def utilization(kube: Kube) -> int:
    """Per cent of what was asked for; -1 while the autoscaler has not seen it."""
    (metric, *_) = scaler(kube).get("currentMetrics") or [{}]
    return int(metric.get("resource", {}).get("current", {}).get("averageUtilization", -1))


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
