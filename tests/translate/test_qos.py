"""QoS classes and whole-Pod resources, by the rules in the Kubernetes documentation."""

from __future__ import annotations

import pytest

from tests.translate.builders import pod
from vknode.translate.qos import compute_qos_class, pod_limits, pod_requests, qos_class


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ("{}", "BestEffort"),
        ("{requests: {cpu: 100m}}", "Burstable"),
        ("{limits: {cpu: 1}, requests: {cpu: 1}}", "Burstable"),
        ("{limits: {cpu: 1, memory: 1Gi}, requests: {cpu: 1, memory: 1Gi}}", "Guaranteed"),
        ("{limits: {cpu: 1, memory: 1Gi}, requests: {cpu: 1000m, memory: 1024Mi}}", "Guaranteed"),
        ("{limits: {cpu: 1, memory: 1Gi}, requests: {cpu: 500m, memory: 1Gi}}", "Burstable"),
        ("{requests: {ephemeral-storage: 1Gi}}", "BestEffort"),
        ("{requests: {cpu: '0'}}", "BestEffort"),
    ],
)
def test_one_container(resources: str, expected: str) -> None:
    spec = f"containers: [{{name: a, image: i, resources: {resources}}}]"
    assert compute_qos_class(pod(spec)) == expected


def test_one_container_without_resources_makes_a_guaranteed_pod_burstable() -> None:
    full = "resources: {limits: {cpu: 1, memory: 1Gi}, requests: {cpu: 1, memory: 1Gi}}"
    assert compute_qos_class(pod(f"containers: [{{name: a, {full}}}, {{name: b}}]")) == "Burstable"
    both = pod(f"containers: [{{name: a, {full}}}, {{name: b, {full}}}]")
    assert compute_qos_class(both) == "Guaranteed"
    init = pod(f"initContainers: [{{name: i}}]\ncontainers: [{{name: a, {full}}}]")
    assert compute_qos_class(init) == "Burstable"


def test_pod_level_resources_decide_alone() -> None:
    spec = """
    resources: {limits: {cpu: 1, memory: 1Gi}, requests: {cpu: 1, memory: 1Gi}}
    containers: [{name: a}]
    """
    assert compute_qos_class(pod(spec)) == "Guaranteed"


def test_the_class_in_the_status_stays() -> None:
    one = pod()
    one["status"]["qosClass"] = "Guaranteed"
    assert qos_class(one) == "Guaranteed"


def test_requests_of_a_pod_are_the_larger_of_run_and_init_phase_plus_overhead() -> None:
    # The example of KEP 753: sidecars count in both phases.
    spec = """
    overhead: {cpu: 50m, memory: 10Mi}
    initContainers:
    - {name: i1, resources: {requests: {cpu: 500m}}}
    - {name: s1, restartPolicy: Always, resources: {requests: {cpu: 200m, memory: 64Mi}}}
    - {name: i2, resources: {requests: {cpu: 900m}}}
    containers:
    - {name: a, resources: {requests: {cpu: 300m, memory: 1Gi}, limits: {memory: 2Gi}}}
    - {name: b, resources: {requests: {cpu: 100m}}}
    """
    assert pod_requests(pod(spec)) == {"cpu": "1150m", "memory": "1098Mi"}
    # Overhead is only added to limits that exist.
    assert pod_limits(pod(spec)) == {"memory": "2058Mi"}


def test_pod_level_requests_replace_the_sum() -> None:
    spec = """
    resources: {requests: {cpu: 2}, limits: {memory: 1Gi}}
    containers: [{name: a, resources: {requests: {cpu: 300m, memory: 1Mi}}}]
    """
    assert pod_requests(pod(spec)) == {"cpu": "2", "memory": "1Mi"}
    assert pod_limits(pod(spec)) == {"memory": "1Gi"}
